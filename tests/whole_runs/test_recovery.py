"""A run that loses a stage ends with the weights that it would have had undisturbed.

Exhaustive, in threads without sockets: a worker is lost just before every single time that it
touches the world outside, in each stage in turn. Real processes are in test_faults.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.run_in_threads import (
    Fate,
    Job,
    ThreadWorkers,
    coordinator,
    plant_a_fault,
    train_pipelined,
    train_single,
)

from pipeline.coordinator.restarts import WITHIN_S, Restarts
from pipeline.errors import InterruptedRunError, StageFailedError, StageLostError
from pipeline.protocol.messages import Bye
from pipeline.run.events import Note
from pipeline.schedule.items import Stop
from pipeline.schedule.reports import StageState
from pipeline.worker.kept_snapshots import KeptStates

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pipeline.coordinator.coordinator import Coordinator
    from pipeline.run.events import Event
    from pipeline.schedule.items import Item
    from pipeline.transport.interfaces import Said, Sender
    from pipeline.transport.payloads import Payload

    Folder = Callable[[], Path]

STAGES = 3
COURSE: dict[str, Any] = {"schedule": {"epochs": 1}, "checkpoint_every_steps": 2}
"""An epoch of 3 steps and 2 test batches, snapshots after steps 2 and 3."""

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of hundreds of losses is noticed only when nothing else has been heard for so long."""
    for module in ("pipeline.coordinator.coordinator", "pipeline.transport.in_memory"):
        monkeypatch.setattr(f"{module}._POLL_S", 0.01)


def lost(stage: int, batch_id: int = 0) -> StageLostError:
    return StageLostError(stage, f"stage {stage} is gone", "its traceback", batch_id=batch_id)


# --- whether to go on ---------------------------------------------------------------------


def test_a_run_begins_again_so_often_and_then_ends_with_the_first_cause() -> None:
    restarts = Restarts(2)
    restarts.allow(lost(4), 0.0)
    restarts.allow(lost(1), 1.0)
    with pytest.raises(StageFailedError, match=r"stage 4 is gone; .* 2 more .* stage 2 is gone"):
        restarts.allow(lost(2), 2.0)


def test_only_the_last_hour_counts() -> None:
    restarts = Restarts(1)
    restarts.allow(lost(0), 0.0)
    restarts.allow(lost(0), WITHIN_S)
    with pytest.raises(StageFailedError, match="more faults within an hour"):
        restarts.allow(lost(0), WITHIN_S + 1.0)


def test_without_restarts_the_run_ends_as_it_was_lost() -> None:
    with pytest.raises(StageFailedError) as caught:
        Restarts(0).allow(lost(3), 0.0)
    assert (caught.value.summary, caught.value.remote_traceback) == (
        "stage 3 is gone",
        "its traceback",
    )


def test_a_fault_that_comes_back_is_known() -> None:
    restarts = Restarts(9)
    restarts.allow(lost(1, batch_id=7), 0.0)
    restarts.allow(lost(2), 0.0)
    assert restarts.came_back(lost(1, batch_id=7))
    assert not restarts.came_back(lost(1, batch_id=8))
    assert not restarts.came_back(lost(0, batch_id=7))
    assert not restarts.came_back(lost(2))  # killed: it did not say at which batch


# --- every possible place -----------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = Job(tmp_path_factory.mktemp("undisturbed"), STAGES, **COURSE)
    train_single(job)
    return job


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """How often the worker of each stage touches the world outside, undisturbed."""
    fates = {stage: Fate() for stage in range(STAGES)}
    train_pipelined(Job(tmp_path_factory.mktemp("counted"), STAGES, **COURSE), fates)
    return [fates[stage].acts for stage in range(STAGES)]


PARTS = 4
"""Each test of every point is several: of every fourth point."""


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("stage", range(STAGES))
def test_lost_at_every_point(
    stage: int, part: int, undisturbed: Job, acts: list[int], folder: Folder
) -> None:
    assert acts[stage] > 20
    points, lives = range(1 + part, acts[stage] + 1, PARTS), 0
    for last in points:
        job = trained_as_if_undisturbed(folder(), {stage: Fate(last)}, undisturbed)
        lives += restarts_of(job)
    # how often it is told of snapshots varies, so the last points may not be reached
    assert len(points) - 3 <= lives <= len(points)


