"""Whole runs whose disk fails on the way: training goes on, and what can be saved is saved.

In single mode, which shares recorder, writer and store with the pipeline.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.disk import fill, no_space, remount, small_disk
from support.processes import contents, course_and_batches, digests, epochs, final_digests, launch

from launch.job import Options
from launch.plan.checks import make_job
from launch.resume import start_state
from launch.run_directory import hold
from launch.training import carry_out, make_run
from pipeline.errors import ConfigError, RunError
from pipeline.run.events import CheckpointWritten, EpochDone, Note, ignore
from pipeline.storage import checkpoint_writer
from pipeline.storage.background_writer import BackgroundWriter
from pipeline.storage.checkpoint import RunState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from launch.job import Job
    from pipeline.run.events import Event
    from pipeline.storage.folder import Folder

pytestmark = pytest.mark.processes

SMALL = """\
model: {name: mlp, hidden_layers: 1, hidden: 8, dropout: 0.2}
loss: {name: pred}
schedule: {epochs: 4, milestones: [1]}
data: {name: digits, batch_size: 16, train_limit: 40, test_limit: 20}
runtime: {keep_checkpoints: 4}
"""
"""4 epochs of 3 steps, a checkpoint after each."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    config = tmp_path_factory.mktemp("config") / "small.yaml"
    config.write_text(SMALL, encoding="utf-8")
    return make_job(Options(config, single=True, gpus="cpu"))


@pytest.fixture(scope="module")
def undisturbed(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Trained(job, folder, {})
    return folder


class Trained:
    """A run at which something is done to the disk as soon as an epoch has been tested."""

    def __init__(self, job: Job, folder: Path, after: dict[int, Callable[[], object]]) -> None:
        self.events: list[Event] = []
        self._after = after
        course, batches = course_and_batches(job)
        self.error: RunError | None = None
        with hold(folder) as held:
            store = held.prepare(job, RunState(), course.steps_per_epoch)
            self._writer = BackgroundWriter(store, every=True)
            start, observe = RunState(), self._observe
            run = make_run(job, held.folder, start, batches, course, self._writer, observe)
            try:
                carry_out(run, None)
            except RunError as error:
                self.error = error
            store.close()

    def _observe(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, EpochDone) and event.metrics["epoch"] in self._after:
            assert self._writer.settle(60.0)  # the checkpoint before this one is not concerned
            self._after[event.metrics["epoch"]]()

    @property
    def written(self) -> list[int]:
        return [event.step for event in self.events if isinstance(event, CheckpointWritten)]

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]


def assert_as_undisturbed(folder: Path, undisturbed: Path) -> None:
    whole = digests(undisturbed)
    assert all(whole[step] == found for step, found in digests(folder).items())
    assert final_digests(folder) == whole[12]
    assert epochs(folder) == epochs(undisturbed)
    assert not list((folder / "checkpoints").glob(".*"))


def best_of_three(folder: Path) -> int:
    """The step of the best of the first three epochs, whose checkpoint is tried again after it was
    refused."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()[:3])
    errors = [row["test"]["error_pct"] for row in rows]
    return 3 * (1 + errors.index(min(errors)))


def test_a_disk_that_is_full_for_a_while(job: Job, tmp_path: Path, undisturbed: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        ballast = disk / "ballast"
        trained = Trained(job, disk / "run", {2: lambda: fill(disk), 3: ballast.unlink})
        assert trained.error is None
        assert trained.written == sorted({3, best_of_three(disk / "run"), 9, 12})
        refused, healed = trained.notes
        assert refused.startswith(f"{disk}/run/checkpoints: can't be written: No space left")
        assert healed == "checkpoints are written again"
        assert_as_undisturbed(disk / "run", undisturbed)


def test_a_disk_that_is_read_only_for_a_while(job: Job, tmp_path: Path, undisturbed: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        trained = Trained(
            job, disk / "run", {1: lambda: remount(disk, "ro"), 3: lambda: remount(disk, "rw")}
        )
        assert trained.error is None
        assert trained.written == sorted({best_of_three(disk / "run"), 9, 12})
        assert sum("Read-only file system" in note for note in trained.notes) == 2
        assert sum("metrics.jsonl: is written again" in note for note in trained.notes) == 1
        assert_as_undisturbed(disk / "run", undisturbed)


def test_a_batch_is_kept_where_the_run_directory_went(job: Job, tmp_path: Path) -> None:
    course, batches = course_and_batches(job)
    with hold(tmp_path / "run") as held:
        writer = BackgroundWriter(held.prepare(job, RunState(), course.steps_per_epoch))
        run = make_run(job, held.folder, RunState(), batches, course, writer, ignore)
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        kept = tmp_path / "moved" / "batch-00000002.npz"
        assert run.keep_batch(2) == f"; the batch, before augmentation: {kept}"
        assert np.load(kept)["images"].shape == (16, 1, 8, 8)
        shutil.rmtree(tmp_path / "moved")
        assert "can't be kept for inspection" in run.keep_batch(3)
    assert not list((tmp_path / "run").iterdir())


# --- the command --------------------------------------------------------------------------


def test_a_last_checkpoint_that_is_lost_ends_the_command_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    appear = checkpoint_writer._make_appear

    def full(folder: Folder, temporary: str, final: str) -> None:
        if final == "step-00000012":
            raise no_space()
        appear(folder, temporary, final)

    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "_make_appear", full)
        assert launch(tmp_path / "small.yaml", run, single=True) == 1
    says = capsys.readouterr().err
    assert says.count("\n") == 1
    assert says.startswith(f"error: {run}/checkpoints: can't be written: No space left on device")
    assert says.endswith("of step 12, is lost; the newest complete checkpoint is of step 9\n")
    log = (run / "run.log").read_text(encoding="utf-8")
    assert "training goes on" in log
    assert "failed: " in log
    assert launch(tmp_path / "small.yaml", run, resume=True, single=True) == 0
    assert max(digests(run)) == 12


# --- the next start -----------------------------------------------------------------------


def test_what_a_killed_run_left_is_cleared_away(job: Job, tmp_path: Path) -> None:
    run = tmp_path / "run"
    Trained(job, run, {})
    before = sorted(path for path in run.rglob("*"))
    os.link(run / "config.yaml", tmp_path / "config")
    (run / ".writing-metrics.jsonl").write_text("half")
    (run / "checkpoints" / ".writing-step-00000015").mkdir()
    (run / "checkpoints" / ".writing-step-00000015" / "block-00.safetensors").write_text("half")
    with hold(run) as held:
        start, _ = start_state(held.folder, job)
        held.prepare(job, start, 3)
    assert sorted(path for path in run.rglob("*")) == before
    assert (run / "config.yaml").read_bytes() == (tmp_path / "config").read_bytes()
    assert not (run / "config.yaml").samefile(tmp_path / "config")  # replaced, never emptied


def test_a_disk_without_room_refuses_a_resumed_run_and_changes_nothing(
    job: Job, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        run = disk / "run"
        Trained(job, run, {})
        before = contents(run)
        with hold(run) as held:
            start, _ = start_state(held.folder, job)
            fill(disk)
            for write in (held.check_writable, lambda: held.prepare(job, start, 3)):
                with pytest.raises(ConfigError, match=r"can't be written: .*No space left"):
                    write()
        assert contents(run) == before
