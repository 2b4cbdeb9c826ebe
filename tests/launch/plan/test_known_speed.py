"""What is known of speed before training: measured and kept, or assumed; and what is printed."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from rich.console import Console
from support import REPOSITORY
from support.processes import launch

from launch.job import Job, KnownSpeed, Options
from launch.plan import cost_cache
from launch.plan.checks import make_job
from launch.plan.cost_cache import cost_file
from launch.plan.known_speed import cautions
from launch.plan.predicted_speed import print_prediction
from pipeline.errors import ConfigError
from pipeline.planning.plan import make_plan
from pipeline.planning.prediction import BlockTimes, Links, Timing

if TYPE_CHECKING:
    from pathlib import Path

VGG19 = """\
model: {name: vgg19}
loss: {name: predsim}
data: {name: cifar10, download: false}
"""
DEVICE = (
    "{macs_per_s: {fp32: 1.5e14}, memory_bytes: %s, link_bytes_per_s: %s, link_latency_s: %s}\n"
)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def imagined(
    folder: Path,
    memory: str = "80e9",
    link: str = "1e15",
    latency: str = "1e-5",
    gpus: str = "0-7",
    **more: Any,
) -> Job:
    (folder / "vgg19.yaml").write_text(VGG19, encoding="utf-8")
    (folder / "device.yaml").write_text(DEVICE % (memory, link, latency), encoding="utf-8")
    config, device = folder / "vgg19.yaml", folder / "device.yaml"
    return make_job(Options(config, gpus=gpus, dry_run=True, assume=device, **more))


def printed(job: Job) -> str:
    assert job.known_speed
    stream = io.StringIO()
    print_prediction(job, job.known_speed, Console(file=stream, width=200))
    return stream.getvalue()


def test_speed_grows_until_one_layer_is_all_that_its_device_does(tmp_path: Path) -> None:
    """17 hidden layers; the slowest five have 189 of 2,274 million multiply-adds each: 8.3 %."""
    text = printed(imagined(tmp_path))
    rows = [line.split() for line in text.splitlines() if line.strip()[:2].strip().isdigit()]
    speedups = {int(row[0]): float(row[3].rstrip("×")) for row in rows}
    assert list(speedups) == [1, 2, 4, 8, 16, 32, 64]
    assert speedups[2] == pytest.approx(2, abs=0.02)
    assert speedups[64] == speedups[32]
    assert speedups[64] == pytest.approx(2274 / 189, rel=0.01)
    assert "With 17 stages, divided and placed anew for each number of devices:" in text
    assert "More than 13 devices bring nothing: stage 1 (conv 64→64) alone is 8 % of" in text


def test_no_fewer_devices_bring_as_much(tmp_path: Path) -> None:
    """Count by count; the table only has powers of two."""
    job = imagined(tmp_path)
    assert job.known_speed
    timing, speeds = job.known_speed.timing, {}
    for count in (12, 13, 16):
        names = [f"device {n}" for n in range(count)]
        plan = make_plan(job.specs, job.costs, stages=17, devices=names, loads=timing.loads)
        speeds[count] = timing.prospect(plan, 2).images_per_s
    assert 1.01 * speeds[12] < speeds[16] <= 1.01 * speeds[13]


def test_growth_is_that_of_the_stages_asked_for(tmp_path: Path) -> None:
    text = printed(imagined(tmp_path, stages=2))
    assert "With 2 stages, divided and placed anew" in text
    assert "More than 2 devices bring nothing: stage 0 (" in text
    assert "% of the work, which more --stages would divide." in " ".join(text.split())


def test_single_mode_is_one_process_on_one_device(tmp_path: Path) -> None:
    many, one = imagined(tmp_path), imagined(tmp_path, single=True)
    assert {stage.device for stage in one.plan.stages} == {"cuda:0"}
    assert many.known_speed
    seconds = sum(block.total_s for block in many.known_speed.timing.times)
    assert (
        f"Predicted (assumed: {tmp_path / 'device.yaml'}, fp32): {128 / seconds:,.0f} "
        in printed(one)
    )
    assert "equal devices" not in printed(one)


def test_global_backprop_is_predicted_too_and_greedy_training_says_why_not(tmp_path: Path) -> None:
    text = printed(imagined(tmp_path, single=True, overrides=("loss.name=glob",)))
    assert re.search(r"Predicted \(assumed: .*\): [\d,]+ images/s", text)
    text = printed(imagined(tmp_path, overrides=("schedule.greedy=true",)))
    assert "No speed is predicted: in greedy training one block learns at a time" in text


def test_many_stages_are_predicted_at_once(tmp_path: Path) -> None:
    deep = ("model.name=mlp", "model.hidden_layers=100", "model.hidden=64")
    text = printed(imagined(tmp_path, overrides=deep, gpus="0-3"))
    assert re.search(r"device.yaml, fp32\): [\d,]+ images/s\.", text)
    assert "With 100 stages, divided and placed anew" in text


def test_a_feed_that_is_the_bound_is_named(tmp_path: Path) -> None:
    job = imagined(tmp_path)
    assert job.known_speed
    slow = replace(job.known_speed, timing=replace(job.known_speed.timing, feed_s=0.1))
    text = printed(replace(job, known_speed=slow))
    assert "More than 1 device brings nothing: the coordinator prepares a batch every 1e+02" in text


@pytest.mark.parametrize(
    ("link", "latency", "cure"),
    [("5e10", "1e-5", "with more bytes per second"), ("1e15", "1e-2", "that answer sooner")],
)
def test_slow_links_are_named_as_the_reason(
    tmp_path: Path, link: str, latency: str, cure: str
) -> None:
    overrides = ("runtime.max_in_flight=1",)
    job = imagined(tmp_path, link=link, latency=latency, overrides=overrides)
    text = " ".join(printed(job).split())
    assert re.search(r"batches wait for links: from stage \d+ to the next one takes", text)
    assert f"a larger runtime.max_in_flight would help, or links {cure}." in text


def test_a_link_that_is_the_bound_is_named_and_credits_do_not_help(tmp_path: Path) -> None:
    """Stage 4, a convolution 128→256, passes on 256 maps of 8×8: 8.4 MB a batch."""
    for in_flight in (2, 32):
        overrides = (f"runtime.max_in_flight={in_flight}",)
        text = " ".join(printed(imagined(tmp_path, link="5e8", overrides=overrides)).split())
        assert "stage 4 sends keeps the link to the next one busy for 17 ms with each batch" in text
        assert "max_in_flight would help" not in text
        assert " 2 2 7,629 " in text  # 128 images every 16.8 ms


def test_a_device_that_is_too_small_is_named(tmp_path: Path) -> None:
    text = printed(imagined(tmp_path, memory="1e8", gpus="0-3"))
    assert re.search(r"cuda:0 needs \d+ MiB and has 95\.4 MiB: use more devices", text)
    assert re.search(r" 1 +1 +[\d,]+ +1\.00× +100 % +too much: 1\.28 GiB", text)
    assert "too much" not in printed(imagined(tmp_path, memory="1e12"))


@pytest.mark.usefixtures("tiny")
def test_in_single_mode_a_cpu_prepares_each_batch_and_nobody_else_is_at_work(
    tmp_path: Path,
) -> None:
    job = make_job(Options(tmp_path / "tiny.yaml", gpus="cpu", single=True))
    times = tuple(BlockTimes(n, 1, 1) for n in range(4))
    crowded = Timing(times, job.costs, 32, capacity=2.0, feed_s=2.0, crowded_speed=0.5)
    known_speed = KnownSpeed(crowded, "measured: here")
    assert "Predicted (measured: here): 3 images/s" in printed(
        replace(job, known_speed=known_speed)
    )


def test_a_device_is_imagined_on_a_machine_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.machine.gpus.visible_gpus", lambda *_: 0)
    imagined(tmp_path)
    config, device = tmp_path / "vgg19.yaml", tmp_path / "device.yaml"
    job = make_job(Options(config, dry_run=True, assume=device))
    assert {stage.device for stage in job.plan.stages} == {"cuda:0"}
    assert "equal devices" in printed(job)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("single", "threads", "said"),
    [
        (False, 1, ""),
        (False, 2, "2 stages of 2 threads on 3 cores hold each other up"),
        (True, 3, ""),
        (True, 4, "1 stage of 4 threads on 3 cores hold each other up"),
    ],
)
def test_more_threads_than_cores_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, single: bool, threads: int, said: str
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2})
    overrides = (f"runtime.threads_per_stage={threads}",)
    options = Options(tmp_path / "tiny.yaml", gpus="cpu", single=single, overrides=overrides)
    told = cautions(make_job(replace(options, stages=None if single else 2)))
    assert said in "".join(told)
    assert bool(told) is bool(said)


FIXED = ("loss.classifier=fixed",)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        ((), False),
        (FIXED, False),
        ((*FIXED, "loss.feedback=sign"), False),
        ((*FIXED, "loss.feedback=random"), True),
        ((*FIXED, "loss.feedback=random", "loss.name=predsim"), True),
        (("loss.bio=true",), False),
    ],
    ids=str,
)
@pytest.mark.parametrize("single", [False, True])
def test_feedback_that_cannot_align_is_warned_of(
    tmp_path: Path, overrides: tuple[str, ...], warned: bool, single: bool
) -> None:
    overrides = ("loss.name=pred", *overrides)
    job = make_job(Options(tmp_path / "tiny.yaml", gpus="cpu", single=single, overrides=overrides))
    told = "".join(cautions(job))
    assert ("loss.feedback random: a classifier that is never trained" in told) is warned
    assert ("16.5 % errors" in told) is warned


@pytest.mark.parametrize(
    ("precision", "has", "said"),
    [
        ("bf16", "fp32: 1e14", "macs_per_s.bf16: is missing, and runtime.precision is bf16: add"),
        ("fp32", "bf16: 1e14", "reaches in fp32, or --set runtime.precision=bf16"),
        ("fp32", "", "macs_per_s.fp32: is missing"),
    ],
)
def test_the_speed_of_another_precision_is_not_taken(
    tmp_path: Path, precision: str, has: str, said: str
) -> None:
    imagined(tmp_path)
    device = tmp_path / "device.yaml"
    device.write_text(device.read_text().replace("fp32: 1.5e14", has), encoding="utf-8")
    config, overrides = tmp_path / "vgg19.yaml", (f"runtime.precision={precision}",)
    given = Options(config, dry_run=True, assume=device, overrides=overrides)
    with pytest.raises(ConfigError) as caught:
        make_job(given)
    assert str(caught.value).startswith(f"{device}: macs_per_s.{precision}: ")
    assert said in str(caught.value)


def test_the_h200_predicts_what_was_measured_on_it(tmp_path: Path) -> None:
    """22,896 images/s: VGG8B, CIFAR's shape, predsim in bf16 (throughput_cuda)."""
    cifar = ("data.name=cifar10", "loss.name=predsim", "runtime.precision=bf16")
    config, device = REPOSITORY / "configs/vgg8b.yaml", REPOSITORY / "configs/devices/h200.yaml"
    job = make_job(Options(config, single=True, dry_run=True, assume=device, overrides=cifar))
    assert job.known_speed
    found = job.known_speed.timing.prospect(job.plan.in_one_process(), 2)
    assert found.images_per_s == pytest.approx(22_900, rel=0.02)