def test_neighbours_lost_at_once(undisturbed: Job, acts: list[int], folder: Folder) -> None:
    for last in range(1, min(acts), 5):
        fates = {0: Fate(last), 1: Fate(last + 1), 2: Fate(last + 2)}
        job = trained_as_if_undisturbed(folder(), fates, undisturbed)
        assert 1 <= restarts_of(job) <= 3, last


@pytest.mark.parametrize("last", range(1, 12))
def test_the_successor_is_lost_at_every_point(
    undisturbed: Job, acts: list[int], folder: Folder, last: int
) -> None:
    """While it is greeted, built, connected, and after that."""
    fates = {1: Fate(acts[1] // 2, next=Fate(last))}
    trained_as_if_undisturbed(folder(), fates, undisturbed)


def trained_as_if_undisturbed(
    folder: Path, fates: dict[int, Fate], undisturbed: Job, **runtime: Any
) -> Job:
    job = Job(folder, STAGES, **COURSE, **runtime)
    train_pipelined(job, fates)
    assert job.store.files == undisturbed.store.files, fates
    assert job.lines() == undisturbed.lines(), fates
    return job


@pytest.mark.parametrize("last", [6, 12, 18])
def test_a_stage_that_hangs_while_another_is_lost(
    undisturbed: Job, last: int, folder: Folder
) -> None:
    """It never comes back, so it is replaced, too, after `start_timeout_s`."""
    fates = {1: Fate(last + 1), 2: Fate(last, hangs=True)}
    # more restarts than it takes: on a busy machine others may not come back in time
    patient = {"start_timeout_s": 1.0, "max_restarts": 100}
    job = trained_as_if_undisturbed(folder(), fates, undisturbed, **patient)
    assert any("did not come back in" in note for note in job.notes), job.notes


def test_what_happened_is_told(folder: Folder, acts: list[int]) -> None:
    job = Job(folder(), STAGES, **COURSE)
    train_pipelined(job, {1: Fate(acts[1] // 2)})
    fault, back = job.notes
    assert fault.startswith("stage 1 (block 1, cpu) was killed by SIGKILL: replaced; all go back")
    assert "(restart 1 of 3 within an hour)" in fault
    assert back.startswith("training again after step")


def restarts_of(job: Job) -> int:
    return sum("replaced" in note for note in job.notes)


# --- the end ------------------------------------------------------------------------------


def test_no_stage_leaves_before_all_that_was_sent_has_arrived(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that were gone could not send its last state again."""
    job, workers, heard = Job(folder(), STAGES, **COURSE), ThreadWorkers(STAGES), []
    hear = workers.control._hear

    def noted(attempt: int, said: Said) -> None:
        heard.append(said.message)
        hear(attempt, said)

    monkeypatch.setattr(workers.control, "_hear", noted)
    train_pipelined(job, workers=workers)
    assert [type(message) for message in heard[-STAGES:]] == [Bye] * STAGES
    assert sum(isinstance(message, StageState) for message in heard) == 2 * STAGES


def test_the_newest_state_is_awaited_until_the_coordinator_has_all_of_it() -> None:
    kept = KeptStates()
    assert kept.all_complete
    for step in (2, 4):
        kept.add(step, [b""])
    kept.drop_before(2)
    assert not kept.all_complete
    kept.drop_before(4)
    assert kept.all_complete
    kept.add(6, [b""])
    kept.drop_after(4)  # the run begins again
    assert kept.all_complete
    kept.add(4, [b""])  # a snapshot where it began, as of a run that is interrupted at once
    assert not kept.all_complete
    kept.add(4, [b""])  # and again, now that the epoch was reported
    kept.drop_before(4)
    assert not kept.all_complete
    kept.drop_before(4)
    assert kept.all_complete


def test_to_be_suspended_while_it_starts_is_no_waiting(folder: Folder) -> None:
    """The clock leaps by an hour at its sixth reading."""
    job, readings = Job(folder(), STAGES, **COURSE), itertools.count()
    train_pipelined(job, clock=lambda: 3600.0 * (next(readings) > 5))
    assert restarts_of(job) == 0


# --- items that never arrive --------------------------------------------------------------


@dataclass
class Leak:
    """The coordinator's link, which loses the stop marker, once; and a clock that stands still
    until that has happened, and after it was noticed."""

    job: Job
    interrupts: bool = False
    """Whether somebody interrupts the run then, once there is a checkpoint."""
    sender: Any = None
    lost: bool = False
    noticed: bool = False
    now: float = 0.0

    def connect(self, sender: Sender) -> Leak:
        self.sender = sender
        return self

    def wait_for_room(self) -> None:
        self.sender.wait_for_room()

    def send(self, item: Item, payloads: Sequence[Payload] = ()) -> None:
        if isinstance(item, Stop) and not self.lost:
            self.lost = True
        else:
            self.sender.send(item, payloads)

    def finish(self) -> None:
        if self.noticed:
            self.sender.finish()

    def close(self) -> None:
        self.sender.close()

    def clock(self) -> float:
        if self.lost and self.interrupts and self.job.store.files:
            self.job.interrupted = True
        waits = self.lost and not self.noticed and (self.job.interrupted or not self.interrupts)
        self.now += 0.3 * waits
        return self.now

    def listen(self, event: Event) -> None:
        self.noticed = self.noticed or (isinstance(event, Note) and "replaced" in event.text)


def leaking(leak: Leak, monkeypatch: pytest.MonkeyPatch) -> tuple[ThreadWorkers, Coordinator]:
    job, workers = leak.job, ThreadWorkers(STAGES)
    job.listeners.append(leak.listen)
    connect = workers.connect

    def leaky(*given: Any) -> Any:
        sender, carrier = connect(*given)
        return leak.connect(sender), carrier

    monkeypatch.setattr(workers, "connect", leaky)
    workers.start()
    return workers, coordinator(job, workers, leak.clock, stall_timeout_s=2.0)


def test_a_stop_marker_that_never_arrives_is_noticed(
    undisturbed: Job, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed has ended, and nobody has anything to do."""
    job = Job(folder(), STAGES, **COURSE)
    workers, running = leaking(Leak(job), monkeypatch)
    running.run()
    workers.leave()
    assert restarts_of(job) == 1
    (fault, _) = job.notes
    assert fault.startswith("stage 0 (block 0, cpu) does not take what comes next: all wait since")
    assert job.store.files == undisturbed.store.files
    assert job.lines() == undisturbed.lines()


def test_an_interrupted_run_whose_stop_marker_never_arrives_ends(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(folder(), STAGES, **COURSE)
    workers, running = leaking(Leak(job, interrupts=True), monkeypatch)
    with pytest.raises(InterruptedRunError, match="a checkpoint was written"):
        running.run()
    assert "interrupted" in "".join(job.notes)
    workers.end()


# --- faults with a reason -----------------------------------------------------------------


def test_a_fault_that_comes_back_at_the_same_batch_ends_the_run(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_a_fault(monkeypatch)
    job = Job(folder(), STAGES, **COURSE)
    with pytest.raises(StageFailedError) as caught:
        train_pipelined(job)
    text = caught.value.summary
    assert text.startswith("stage 1 (block 1, cpu), block 1 failed at batch 3: ValueError: planted")
    assert "it failed there before" in text
    assert "planted" in caught.value.remote_traceback
    assert restarts_of(job) == 1
    (kept,) = job.folder.glob("*.npz")
    assert str(kept) in text
    with np.load(kept) as batch:
        images, labels = job.run.batches.train(1, 2)
        assert (batch["images"] == images).all()
        assert (batch["labels"] == labels).all()


def test_an_error_before_the_first_step_ends_the_run_at_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **named: Any) -> Any:
        raise MemoryError("no room for the network")

    monkeypatch.setattr("pipeline.worker.worker.build_stage", fails)
    job = Job(folder(), STAGES, **COURSE)
    with pytest.raises(StageFailedError, match="MemoryError: no room for the network"):
        train_pipelined(job)
    assert restarts_of(job) == 0
