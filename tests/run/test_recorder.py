"""What metrics and checkpoints have to do with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.recording import evaluated, trained, written

from pipeline.errors import RunError
from pipeline.run.events import EpochDone, Note
from pipeline.schedule.feed import Position
from pipeline.storage.checkpoint import RunState

if TYPE_CHECKING:
    from pathlib import Path

    from support.recording import Recording


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