def test_assumptions_are_for_dry_runs(tmp_path: Path) -> None:
    imagined(tmp_path)
    given = Options(tmp_path / "vgg19.yaml", gpus="cpu", assume=tmp_path / "device.yaml")
    with pytest.raises(ConfigError, match="--assume imagines a device: it goes with --dry-run"):
        make_job(given)


@pytest.mark.usefixtures("tiny", "torch_settings")
def test_what_was_measured_is_kept_and_used_and_may_be_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.profiling.blocks.SECONDS", 0.02)
    config = tmp_path / "tiny.yaml"
    assert make_job(Options(config, gpus="cpu", stages=2)).known_speed is None
    measured = make_job(Options(config, gpus="cpu", stages=2, measure=True))
    assert measured.known_speed
    path = cost_file(measured.config, measured.specs, "cpu")
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = ["linear 64→16", "linear 16→16", "linear 16→16", "output 16→10"]
    assert [block["name"] for block in tree["blocks"]] == names
    assert measured.known_speed.timing.links == Links(tree["copied_per_s"])
    assert all(block["learn_s"] > 0 for block in tree["blocks"] if block["block"] != 2)
    tree["blocks"][0]["learn_s"] = 1000.0
    tree |= {"crowded_speed": 0.5, "crowd": 2, "hop_s": 0.001}  # two of which are no longer used
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    edited = make_job(Options(config, gpus="cpu", stages=2))
    assert [stage.blocks for stage in edited.plan.stages] == [(0,), (1, 2, 3)]
    assert edited.known_speed
    assert edited.known_speed.timing.loads[0] > 1e12
    assert edited.known_speed.timing.crowded_speed == 0.5


