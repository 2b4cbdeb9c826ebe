"""What metrics and checkpoints have to do with each other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.recording import COURSE, Recording, evaluated, trained, written

from pipeline.errors import CheckpointError, RunError
from pipeline.run.events import EpochDone, Note
from pipeline.schedule.best import BestSoFar
from pipeline.schedule.feed import Position
from pipeline.storage.checkpoint import RunState

if TYPE_CHECKING:
    from pathlib import Path


def test_lines_that_are_refused_come_with_the_next_checkpoint(
    recording: Recording, tmp_path: Path
) -> None:
    recording.path.mkdir()
    recording.tell_epoch(1)
    recording.tell_epoch(2)
    assert [type(event) for event in recording.events] == [Note, EpochDone, EpochDone]
    assert f"{recording.path}: can't be written: Is a directory" in recording.notes()[0]
    recording.path.rmdir()
    recording.writer.results = [written(8)]
    recording.recorder.tell_written()
    assert [line["epoch"] for line in recording.lines()] == [1, 2]
    assert "is written again" in recording.notes()[1]


def test_lines_that_are_lost_are_an_error(recording: Recording) -> None:
    recording.path.mkdir()
    recording.tell_epoch(1)
    with pytest.raises(RunError, match=r"jsonl: can't be written: Is a directory: 1 lines are lo"):
        recording.recorder.finish()


def test_after_a_rewind_nothing_of_before_is_mixed_in(recording: Recording) -> None:
    recording.snap(4)
    recording.tell(trained(0, 2), evaluated(0, 2), trained(1, 2, images=7))
    recording.say(0, 8)
    recording.recorder.rewind(RunState(Position(4)))
    recording.say(1, 8)
    recording.tell(trained(1, 2), evaluated(1, 2))
    assert (recording.lines(), len(recording.writer.given)) == ([], 1)
    recording.tell(trained(0, 2), evaluated(0, 2))
    recording.say(0, 8)
    assert [line["train"]["loss"] for line in recording.lines()] == [2.0]
    assert [given.position.step for given in recording.writer.given] == [4, 8]


# --- the best -----------------------------------------------------------------------------


def given(recording: Recording) -> list[tuple[int, bool]]:
    """Steps of all snapshots, and whether each is the best so far."""
    return [(state.position.step, state.is_best) for state in recording.writer.given]


def test_the_best_is_the_first_of_the_lowest_tested_error(recording: Recording) -> None:
    for epoch, errors in enumerate((4, 2, 3, 2, 1), start=1):
        recording.tell_epoch(epoch, errors=errors)
        recording.snap(4 * epoch - 1, reported=False)
        recording.snap(4 * epoch)
    assert [step for step, is_best in given(recording) if is_best] == [4, 8, 20]
    assert recording.writer.given[-1].kept == BestSoFar(5, 2.5, 5)


def test_only_ends_of_epochs_with_a_snapshot_can_be_the_best(recording: Recording) -> None:
    for epoch, errors in enumerate((9, 1, 4, 3), start=1):
        recording.tell_epoch(epoch, errors=errors)
        if epoch != 2:
            recording.snap(4 * epoch)
    assert given(recording) == [(4, True), (12, True), (16, True)]
    assert recording.recorder.metrics.best == BestSoFar(2, 2.5, 4)


def test_a_stage_that_is_ahead_does_not_make_it_the_best(recording: Recording) -> None:
    """Its snapshot may come before the test is complete."""
    recording.tell(trained(0, 1), trained(1, 1), evaluated(1, 1))
    recording.say(1, 4)
    recording.tell(evaluated(0, 1))
    recording.say(0, 4)
    assert given(recording) == [(4, True)]


def test_a_resumed_run_knows_the_best_of_before(tmp_path: Path) -> None:
    start = RunState(Position(8), {0: b"block"}, kept=BestSoFar(1, 7.5, 2))
    recording = Recording(tmp_path, start=start)
    recording.snap(8)  # interrupted at once: not tested again
    for epoch, errors in ((3, 3), (4, 2)):
        recording.tell_epoch(epoch, errors=errors)
        recording.snap(4 * epoch)
    assert given(recording) == [(8, False), (12, False), (16, True)]
    recording.recorder.rewind(recording.writer.given[1])
    recording.tell_epoch(4, errors=2)
    recording.snap(16)
    assert given(recording)[-1] == (16, True)


def test_in_greedy_training_each_phase_has_its_best(tmp_path: Path) -> None:
    course = replace(COURSE, epochs=1, learners=(0, 2))
    recording = Recording(tmp_path, course)
    for epoch, errors in ((1, 1), (2, 8)):
        recording.tell_epoch(epoch, errors=errors)
        recording.snap(4 * epoch)
    assert given(recording) == [(4, True), (8, True)]


def test_none_is_the_best_where_none_is_to_be_kept(tmp_path: Path) -> None:
    recording = Recording(tmp_path, keep_best=False)
    recording.tell_epoch(1)
    recording.snap(4)
    assert given(recording) == [(4, False)]


def test_a_best_that_is_refused_is_tried_again(recording: Recording) -> None:
    full = CheckpointError("full")
    recording.tell_epoch(1)
    recording.snap(4)
    recording.writer.results = [(4, full)]
    recording.recorder.tell_written()
    recording.tell_epoch(2, errors=5)
    recording.snap(8)
    assert given(recording) == [(4, True), (4, True), (8, False)]
    recording.writer.results = [(4, full), written(8)]
    recording.writer.when_waited_for = [None, (4, full), written(8)]
    recording.recorder.finish()
    assert given(recording)[3:] == [(4, True), (8, False)]
    said = "the checkpoint of the best test, of step 4, is not on the disk"
    assert recording.notes()[-1] == said
    assert recording.recorder.snapshots.last_checkpoint == 8


def test_the_newest_are_the_best_where_that_is_asked_for(tmp_path: Path) -> None:
    """Whatever tests say; and no test is noted whose weights would be there."""
    start = RunState(Position(4), {0: b"block"}, kept=BestSoFar(1, 1.0, 1))
    recording = Recording(tmp_path, start=start, keep_best="last")
    for epoch, errors in ((2, 3), (3, 9)):
        recording.snap(4 * epoch - 1, reported=False)
        recording.tell_epoch(epoch, errors=errors)
        recording.snap(4 * epoch)
    assert given(recording) == [(7, True), (8, True), (11, True), (12, True)]
    assert recording.writer.given[-1].kept == BestSoFar()
    assert recording.writer.given[-1].best == BestSoFar(2, 7.5, 3)
    recording.recorder.rewind(recording.writer.given[1])
    recording.snap(11, reported=False)
    assert recording.writer.given[-1].kept == BestSoFar()
