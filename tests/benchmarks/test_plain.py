"""The plain baseline learns what our stages learn; and what of the benchmarks needs no run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.lib import lineup
from benchmarks.lib.contenders import NETWORKS, Contender, Task, task_of
from benchmarks.lib.lineup import Options, contenders
from benchmarks.lib.speeds import Row, answers, network_text, onef1b, plain, ratio, rows_of
from benchmarks.lib.tables import markdown, with_section
from benchmarks.rivals import products
from benchmarks.rivals.onef1b import Part, even_plan, loss_of
from benchmarks.rivals.plain import PlainBlock, PlainTrainer
from benchmarks.throughput import report, size_of_run
from pipeline.config.sections import build_config
from pipeline.errors import ConfigError
from pipeline.learning.block import Block
from pipeline.learning.optimizers import make_optimizer
from pipeline.learning.stage import Stage
from pipeline.network.from_config import build_specs

LR, STEPS, CPU = 5e-4, 3, torch.device("cpu")
MODELS = {
    "mlp": {"name": "mlp", "hidden_layers": 2, "hidden": 12},
    # a decoder that pools, one that pads, both poolings
    "vgg": {"name": "vgg", "layers": [5, "M", 6, "A3", 6], "hidden": 8},
    "vgg, whole maps decoded": {"name": "vgg", "layers": [5, "M", 6, "A3", 6], "hidden": 8},
}
DECODED = {"vgg, whole maps decoded": 1024}
"""Inputs of a decoder, at most; 24 of others."""


def stage_of(model: str, loss: str) -> Stage:
    """A stage of ours that holds the whole network, in float64."""
    tree: dict[str, Any] = {
        "model": MODELS[model],
        "loss": {"name": loss, "dim_in_decoder": DECODED.get(model, 24)},
        "data": {"name": "cifar10"},
    }
    config = build_config(tree, "test")
    specs = build_specs(config.model, config.loss, config.nonlinearity, (3, 9, 9), 4)
    make = partial(make_optimizer, "adam", weight_decay=0.0, momentum=0.9)
    blocks = [Block(spec, seed=1, device=CPU, dtype=torch.float64, bf16=False) for spec in specs]
    for block in blocks:
        block.attach(make)
    return Stage(blocks, None)


def losses_of(stage: Stage, x: Tensor, labels: Tensor, batch_id: int) -> list[float | None]:
    """Train a batch; the loss of every block that has one."""
    stage.training.reset()
    stage.train(x, labels, batch_id=batch_id, lr=LR, send=lambda sent: None)
    return [tally.loss for tally in stage.training.read()]


def batches() -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(7, 3, 9, 9, generator=draws, dtype=torch.float64),
            torch.randint(4, (7,), generator=draws),
        )
        for _ in range(STEPS)
    ]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", ["pred", "sim", "predsim"])
def test_the_plain_baseline_is_the_same_method(model: str, loss: str) -> None:
    stage = stage_of(model, loss)
    trainer = PlainTrainer([PlainBlock(block.spec).double() for block in stage.blocks], LR)
    for block, copy in zip(stage.blocks, trainer.blocks, strict=True):
        copy.load_state_dict(block.state_dict())
    for batch_id, (x, labels) in enumerate(batches(), 1):
        ours = losses_of(stage, x, labels, batch_id)
        assert trainer.step(x, labels) == pytest.approx(ours, rel=1e-9)
    for block, copy in zip(stage.blocks, trainer.blocks, strict=True):
        for name, tensor in copy.state_dict().items():
            torch.testing.assert_close(tensor, block.state_dict()[name])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model", MODELS)
def test_1f1b_has_the_layers_of_our_global_backprop(model: str) -> None:
    stage = stage_of(model, "glob")
    halves = (stage.blocks[:2], stage.blocks[2:])
    parts = [Part(tuple(block.spec for block in half), CPU, bf16=False).double() for half in halves]
    for part, half in zip(parts, halves, strict=True):
        for layer, block in zip(part.layers, half, strict=True):
            layer.load_state_dict(block.state_dict())
    optimizers = [torch.optim.Adam(part.parameters(), LR, fused=True) for part in parts]
    for batch_id, (x, labels) in enumerate(batches(), 1):
        sent = parts[0](x)
        received = sent.detach().requires_grad_()
        loss = loss_of(parts[1](received), labels)
        (gradient,) = torch.autograd.grad(loss, received, retain_graph=True)
        assert sent.is_contiguous()
        assert gradient.is_contiguous()
        loss.backward()
        sent.backward(gradient)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert [loss.item()] == pytest.approx(losses_of(stage, x, labels, batch_id), rel=1e-5)


def test_the_plain_baseline_refuses_what_it_does_not_know() -> None:
    tree = {"model": {"name": "resnet18"}, "loss": {"name": "pred"}, "data": {"name": "cifar10"}}
    config = build_config(tree, "test")
    specs = build_specs(config.model, config.loss, config.nonlinearity, (3, 32, 32), 10)
    with pytest.raises(SystemExit, match="only an MLP or a VGG"):
        [PlainBlock(spec) for spec in specs]


def task(network: str, contender: Contender, *changes: str) -> Task:
    return Task(network, contender, "cpu", 1, 2.0, changes)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_a_config_and_crosses_to_a_rival(network: str) -> None:
    given = task(network, Contender("plain", "sim", "fp32"), "model.hidden=32")
    config = given.config()
    assert (config.data.name, config.data.batch_size, config.model.hidden) == ("synthetic", 128, 32)
    assert task_of(given.text()) == given


def test_1f1b_divides_the_same_layers_evenly() -> None:
    rival = task("vgg8b_quarter", Contender("1f1b", "glob", "fp32", 3))
    specs, plan = even_plan(rival)
    blocks = [block for stage in plan.stages for block in stage.blocks]
    assert (plan.n_stages, blocks) == (3, list(range(len(specs))))
    assert not any(spec.pred or spec.sim for spec in specs)


def test_a_round_holds_each_pair() -> None:
    counts = (1, 3)
    options = Options(
        ("mlp",), ("fp32",), ("pred", "sim"), counts, 1, 1.0, "cpu", 1, (), Path("runs"), "mine"
    )
    assert "--stages 1,3 --rounds 1" in options.command
    assert options.command.endswith(" --name mine")
    assert "--name" not in replace(options, name="throughput").command
    names = [contender.name for contender in contenders(options)]
    assert names == [
        "single pred fp32", "pipeline 1 pred fp32", "pipeline 3 pred fp32",
        "single sim fp32", "pipeline 1 sim fp32", "pipeline 3 sim fp32",
        "products pred fp32", "products sim fp32",
        "single glob fp32",
        "1f1b 3 in 1 glob fp32", "1f1b 3 in 2 glob fp32", "1f1b 3 in 4 glob fp32",
        "plain pred fp32", "plain sim fp32",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "stages"),
    [(["cpu"], [2, 4]), (["cuda:0"], []), (["cuda:0", "cuda:1", "cuda:2"], [2])],
)
def test_1f1b_needs_a_gpu_for_each_process(
    names: list[str], stages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineup, "devices", lambda gpus: names)
    options = Options(
        ("vgg8b",), ("bf16",), ("pred",), (1, 2, 4), 1, 1.0, "which", 1, (), Path("runs"), "mine"
    )
    assert options.rival_stages == stages
    assert any(c.compiled for c in contenders(options)) == ("cpu" not in names)
    assert {c.stages for c in contenders(options) if c.way == "1f1b"} == set(stages)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    cores = {c.cores for c in contenders(options) if c.loss == "glob" and c.way == "single"}
    assert cores == ({1, 2} if "cpu" in names else {1})


def test_one_process_on_several_cores_has_the_threads_of_all() -> None:
    asked = task("mlp", Contender("single", "glob", "fp32", cores=2))
    assert asked.config().runtime.threads_per_stage == 2 * asked.threads
    assert asked.contender.name == "single glob fp32 on 2 cores"


def test_the_bound_is_what_products_alone_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "products_per_s", lambda side, *given: 1000.0)
    given = task("mlp", Contender("products", "predsim", "fp32"))
    lap = products.bound(given, torch.device("cpu"))
    # two passes of each layer, three of each map and classifier
    maps, classifiers = 3 * 1024**2, 3 * 1024 * 10
    layers = 784 * 1024 + 2 * 1024**2 + 1024 * 10
    assert lap["multiply_adds"] == 2 * layers + 3 * (maps + classifiers)
    assert lap["flop_per_s"] == 1000 * 2 * 1024**3
    assert lap["images_per_s"] == pytest.approx(1000 * 1024**3 / lap["multiply_adds"], rel=1e-4)


def test_products_are_timed() -> None:
    small, large = (
        products.products_per_s(side, torch.float32, 0.02, torch.device("cpu")) for side in (8, 512)
    )
    assert small > large > 0


def test_how_near_to_the_bound_is_answered_on_gpus() -> None:
    bound = row(Contender("products", "predsim", "bf16"), 1000.0, 1200.0)
    single = row(Contender("single", "predsim", "bf16"), 410.0, 500.0)
    (answer,) = answers("vgg8b", "cuda", [bound, single])
    assert answer.asked == "single predsim bf16 ≥ 0.4 × products alone, bf16"
    assert (round(answer.found, 3), answer.met) == (0.413, True)


def test_the_faster_of_compiled_and_not_answers() -> None:
    bound = row(Contender("products", "predsim", "bf16"), 1000.0)
    as_it_is = row(Contender("single", "predsim", "bf16"), 300.0)
    compiled = row(Contender("single", "predsim", "bf16", compiled=True), 450.0)
    (answer,) = answers("vgg8b", "cuda", [bound, as_it_is, compiled])
    assert answer.asked == "single predsim bf16 compiled ≥ 0.4 × products alone, bf16"
    assert answer.met


def test_compiled_contenders_say_so_in_their_config_and_older_rows_are_none() -> None:
    asked = task("mlp", Contender("single", "pred", "bf16", compiled=True))
    assert asked.config().runtime.compile
    kept = row(Contender("single", "pred", "bf16"), 300.0).tree()
    del kept["compiled"]
    (read,) = rows_of([kept])
    assert read.contender == Contender("single", "pred", "bf16")
    assert not task("mlp", read.contender).config().runtime.compile


@pytest.mark.parametrize(
    ("speed", "seconds", "size"),
    [(3200.0, 20.0, (100, 6)), (10.0, 20.0, (1, 6)), (1280.0, 2.0, (10, 3))],
)
def test_epochs_take_a_few_seconds(speed: float, seconds: float, size: tuple[int, int]) -> None:
    assert size_of_run(speed, seconds) == size


def row(contender: Contender, *speeds: float | None) -> Row:
    laps = [{"failed": "why"} if s is None else {"images_per_s": s} for s in speeds]
    if contender.is_ours:
        laps = [{**lap, "busy": [0.5, 0.9]} for lap in laps]
    return Row(contender, laps)


ROWS = [
    row(Contender("pipeline", "pred", "fp32", 2), 190.0, 380.0),
    row(Contender("pipeline", "pred", "fp32", 4), 150.0, 300.0),
    row(Contender("single", "pred", "fp32"), 120.0, 200.0),
    row(Contender("1f1b", "glob", "fp32", 2, 1), 50.0, None),
    row(Contender("1f1b", "glob", "fp32", 2, 2), 100.0, 200.0),
    row(Contender("1f1b", "glob", "fp32", 2, 4), None, None),
    row(Contender("plain", "pred", "fp32"), 100.0, 200.0),
]


FASTER = Contender("pipeline", "pred", "fp32", 3)


def test_ratios_are_those_within_a_round_and_to_the_best_rival() -> None:
    assert onef1b(ROWS, "fp32") is ROWS[4]
    assert ratio(ROWS[0], ROWS[4]) == pytest.approx(1.9)
    assert ratio(ROWS[0], ROWS[3]) == pytest.approx(3.8)
    assert ratio(ROWS[0], ROWS[5]) is None
    assert plain(ROWS, "sim") is None


def test_what_was_asked_for_is_answered() -> None:
    given = answers("mlp", "cpu", ROWS)
    assert [(answer.asked, answer.met) for answer in given] == [
        ("pipeline 2 pred fp32 ≥ 1.8 × 1F1B at its best, fp32", True),
        ("single pred fp32 ≥ 1.3 × plain, fp32", False),
        ("pipeline 2 pred fp32: slowest stage busy for ≥ 0.88 of the time", True),
    ]
    (best, *_) = answers("mlp", "cpu", [*ROWS, row(FASTER, 200.0, 400.0)])
    assert (best.asked.partition(" ≥")[0], best.found) == ("pipeline 3 pred fp32", 2.0)
    assert answers("mlp", "cuda", ROWS) == []


def test_the_tables_come_from_what_was_kept() -> None:
    kept = [one.tree() for one in ROWS]
    assert rows_of(kept) == ROWS
    network = {"network": "mlp", "contenders": kept}
    text = network_text(network, "cpu")
    assert "| pipeline, 2 stages | pred | 285 | 1.90 | 1.90 |" in text
    assert "| 1F1B, 2 stages, micro-batches: 4 | glob | failed | – | – |" in text
    assert "- 1f1b 2 in 4 glob fp32: why\n" in text
    where = {"command": "one", "processor": "two", "cores": 3, "versions": {"torch": "4"}}
    commit = {"commit": "five", "uncommitted_changes": True, "gpus": [], "device": "cpu"}
    whole = report({**where, **commit, "networks": [network]}, "name")
    assert "`one`; two, 3 cores; torch 4; commit five+." in whole
    assert text in whole
    assert whole.endswith("![Images/s of each contender](figures/name.svg)\n")


def test_a_table_goes_between_its_markers() -> None:
    table = markdown(("who", "speed"), [("a", "1")], ("who",))
    assert table == "| who | speed |\n| --- | ---: |\n| a | 1 |\n"
    before = "# A\n<!-- begin one: by hand -->\nold\n<!-- end one -->\nrest\n"
    after = with_section(before, "one", table)
    assert after == f"# A\n<!-- begin one: by hand -->\n\n{table}\n<!-- end one -->\nrest\n"
    assert with_section(after, "one", table) == after
    with pytest.raises(ConfigError, match="has 0 sections on; write one for its table"):
        with_section(before, "on", table)