@pytest.mark.usefixtures("tiny")
def test_what_another_user_has_kept_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their folder is named, as by the HOME of whoever has started a container."""
    config = tmp_path / "tiny.yaml"
    job = make_job(Options(config, gpus="cpu", stages=2))
    path = cost_file(job.config, job.specs, "cpu")
    path.parent.mkdir(parents=True)
    path.write_text("what: is not read")
    access = os.access
    monkeypatch.setattr(os, "access", lambda at, mode: at != path and access(at, mode))
    assert make_job(Options(config, gpus="cpu", stages=2)).known_speed is None


@pytest.mark.usefixtures("tiny")
def test_costs_are_kept_apart_by_what_they_depend_on(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    jobs = [
        make_job(Options(config, gpus="cpu", overrides=overrides))
        for overrides in (
            (),
            ("runtime.seed=7",),
            ("data.batch_size=8",),
            ("runtime.threads_per_stage=2",),
            ("model.hidden=17",),
            ("runtime.cuda_graphs=false",),
            ("runtime.on_nonfinite=skip_batch",),  # which records no steps
            ("data.crop_padding=2",),
            ("data.name=synthetic",),
            ("data.name=synthetic", "data.classes=20"),
        )
    ]
    paths = [cost_file(job.config, job.specs, "cpu") for job in jobs]
    assert paths[0] == paths[1]
    assert len(set(paths)) == 9
    assert cost_file(jobs[0].config, jobs[0].specs, "cuda:0") != paths[0]


@pytest.mark.usefixtures("tiny")
def test_what_can_not_be_kept_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"can't be kept in .*: Not a directory; let XDG_CACHE"):
        make_job(Options(tmp_path / "tiny.yaml", gpus="cpu", measure=True))


@pytest.mark.usefixtures("tiny")
def test_only_what_is_there_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.machine.gpus.visible_gpus", lambda *_: 0)
    given = Options(tmp_path / "tiny.yaml", gpus="0-7", dry_run=True, measure=True)
    with pytest.raises(ConfigError, match="this machine has no CUDA device 0"):
        make_job(given)
    names = {"cuda:0": "an H100", "cuda:1": "an H200"}
    monkeypatch.setattr("launch.plan.cost_cache.device_kind", names.__getitem__)
    monkeypatch.setattr("launch.plan.division.devices", lambda spec: tuple(names))
    with pytest.raises(ConfigError, match="cuda:0 is an H100, cuda:1 is an H200; name devices of"):
        make_job(given)


@pytest.mark.parametrize(("threads", "capacity"), [(1, 2.0), (2, 1.0), (4, 1.0)])
@pytest.mark.usefixtures("tiny")
def test_a_stage_alone_is_never_slower_than_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, capacity: float
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    config = make_job(Options(tmp_path / "tiny.yaml", gpus="cpu")).config
    runtime = config.runtime.model_copy(update={"threads_per_stage": threads})
    assert cost_cache._capacity(config.model_copy(update={"runtime": runtime}), "cpu") == capacity


@pytest.mark.usefixtures("tiny", "torch_settings")
def test_devices_copy_beside_what_they_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CPU was measured to do, read as a CUDA device's."""
    monkeypatch.setattr("pipeline.profiling.blocks.SECONDS", 0.02)
    job = make_job(Options(tmp_path / "tiny.yaml", gpus="cpu", measure=True))
    path = cost_cache.cost_file(job.config, job.specs, "cpu")
    assert path
    cost_cache.keep_crowded_speed(job.config, job.specs, 0.5)
    monkeypatch.setattr(cost_cache, "cost_file", lambda *_: path)
    for device, kept in (("cpu", 0.5), ("cuda:0", 1.0)):
        known = cost_cache.known_timing(job.config, job.specs, job.costs, [device])
        assert known
        links = known[0].links
        assert (links.copied_per_s < inf, links.sent_per_s < inf) == (kept < 1, kept == 1)
        assert known[0].crowded_speed == kept


