"""One checkpoint per snapshot, in whatever order the stages speak and whatever the disk says."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.recording import Recording, written

from pipeline.errors import CheckpointError, TimedOutError
from pipeline.run.events import CheckpointWritten, Waiting
from pipeline.schedule.feed import Position
from pipeline.storage.checkpoint import RunState


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_snapshot_is_kept_when_every_stage_has_spoken(
    recording: Recording, order: tuple[int, int]
) -> None:
    recording.say(order[0], 4)
    assert recording.writer.given == []
    assert recording.recorder.snapshots.newest is None
    recording.say(order[1], 4)
    (given,) = recording.writer.given
    assert recording.recorder.snapshots.newest is given
    assert given.position == Position(4, epoch_reported=True)
    assert given.files == {0: b"block 0", 1: b"block 1", 2: b"block 2"}
    assert [tally.block for tally in given.tallies] == [0, 1, 2]


def test_snapshots_of_different_steps_do_not_mix(recording: Recording) -> None:
    recording.say(0, 4)
    recording.say(0, 8)
    assert recording.writer.given == []
    recording.say(1, 4)
    recording.say(1, 8)
    assert [given.position.step for given in recording.writer.given] == [4, 8]


def test_same_step_may_be_written_twice(recording: Recording) -> None:
    recording.snap(4, 4)
    assert len(recording.writer.given) == 2


def test_two_snapshots_of_one_step_do_not_mix(recording: Recording) -> None:
    """Within an epoch and at its end, where the first stage is ahead of the second."""
    recording.say(0, 4, reported=False)
    recording.say(0, 4, reported=True)
    recording.say(1, 4, reported=False)
    assert [given.position.epoch_reported for given in recording.writer.given] == [False]
    recording.say(1, 4, reported=True)
    assert [given.position.epoch_reported for given in recording.writer.given] == [False, True]
    recording.say(0, 8)
    recording.recorder.rewind(RunState())  # and what is not complete is forgotten
    recording.snap(12)
    assert recording.writer.given[-1].position.step == 12


def test_what_was_written_is_told_when_asked(recording: Recording) -> None:
    recording.snap(4)
    assert (recording.recorder.snapshots.last_checkpoint, recording.events) == (None, [])
    recording.writer.results = [written(4)]
    recording.recorder.tell_written()
    assert recording.recorder.snapshots.last_checkpoint == 4
    assert recording.events == [CheckpointWritten(Path("step-4"), 4)]


def test_a_slow_disk_is_told_once(recording: Recording) -> None:
    for step in (4, 8):
        recording.writer.results = [(step, None)]
        recording.recorder.tell_written()
    assert recording.notes() == [
        "the disk is slower than snapshots come: that of step 4 was left out for a newer one, "
        "and others may be"
    ]


# --- a disk that refuses ------------------------------------------------------------------

FULL = CheckpointError("run/checkpoints: can't be written: No space left on device")


def test_a_refused_checkpoint_is_told_once_and_training_goes_on(recording: Recording) -> None:
    recording.snap(4)
    recording.writer.results = [written(4)]
    for step in (8, 12):
        recording.snap(step)
        recording.writer.results.append((step, FULL))
    recording.recorder.tell_written()
    assert recording.recorder.snapshots.last_checkpoint == 4
    assert recording.recorder.snapshots.newest is recording.writer.given[-1]
    assert recording.notes() == [f"{FULL}; training goes on, and the next snapshot tries again"]
    recording.writer.results = [written(16)]
    recording.recorder.tell_written()
    assert recording.recorder.snapshots.last_checkpoint == 16
    assert recording.notes()[1:] == ["checkpoints are written again"]


def test_what_is_not_the_disk_s_fault_ends_the_run(recording: Recording) -> None:
    recording.writer.results = [(4, ValueError("a bug"))]
    with pytest.raises(ValueError, match="a bug"):
        recording.recorder.tell_written()


# --- the end of a run ---------------------------------------------------------------------


def test_the_end_waits_for_the_newest(recording: Recording) -> None:
    recording.snap(12)
    recording.writer.when_waited_for = [None, None, written(12)]
    recording.recorder.finish()
    assert recording.recorder.snapshots.last_checkpoint == 12
    assert [type(event) for event in recording.events] == [Waiting, Waiting, CheckpointWritten]
    recording.recorder.finish()  # once is enough


def test_a_last_checkpoint_that_is_refused_is_tried_once_more(recording: Recording) -> None:
    recording.snap(12)
    recording.writer.when_waited_for = [(12, FULL), written(12)]
    recording.recorder.finish()
    assert [given.position.step for given in recording.writer.given] == [12, 12]
    assert recording.recorder.snapshots.last_checkpoint == 12


@pytest.mark.parametrize(
    ("files", "on_disk"),
    [
        ({0: b"block"}, "the newest complete checkpoint is of step 3"),
        ({}, "there is no complete checkpoint"),
    ],
)
def test_a_last_checkpoint_that_is_lost_is_an_error(
    tmp_path: Path, files: dict[int, bytes], on_disk: str
) -> None:
    start = RunState(Position(3 if files else 0, epoch_reported=False), files)
    recording = Recording(tmp_path, start=start)
    recording.snap(12)
    recording.writer.when_waited_for = [(12, FULL), (12, FULL)]
    with pytest.raises(CheckpointError) as caught:
        recording.recorder.finish()
    assert str(caught.value) == f"{FULL}: the last checkpoint, of step 12, is lost; {on_disk}"


def test_the_end_does_not_wait_for_ever(recording: Recording) -> None:
    recording.snap(12)
    recording.writer.when_waited_for = [None] * 10_000
    with pytest.raises(TimedOutError, match="waited 600 s for the disk; there is no complete"):
        recording.recorder.finish()
    waits = len(recording.writer.when_waited_for)
    recording.recorder.settle()  # what ends the run then does not wait again
    assert len(recording.writer.when_waited_for) == waits


def test_a_resumed_run_knows_what_is_on_the_disk(tmp_path: Path) -> None:
    start = RunState(Position(7, epoch_reported=False), {0: b"block"})
    assert Recording(tmp_path, start=start).recorder.snapshots.last_checkpoint == 7
    assert Recording(tmp_path).recorder.snapshots.last_checkpoint is None
