"""N stages, one stage and single mode give the same bytes; evaluation changes none of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from support import processes
from support.processes import digests, epochs, launch

from launch.verify import first_difference
from launch.verify import main as verify
from pipeline.schedule.feed import Course

if TYPE_CHECKING:
    from collections.abc import Callable

    Runner = Callable[..., Path]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("sockets_gone")]

CONFIGS = {
    # dropout of units and of channels, batch norm, pooling, crops, flips, cutout; a last batch
    # of 8 images; a learning rate that changes
    "digits": """\
model: {name: vgg, layers: [8, M, 12], hidden_layers: 1, hidden: 32, dropout: 0.3}
loss: {name: predsim, dim_in_decoder: 64}
schedule: {epochs: 3, milestones: [1, 2]}
data: {name: digits, batch_size: 32, crop_padding: 1, flip: true, cutout: 2,
       train_limit: 200, test_limit: 70}
""",
    "colour": """\
model: {name: vgg, layers: [8, 16, M, 16, A3], hidden_layers: 1, hidden: 32, dropout: 0.2}
loss: {name: predsim, dim_in_decoder: 128}
schedule: {epochs: 2}
data: {name: synthetic, channels: 3, size: 32, train_images: 72, test_images: 40, batch_size: 32,
       crop_padding: 4, flip: true}
""",
    "bf16": """\
model: {name: vgg, layers: [8, M, 16], hidden_layers: 1, hidden: 32, dropout: 0.2}
loss: {name: predsim, dim_in_decoder: 128}
schedule: {epochs: 2}
data: {name: synthetic, channels: 3, size: 16, train_images: 72, test_images: 40, batch_size: 32}
runtime: {precision: bf16}
""",
    # shortcuts with and without a convolution
    "residual": """\
model: {name: resnet18, feat_mult: 0.1, dropout: 0.1}
loss: {name: predsim, dim_in_decoder: 128}
schedule: {epochs: 2}
data: {name: synthetic, channels: 3, size: 16, train_images: 72, test_images: 40, batch_size: 32}
""",
    # a user's own modules, whose dropout draws from torch's own generators
    "own": """\
model: {factory: "network.test_user_network:convolutional", kwargs: {width: 8}}
loss: {name: predsim, dim_in_decoder: 128}
schedule: {epochs: 2}
data: {name: synthetic, classes: 5, size: 16, train_images: 72, test_images: 40, batch_size: 32}
""",
    # a user's own rule that uses every hook, and carries two tensors
    "rule": """\
model: {name: mlp, hidden_layers: 3, hidden: 24, dropout: 0.2}
loss: {rule: "support.rules:WithDropout", options: {noise: 0.2}}
schedule: {epochs: 2}
data: {name: digits, batch_size: 32, train_limit: 200, test_limit: 70}
""",
    # torchvision's, cut at its own blocks; dropout within its attention, too
    "attention": """\
model: {factory: "support.torchvision_networks:made", kwargs: {network: transformer, dropout: 0.1}}
loss: {name: predsim, dim_in_decoder: 64}
schedule: {epochs: 2}
data: {name: synthetic, classes: 5, size: 32, train_images: 40, test_images: 20, batch_size: 16}
""",
    # similarity losses that are not the paper's; batches that differ in what they learn from
    "cheaper": """\
model: {name: vgg, layers: [8, M, 16], hidden_layers: 1, hidden: 32, dropout: 0.2}
loss: {name: predsim, dim_in_decoder: 128, similarity_pool: 2, similarity_channels: 0.5,
       similarity_groups: 2, similarity_batches: 0.4, similarity_bf16: true}
schedule: {epochs: 2}
data: {name: synthetic, channels: 3, size: 16, train_images: 72, test_images: 40, batch_size: 32}
""",
    "greedy": """\