@pytest.mark.usefixtures("tiny")
def test_stages_are_timed_by_hand(tmp_path: Path) -> None:
    """Blocks of 1 + 2 s, 3 + 4 s, 5 + 6 s, 0 + 7 s; 16 numbers for each of 32 images are sent,
    2,048 bytes."""
    job = make_job(Options(tmp_path / "tiny.yaml", gpus="cpu", stages=2))
    times = tuple(BlockTimes(n, *pair) for n, pair in enumerate([(1, 2), (3, 4), (5, 6), (0, 7)]))
    timing = Timing(times, job.costs, 32, Links(copied_per_s=1024.0), capacity=2.0)
    first, last = timing.works(job.plan)
    assert [stage.blocks for stage in job.plan.stages] == [(0,), (1, 2, 3)]
    assert (first.forward_s, first.send_s, first.learn_s, first.travel_s) == (1, 2.0, 2, 0.0)
    assert (last.forward_s, last.send_s, last.learn_s) == (3 + 4 + 5 + 6 + 0, 0.0, 7)
    alone = replace(timing, feed_s=1.0).in_one_process()
    (work,) = alone.works(job.plan.in_one_process())
    assert (alone.feed_s, work.total_s) == (0.0, 1 + 28)
    for crowded_speed in (1.0, 0.5):  # which slows all down, and leaves shares as they are
        found = replace(timing, crowded_speed=crowded_speed).prospect(job.plan, max_in_flight=2)
        assert found.images_per_s == pytest.approx(32 / 25 * crowded_speed)
        assert found.device_busy == {"cpu": pytest.approx((5 + 25) / 25 / 2)}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("epochs", "milestones", "said"),
    [
        (60, "[6, 9, 11]", "60: after epoch 11 the rate stays the same for 49; at the same shares"),
        (
            10,
            "[50, 75, 89, 94]",
            "10: the run is over before the learning rate drops after epoch 50, 75, 89, 94; at",
        ),
        (
            10,
            "[3, 20]",
            "drops after epoch 20, and after epoch 3 the rate stays the same for 7; at",
        ),
        (12, "[12]", "the run is over before the learning rate drops after epoch 12; at"),
        (1000, "[10]", "as in the paper: --set 'schedule.milestones=[500]'"),
        (60, "[6, 9, 11]", "as in the paper: --set 'schedule.milestones=[30, 45, 53]'"),
        (1, "[2]", "as in the paper: --set 'schedule.milestones=[]'"),
        (12, "[6, 9, 11]", ""),
        (12, "[11]", ""),
        (12, "[6]", ""),
        (12, "[]", ""),
        (60, "[0.1, 0.2]", ""),
        (10, "[0.5, 0.95]", "10: the run is over before the learning rate drops at 0.95; at the"),
    ],
)
def test_milestones_left_behind_are_told(
    tmp_path: Path, epochs: int, milestones: str, said: str
) -> None:
    overrides = (f"schedule.epochs={epochs}", f"schedule.milestones={milestones}")
    told = cautions(make_job(Options(tmp_path / "tiny.yaml", gpus="cpu", overrides=overrides)))
    assert said in "".join(told)
    assert len(told) == bool(said)
    assert all(f"don't fit schedule.epochs {epochs}: " in one for one in told)


