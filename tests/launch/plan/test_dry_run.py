"""What `--dry-run` prints, at several widths and for several kinds of runs."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from support.processes import python

from launch.plan.checks import network_costs
from launch.plan.dry_run import dry_run_report
from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.network.from_config import network_specs
from pipeline.network.specs import CustomSpec
from pipeline.planning.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config.sections import Config
    from pipeline.network.specs import BlockSpec

WIDE_VGG = {"name": "vgg11b", "feat_mult": 3}
MLP = {"name": "mlp", "hidden_layers": 2, "hidden": 4}
FOUR = ("cuda:0", "cuda:1", "cuda:2", "cuda:3")


def report(
    model: dict[str, Any],
    loss: str = "predsim",
    data: str = "cifar10",
    *,
    stages: int | None = None,
    devices: tuple[str, ...] = FOUR,
    width: int = 80,
    **sections: Any,
) -> str:
    config = config_of(model, loss, data, **sections)
    return printed(config, specs_of(config), stages=stages, devices=devices, width=width)


def config_of(model: dict[str, Any], loss: str, data: str = "cifar10", **sections: Any) -> Config:
    tree = {"model": model, "loss": {"name": loss}, "data": {"name": data}, **sections}
    return build_config(tree, "test")


def specs_of(config: Config) -> tuple[BlockSpec, ...]:
    return network_specs(config, data_facts(config.data))


def printed(
    config: Config,
    specs: Sequence[BlockSpec],
    *,
    stages: int | None = None,
    devices: tuple[str, ...] = FOUR,
    width: int = 80,
    single: bool = False,
) -> str:
    costs = network_costs(config, specs)
    plan = make_plan(specs, costs, stages=stages, devices=devices)
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    facts = data_facts(config.data)
    dry_run_report(config, facts, specs, costs, plan, console, single=single)
    return stream.getvalue()


def rows_of(text: str) -> list[str]:
    return [unwrapped(line).strip() for line in text.splitlines()]


def unwrapped(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("width", [80, 120])
def test_every_stage_has_a_row_that_fits(width: int) -> None:
    text = report(WIDE_VGG, width=width)
    assert max(map(len, text.splitlines())) <= width
    rows = rows_of(text)
    assert "3 cuda:1 conv 384→768 2.66 M 5.34 M 21743 M 96 MiB 1.16 GiB" in rows
    assert "9 cuda:0 linear 6144→1024 6.3 M 1.06 M 16 M – 121 MiB" in rows
    assert "output 1024→10" in rows
    assert "total 91.3 M 101 M 83274 M 879 MiB 7.32 GiB" in rows


def test_ratio_bottleneck_and_bounds() -> None:
    text = report(WIDE_VGG)
    rows = rows_of(text)
    assert "1 1.00× 1.00×" in rows
    assert "4 2.92× 3.83×" in rows
    assert "10 3.83× 3.83×" in rows
    sentences = unwrapped(text)
    assert "predsim does 2.21 times the multiply-adds of global backprop" in sentences
    bound = "bound by stage 3 (conv 384→768): 21743 M multiply-adds of 83274 M"
    assert bound in sentences
    assert "on 4 of the devices: by its multiply-adds at most 3.83× the speed of one" in sentences


@pytest.mark.parametrize(
    ("runtime", "says"),
    [
        ({}, "up to about 10.7 GiB, in checkpoints of 2.15 GiB: the 3 newest, one that is being"),
        ({"keep_checkpoints": 1, "keep_best": False}, "up to about 4.29 GiB, in checkpoints"),
        # 4 bytes for each of 91.3 M; two while one takes the place of the other
        (
            {"best_form": "weights"},
            "up to about 9.27 GiB, in checkpoints of 2.15 GiB: the 3 newest, one that is being "
            "written, and the best, with weights only, of 348 MiB.",
        ),
        (
            {"keep_best": "last"},
            "up to about 8.59 GiB, in checkpoints of 2.15 GiB: the 3 newest, one that is being "
            "written; the newest is the best, too.",
        ),
    ],
)
def test_room_on_the_disk_is_said(runtime: dict[str, Any], says: str) -> None:
    """Weights and two numbers of Adam's for each of 91.3 M + 101 M parameters, at four bytes."""
    text = unwrapped(report(WIDE_VGG, runtime=runtime))
    assert f"Disk: {says}" in text
    assert ("and the best." in text) is (runtime == {})


def test_frozen_blocks_are_named_and_cost_little() -> None:
    text = report({**MLP, "freeze": [0, 1]}, data="digits", stages=2)
    assert "Frozen (model.freeze): blocks 0, 1. They compute as in a test" in unwrapped(text)
    plain, frozen = (
        next(row for row in rows_of(each) if row.startswith("total"))
        for each in (report(MLP, data="digits", stages=2), text)
    )
    assert frozen.split()[2] == "0"  # parameters of heads
    assert plain.split()[2] != "0"
    assert "Frozen" not in report(MLP, data="digits", stages=2)