model: {name: vgg, layers: [8, M, 12], hidden_layers: 1, hidden: 32, dropout: 0.3}
loss: {name: pred}
schedule: {epochs: 1, greedy: true}
data: {name: digits, batch_size: 32, crop_padding: 1, train_limit: 200, test_limit: 70}
runtime: {keep_checkpoints: 4}
""",
}


GPU_WAYS: tuple[dict[str, Any], ...] = ({"single": True}, {"stages": 2})
BOTH = ("true", "false")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Trains a config once for given options; the run directory."""
    done: dict[tuple[object, ...], Path] = {}

    def train(name: str, *overrides: str, **options: Any) -> Path:
        key = (name, overrides, *sorted(options.items()))
        if key not in done:
            folder = tmp_path_factory.mktemp(name)
            config = folder / f"{name}.yaml"
            config.write_text(CONFIGS[name], encoding="utf-8")
            assert launch(config, folder / "run", overrides=overrides, **options) == 0
            done[key] = folder / "run"
        return done[key]

    return train


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("digits", 1), ("digits", 2), ("digits", None),
        ("colour", 2), ("colour", None),
        ("bf16", 2), ("bf16", None),
        ("residual", 3), ("own", None), ("rule", None), ("attention", 3), ("greedy", None),
        ("cheaper", None),
    ],
)  # fmt: skip
def test_n_processes_equal_one(run: Runner, name: str, stages: int | None) -> None:
    single, pipeline = run(name, single=True), run(name, stages=stages)
    assert len(digests(single)) == len(epochs(single)) > 1
    assert digests(pipeline) == digests(single)
    assert epochs(pipeline) == epochs(single)


TEAM = "parallel.members=2"


WHOLE = (TEAM, "parallel.batch_norm=batch", "parallel.similarity=batch")


@pytest.mark.parametrize("sees", [(TEAM,), WHOLE], ids=["share", "batch"])
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_team_of_processes_equals_one(run: Runner, sees: tuple[str, ...], transport: str) -> None:
    single = run("digits", *sees, single=True)
    team = run("digits", *sees, f"runtime.transport={transport}")
    assert "frames" not in (team / "run.log").read_text(encoding="utf-8")
    assert digests(team) == digests(single) != digests(run("digits", single=True))
    assert epochs(team) == epochs(single)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graphs", ["true", "false"])
@pytest.mark.parametrize("name", ["digits", "colour", "bf16", "residual"])
def test_n_processes_on_one_gpu_equal_one(run: Runner, name: str, graphs: str) -> None:
    change = f"runtime.cuda_graphs={graphs}"
    single, pipeline = (run(name, change, gpus="0", **way) for way in GPU_WAYS)
    log = (pipeline / "run.log").read_text(encoding="utf-8")
    assert "tensors travel" not in log  # but in memory of the device
    assert "cuda_graphs" not in log
    assert digests(pipeline) == digests(single)
    assert epochs(pipeline) == epochs(single)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_change_nothing(run: Runner) -> None:
    runs = (run("digits", f"runtime.cuda_graphs={g}", gpus="0", single=True) for g in BOTH)
    with_graphs, without = map(digests, runs)
    assert with_graphs == without


def test_every_block_learns_at_every_epoch(run: Runner) -> None:
    steps = list(digests(run("digits", single=True)).values())
    assert [sorted(step) for step in steps] == [[0, 1, 2, 3]] * 3
    for block in range(4):
        assert len({step[block] for step in steps}) == 3