@pytest.mark.parametrize(
    ("milestones", "epochs", "said"),
    [
        ("[6, 9, 11]", 14, "14: they stand in the config beside schedule.epochs 12; at the same"),
        ("[6, 9, 11]", 14, "shares of the run as there: --set 'schedule.milestones=[7, 10, 13]'"),
        ("[6]", 8, "8: they stand in the config beside schedule.epochs 12; at the same"),
        ("[6, 9]", 8, "12, and the run is over before the learning rate drops after epoch 9; at"),
        ("[6, 9, 11]", 12, ""),
        ("[]", 24, ""),
        ("[0.5, 0.75]", 24, ""),
    ],
)
def test_epochs_asked_for_on_the_command_line_without_milestones_are_told(
    tiny: Path, milestones: str, epochs: int, said: str
) -> None:
    own = f"schedule: {{epochs: 12, milestones: {milestones}}}\n"
    config = "".join(
        own if line.startswith("schedule:") else line
        for line in tiny.read_text(encoding="utf-8").splitlines(keepends=True)
    )
    tiny.write_text(config, encoding="utf-8")
    overrides = (f"schedule.epochs={epochs}",)
    told = cautions(make_job(Options(tiny, gpus="cpu", overrides=overrides)))
    assert said in "".join(told)
    assert len(told) == bool(said)
    thought_of = (*overrides, f"schedule.milestones={milestones}")
    job = make_job(Options(tiny, gpus="cpu", overrides=thought_of))
    assert "stand in the config" not in "".join(cautions(job))