def test_what_crosses_the_links_is_said_with_labels() -> None:
    text = report({"name": "mlp", "hidden_layers": 3, "hidden": 4}, data="digits", stages=3)
    assert "Stage 0 is sent 9 KiB with each" in unwrapped(text)  # 128 images of 64 pixels, and 8
    (total,) = (row for row in rows_of(text) if row.startswith("total"))
    assert " 6 KiB " in total  # twice 128 images of 4 numbers, and 8


def test_rounded_activations_halve_what_links_carry_and_it_says_that_they_change_results() -> None:
    configs = [
        config_of(WIDE_VGG, "predsim", runtime={"wire_dtype": wire_dtype})
        for wire_dtype in ("as_computed", "bf16")
    ]
    plain, rounded = (
        sum(cost.sent_bytes for cost in network_costs(config, specs_of(config)))
        for config in configs
    )
    assert plain == 2 * rounded > 0
    texts = [printed(config, specs_of(config)) for config in configs]
    said = ["runtime.wire_dtype bf16 changes results" in text for text in texts]
    assert said == [False, True]


def test_a_stage_of_several_blocks_names_them_all() -> None:
    text = report(WIDE_VGG, stages=4)
    assert "bound by stage 2 (conv 768→768, conv 768→1536): 28538 M" in unwrapped(text)
    assert text.count("conv 1536→1536") == 3


def test_no_digit_is_lost_in_a_narrow_terminal() -> None:
    text = report(WIDE_VGG, width=50)
    assert "…" not in text
    assert "\x1b" not in text  # nor are there colours in a pipe
    assert "21743" in text
    assert max(map(len, text.splitlines())) <= 50


def test_small_numbers_keep_their_digits() -> None:
    text = report(MLP, "pred", "digits", devices=("cpu",))
    rows = rows_of(text)
    assert "0 cpu linear 64→4 268 50 632 3 KiB 47 KiB" in rows
    assert "at most" not in text
    assert "On the CPU" in text


def test_global_backprop_has_no_bounds() -> None:
    text = unwrapped(report({"name": "vgg8b"}, "glob", "mnist", stages=1, devices=("cpu",)))
    assert "every link" not in text
    assert "glob does 1.00 times" in text
    assert "in one process (--single): 762 MiB there, and no speed-up" in text
    assert "equal devices" not in text


def test_what_is_not_known_of_a_users_own_modules_is_left_out() -> None:
    own = CustomSpec(parameters=8, forward_macs=0, normalises=False)
    specs = [replace(spec, custom=own) for spec in specs_of(config_of(MLP, "pred"))]
    heads = unwrapped(printed(config_of(MLP, "pred"), specs))
    assert "Speed: bound by stage 0" in heads  # the classifiers' are known
    assert "Arithmetic" not in heads
    nothing = [replace(spec, pred=None) for spec in specs]
    text = printed(config_of(MLP, "pred"), nothing)
    assert "Batches of" in text
    assert "Speed" not in text
    assert "equal devices" not in text


@pytest.mark.parametrize("greedy", [False, True])
def test_of_single_mode_one_process_is_told_and_nothing_between_stages(greedy: bool) -> None:
    config = config_of(WIDE_VGG, "predsim", schedule={"greedy": greedy})
    text = printed(config, specs_of(config), devices=("cpu",), single=True)
    rows, sentences = rows_of(text), unwrapped(text)
    assert [row for row in rows if row.startswith(("0 ", "1 "))] == [
        "0 cpu conv 3→384 91.3 M 101 M 83274 M – 3.9 GiB"
    ]
    assert "total 91.3 M 101 M 83274 M – 3.9 GiB" in rows
    assert "Arithmetic" in sentences or greedy
    for words in ("link carries", "every link", "Speed", "stages spread", "equal devices"):
        assert words.lower() not in sentences.lower()


def test_planning_loads_neither_torch_nor_numpy() -> None:
    program = (
        "import sys, launch.plan.dry_run, launch.machine.gpus, pipeline.planning.plan\n"
        "sys.exit(bool({'torch', 'numpy', 'yaml', 'pydantic'} & set(sys.modules)))"
    )
    assert python("-c", program).returncode == 0


def test_greedy_training_has_no_bounds() -> None:
    text = unwrapped(report(MLP, "pred", "digits", schedule={"epochs": 1, "greedy": True}))
    assert "one block learns at a time" in text
    assert "a link carries batches only in the phases of blocks further down" in text
    assert "equal devices" not in text