@pytest.mark.parametrize("name", ["digits", "rule"])
def test_frames_carry_the_same_bytes(
    name: str, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.engines.local._work", processes.work_without_shared_memory)
    framed = run(name, "runtime.max_in_flight=3", stages=3)
    log = (framed / "run.log").read_text(encoding="utf-8")
    reason = "the next stage has no shared memory: this system has no memfd"
    assert f"link 0 → 1: tensors travel as frames ({reason})" in log
    assert "link 1 → 2: tensors travel as frames" in log
    assert digests(framed) == digests(run(name, single=True))


def test_streams_carry_the_same_bytes(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.engines.local._work", processes.work_on_an_island)
    streamed = run("digits", "runtime.transport=tcp", stages=3)
    log = (streamed / "run.log").read_text(encoding="utf-8")
    for link in ("coordinator → 0", "0 → 1", "1 → 2"):
        how = "a sealed stream (the next stage is on another machine)"
        assert f"link {link}: tensors travel as {how}" in log
    assert "turned away" not in log
    assert digests(streamed) == digests(run("digits", single=True))


@pytest.mark.parametrize(
    ("change", "options"),
    [("parallel.members=3", {}), ("runtime.max_in_flight=2", {"stages": 2, "replicas": ("0:2",)})],
    ids=["members", "replicas"],
)
def test_streams_carry_what_a_team_passes_on(
    run: Runner, monkeypatch: pytest.MonkeyPatch, change: str, options: dict[str, Any]
) -> None:
    """A batch that goes on as it came is sent from a slot that others fill meanwhile."""
    monkeypatch.setattr("launch.engines.local._work", processes.work_on_an_island)
    streamed = run("digits", change, "runtime.transport=tcp", **options)
    log = (streamed / "run.log").read_text(encoding="utf-8")
    assert "or to its team: tensors travel as a sealed stream" in log
    assert digests(streamed) == digests(run("digits", change, single=True, **options))


def test_replicas_of_a_stage_equal_one_process(run: Runner) -> None:
    ways = {"stages": 3, "replicas": ("1:2",)}
    every = "runtime.checkpoint_every_steps=3"
    single, replicated = run("digits", every, single=True, **ways), run("digits", every, **ways)
    assert digests(replicated) == digests(single) != digests(run("digits", every, single=True))
    assert sorted(digests(single)) == [4, 6, 7, 9, 13, 14, 16, 18, 21][-len(digests(single)) :]
    assert epochs(replicated) == epochs(single)


def test_frames_carry_what_a_team_found(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.engines.local._work", processes.work_without_shared_memory)
    framed = run("digits", TEAM, "runtime.max_in_flight=3")
    assert "tensors travel as frames" in (framed / "run.log").read_text(encoding="utf-8")
    assert digests(framed) == digests(run("digits", TEAM, single=True))


def test_the_ring_carries_where_it_can(run: Runner) -> None:
    assert "frames" not in (run("digits", stages=2) / "run.log").read_text(encoding="utf-8")


# --- pipeline-verify ----------------------------------------------------------------------


def run_verify(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    config = tmp_path / "digits.yaml"
    config.write_text(CONFIGS["digits"], encoding="utf-8")
    result = CliRunner().invoke(verify, [str(config), "--gpus", "cpu", *arguments])
    return result.exit_code, result.output


def test_verify_finds_equality(tmp_path: Path) -> None:
    status, says = run_verify(tmp_path, "--stages", "3", "--steps", "3")
    assert (status, says.count("\n")) == (0, 1)
    assert says.startswith("equal: single mode and 3 stages, ")
    assert says.endswith("each of 3 steps\n")


def test_verify_has_every_greedy_learner_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int | None] = []
    learner = Course.learner

    def noted(course: Course, epoch: int) -> int | None:
        seen.append(learner(course, epoch))
        return seen[-1]

    monkeypatch.setattr(Course, "learner", noted)
    greedy = ("--set", "schedule.greedy=true")
    status, _ = run_verify(tmp_path, "--stages", "2", "--steps", "4", *greedy)
    assert status == 0
    assert {0, 1, 2, 3} <= set(seen)


def test_verify_finds_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.engines.local._work", processes.work_that_differs)
    status, says = run_verify(tmp_path, "--stages", "2", "--steps", "4")
    assert status == 1
    assert says == "different: block 1, tensor encoder.bias, first at step 2 (2 stages)\n"


@pytest.mark.parametrize("lr", ["1e30", "0.1"])
def test_verify_leaves_nothing_but_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lr: str
) -> None:
    monkeypatch.setattr("launch.verify.mkdtemp", partial(mkdtemp, dir=tmp_path))
    how = ("--stages", "2", "--steps", "3", "--set", f"optimizer.lr={lr}")
    status, says = run_verify(tmp_path, *how)
    named = Path(says.rpartition("the batch, before augmentation: ")[2].rstrip())
    left = [path for path in sorted(tmp_path.rglob("*")) if path.suffix != ".yaml"]
    assert (status, left) == ((1, [named.parent, named]) if lr == "1e30" else (0, []))


def test_verify_refuses_what_a_run_refuses(tmp_path: Path) -> None:
    status, says = run_verify(tmp_path, "--stages", "9")
    assert status == 2
    assert says.startswith("error: --stages 9: ")


def test_the_first_difference_is_the_earliest() -> None:
    one = {(1, 0, "a"): "x", (2, 0, "b"): "y", (2, 1, "a"): "z", (10, 0, "a"): "w"}
    assert first_difference(one, dict(one)) is None
    assert first_difference(one, {**one, (10, 0, "a"): "-", (2, 1, "a"): "-"}) == (2, 1, "a")
    assert first_difference({**one, (1, 1, "c"): "v"}, one) == (1, 1, "c")
    assert first_difference(one, {**one, (1, 1, "c"): "v"}) == (1, 1, "c")
    assert first_difference({}, {}) is None