def test_the_configs_that_come_with_it_have_fitting_milestones() -> None:
    paths = [*REPOSITORY.glob("configs/*.yaml"), *REPOSITORY.glob("configs/paper/*/*.yaml")]
    assert len(paths) > 50
    for path in paths:
        job = make_job(Options(path, single=True, dry_run=True))
        assert not any("milestones" in one for one in cautions(job)), path


@pytest.mark.parametrize(
    ("model", "drawn"),
    [
        (("model.freeze=[0,1]",), "blocks 0, 1 keep"),
        (
            ("model.freeze=[1]", "model.init_from.run={run}", "model.init_from.blocks=[0]"),
            "block 1 ",
        ),
        (("model.freeze=[0]", "model.init_from={run}"), ""),
        (("model.init_from={run}",), ""),
        ((), ""),
    ],
)
def test_frozen_blocks_that_have_learned_nothing_are_told(
    tiny: Path, tmp_path: Path, model: tuple[str, ...], drawn: str
) -> None:
    run = tmp_path / "run"
    if any("{run}" in each for each in model):
        assert launch(tiny, run, single=True, overrides=("schedule.epochs=1",)) == 0
    overrides = ("schedule.milestones=[]", *(each.format(run=run) for each in model))
    told = cautions(make_job(Options(tiny, gpus="cpu", dry_run=True, overrides=overrides)))
    found = [each for each in told if each.startswith("model.freeze: ")]
    assert [each.startswith(f"model.freeze: {drawn}") for each in found] == [True] * bool(drawn)
    begins = any(each.startswith("model.init_from: block") for each in told)
    assert begins is any("{run}" in each for each in model)
