"""The trial run of `--measure`: what it reaches, keeps, leaves behind and says where it fails."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launch import trial_run
from launch.job import Job, KnownSpeed, Options
from launch.launcher import launch
from launch.plan.checks import make_job
from pipeline.errors import ConfigError, StageFailedError
from pipeline.planning.prediction import BlockTimes, Timing
from pipeline.run.events import EpochDone, Note

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.processes import Launcher


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.profiling.blocks.SECONDS", 0.02)
    monkeypatch.setattr(trial_run, "SECONDS", 0.0)


def planned(config: Path, **more: Any) -> Job:
    """Of blocks that take 10 ms each."""
    job = make_job(Options(config, gpus="cpu", **more))
    times = tuple(BlockTimes(n, 0.005, 0.005) for n in range(len(job.specs)))
    timing = Timing(times, job.costs, job.config.data.batch_size, capacity=2.0, feed_s=1.0)
    return replace(job, known_speed=KnownSpeed(timing, "measured: here"))


def test_epochs_count_once_the_pipeline_is_full() -> None:
    watch = trial_run._Stopwatch(warm_up=5)
    watch(Note("which takes no time"))
    for step in (4, 8, 12, 16):
        watch(EpochDone({"step": step, "seconds": 2.5}))
    assert (watch.epochs, watch.seconds) == (2, 5.0)


@pytest.mark.usefixtures("torch_settings")
def test_one_process_trains_on_images_of_the_same_shape_and_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIFAR-10 was not fetched, and a rate this high would not do."""
    overrides = ("data.name=cifar10", "data.download=false", "optimizer.lr=1.0")
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    carry_out, meanwhile = trial_run.carry_out, list[list[Path]]()

    def look(*given: Any) -> None:
        meanwhile.append(list((tmp_path / "temp").iterdir()))
        carry_out(*given)

    monkeypatch.setattr(trial_run, "carry_out", look)
    trial = trial_run.trial_run(planned(tiny, single=True, overrides=overrides), None)
    assert trial.images_per_s > 0
    assert [*meanwhile, list((tmp_path / "temp").iterdir())] == [[], []], "killed, it leaves more"
    assert not (tmp_path / "cache").exists()  # it shows nothing of stages beside each other


@pytest.mark.parametrize(
    ("asked", "steps", "kept"),
    [
        ({"stages": 1}, 13, []),
        ({"stages": 2}, 17, [0.5]),
        ({"data_parallel": 2}, None, []),
        ({"stages": 2, "replicas": ("1:2",)}, None, []),
    ],
)
def test_what_stages_cost_each_other_is_kept(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    steps: int | None,
    kept: list[float],
) -> None:
    """Stages of 40 ms, and of 10 and 30 ms: as many batches in half a second, but it takes one.
    Members of a team and replicas cost each other something else."""
    job, found = planned(tiny, **asked), list[float]()

    def carry_out(run: Any, engine: object) -> None:
        epoch = run.feed.course.steps_per_epoch
        assert steps in (None, epoch)
        for number in range(1, 6):
            run.observer(EpochDone({"step": number * epoch, "seconds": 1.0}))
        assert run.interrupted()
        assert run.keep_batch(1) == "", "its folder goes with the trial"

    monkeypatch.setattr(trial_run, "carry_out", carry_out)
    monkeypatch.setattr(
        trial_run, "keep_crowded_speed", lambda config, specs, speed: found.append(speed)
    )
    trial = trial_run.trial_run(job, object())  # type: ignore[arg-type]
    assert steps is None or trial.images_per_s == pytest.approx(steps * 32)
    assert found == pytest.approx(kept, rel=0.03)


def test_a_speed_that_cant_be_kept_is_said(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry_out(run: Any, engine: object) -> None:
        for number in range(5):
            run.observer(EpochDone({"step": number, "seconds": 1.0}))

    (tmp_path / "cache").write_text("which is no folder")
    monkeypatch.setattr(trial_run, "carry_out", carry_out)
    trial = trial_run.trial_run(planned(tiny, stages=2), object())  # type: ignore[arg-type]
    assert "what is measured can't be kept in" in trial.not_kept
    monkeypatch.setattr(trial_run, "trial_run", lambda job, engine: trial)
    (tmp_path / "cache").unlink()
    assert launch(Options(tiny, gpus="cpu", single=True, dry_run=True, measure=True)) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"run: {trial.images_per_s:,.0f} images/s. --measure: what is measured can't be" in text


@pytest.mark.usefixtures("torch_settings")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StageFailedError("stage 1 was killed by SIGKILL", "…"), "stage 1 was killed by SIGKILL"),
        (ConfigError("no room"), "no room"),
        (MemoryError(), "MemoryError; there is no memory left"),
    ],
)
def test_a_trial_that_fails_costs_a_line(
    tiny: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    said: str,
) -> None:
    def fail(job: Job, engine: object) -> float:
        raise error

    monkeypatch.setattr(trial_run, "trial_run", fail)
    overrides = ("schedule.milestones=[9]",)
    given = Options(tiny, gpus="cpu", single=True, dry_run=True, measure=True, overrides=overrides)
    assert launch(given) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"The trial run failed, so no speed was measured: {said}" in text
    assert text.index("Predicted (measured:") < text.index("The trial run failed")
    assert text.index("The trial run failed") < text.index("don't fit schedule.epochs 3")


def test_of_greedy_training_there_is_none(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.plan.known_speed.measure", lambda *_: "nowhere")
    given = Options(tiny, gpus="cpu", dry_run=True, measure=True)
    assert launch(replace(given, overrides=("schedule.greedy=true",))) == 0
    assert "trial run" not in capsys.readouterr().out


COMMAND = """
from launch import trial_run
from launch.cli import main
from pipeline.profiling import blocks

trial_run.SECONDS, trial_run._EPOCH_S, blocks.SECONDS = {seconds}, 0.05, 0.02
main()
"""


@pytest.mark.processes
@pytest.mark.parametrize("more", [("--dry-run",), ("--run-dir", "run")], ids=["dry", "a run"])
def test_the_planned_pipeline_trains(
    launcher: Callable[..., Launcher], tiny: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    run = launcher(tiny, "--measure", "--stages", "2", *more, program=COMMAND.format(seconds=0.1))
    assert run.exit_status() == 0, run.stderr
    assert "Measured in a trial run: " in run.stdout + run.stderr
    assert (tmp_path / "run/checkpoints").exists() == ("--run-dir" in more)
    (kept,) = (tmp_path / "cache").rglob("*.yaml")
    assert "crowded_speed: 1.0\n" not in kept.read_text(encoding="utf-8")


@pytest.mark.processes
def test_ctrl_c_ends_a_trial(launcher: Callable[..., Launcher], tiny: Path) -> None:
    program = COMMAND.format(seconds=600)
    run = launcher(tiny, "--dry-run", "--measure", "--stages", "2", program=program)
    run.wait_for("stderr", "measuring the planned pipeline")
    run.press_ctrl_c()
    assert run.exit_status() == 130
    assert run.stderr.endswith("interrupted\n")
