"""When a trace is written, and disks that refuse it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.traces import read_trace

from pipeline.planning.plan import Plan, StagePlan
from pipeline.run.events import Event, Note
from pipeline.run.timeline_file import TimelineFile
from pipeline.schedule.items import TrainBatch
from pipeline.storage.folder import Folder
from pipeline.timeline.spans import SpanRecorder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.schedule.reports import Timeline

PLAN = Plan((StagePlan(0, (0,), "cpu"), StagePlan(1, (1, 2), "cpu")))


class Recorded:
    """A file of timelines, and what the person who watches was told."""

    def __init__(self, path: Path) -> None:
        self.folder, self.events = Folder.open(path), list[Event]()
        self.file = TimelineFile(self.folder, PLAN, 4, 2, self.events.append)
        self.file.feed.take_up(TrainBatch(5, 1, 0.1), "read")

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    found = Recorded(tmp_path)
    yield found
    found.folder.close()


def of_a_stage() -> Timeline:
    recorder = SpanRecorder(6)
    recorder.take_up(TrainBatch(5, 1, 0.1), "compute")
    return recorder.taken()


def test_it_is_written_once_when_all_stages_are_there(recorded: Recorded, tmp_path: Path) -> None:
    recorded.file.add(1, of_a_stage())
    assert recorded.notes == []
    recorded.file.add(0, of_a_stage())
    trace = read_trace(tmp_path)
    assert (trace.batches(0), trace.batches(1)) == ([5], [5])
    assert trace.other["batches"] == [5, 6]
    assert trace.other["stages"][1] == {
        "stage": 1,
        "device": "cpu",
        "blocks": [1, 2],
        "recorded": True,
        "clock": "the same",
        "computing_by": "the host's clock",
    }
    (tmp_path / "trace.json").unlink()
    recorded.file.cut_short("stage 1 is gone")
    recorded.file.finish()
    assert not (tmp_path / "trace.json").exists()
    assert len(recorded.notes) == 1


def test_after_a_loss_it_is_written_with_each_stage_that_is_left(
    recorded: Recorded, tmp_path: Path
) -> None:
    recorded.file.cut_short("stage 1 is gone")
    recorded.file.cut_short("so is stage 0")
    assert not recorded.file.feed.is_on
    recorded.file.add(0, of_a_stage())
    trace = read_trace(tmp_path)
    assert trace.other["cut_short"] == "stage 1 is gone"
    assert [stage["recorded"] for stage in trace.other["stages"]] == [True, False]
    assert "cut short: stage 1 is gone" in recorded.notes[0]


def test_a_run_that_ends_before_leaves_what_there_is(recorded: Recorded, tmp_path: Path) -> None:
    recorded.file.finish()
    assert "the run ended before" in read_trace(tmp_path).other["cut_short"]


def test_a_run_that_ends_before_its_first_batch_leaves_nothing(tmp_path: Path) -> None:
    with Folder.open(tmp_path) as folder:
        TimelineFile(folder, PLAN, 0, 2, lambda event: None).finish()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_it_ends_nothing_and_is_tried_again(
    recorded: Recorded, tmp_path: Path
) -> None:
    (tmp_path / "trace.json").mkdir()
    for stage in range(2):
        recorded.file.add(stage, of_a_stage())
    assert recorded.notes == [
        f"{tmp_path / 'trace.json'}: can't be written: Is a directory; training goes on without it"
    ]
    (tmp_path / "trace.json").rmdir()
    recorded.file.finish()
    assert read_trace(tmp_path).batches(1) == [5]
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
