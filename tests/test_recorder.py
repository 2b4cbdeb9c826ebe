"""One line per epoch and one checkpoint per snapshot, in whatever order the stages speak."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.events import CheckpointWritten, EpochDone
from pipeline.feed import Course, Position
from pipeline.recorder import Recorder, trim_metrics
from pipeline.records import PassReport, RunSnapshot, StageSnapshot, Tally, Usage

if TYPE_CHECKING:
    from pipeline.events import Event

COURSE = Course(
    epochs=3, steps_per_epoch=4, evaluation_batches=2, lr=0.5, milestones=(1,), factor=0.25
)
IMAGES = 100


@dataclass
class Store:
    """Remembers what it was given."""

    written: list[dict[str, Any]] = field(default_factory=list)

    def write(self, snapshot: RunSnapshot) -> Path:
        given = (snapshot.step, snapshot.epoch, snapshot.epoch_reported)
        files, tallies = dict(snapshot.files), list(snapshot.tallies)
        self.written.append({"at": given, "files": files, "tallies": tallies})
        return Path(f"step-{snapshot.step}")


class Recording:
    """A recorder of two stages (blocks 0 and 1; block 2, the output), its clock and its ear."""

    def __init__(self, folder: Path, course: Course = COURSE, images_before: int = 0) -> None:
        self.now = 100.0
        self.path = folder / "metrics.jsonl"
        self.store = Store()
        self.events: list[Event] = []
        self.recorder = Recorder(
            self.path,
            course,
            ["cpu", "cuda:1"],
            self.store,
            self.events.append,
            images_before=images_before,
            clock=lambda: self.now,
        )

    def lines(self) -> list[dict[str, Any]]:
        return (
            list(map(json.loads, self.path.read_text().splitlines())) if self.path.exists() else []
        )

    def tell(self, *reports: PassReport) -> None:
        for report in reports:
            self.recorder.report(report)


def trained(stage: int, epoch: int, images: int = IMAGES) -> PassReport:
    tallies = (
        (Tally(0, images, 0.5 * images, None), Tally(1, images, 0.25 * images, images // 4)),
        (Tally(2, images, 2.0 * images, images // 2),),
    )[stage]
    return PassReport(stage, epoch, True, tallies, Usage(8.0, 6.0 + stage, 1000 + stage))


def evaluated(stage: int, epoch: int) -> PassReport:
    tallies = ((), (Tally(2, 40, 60.0, 4),))[stage]
    return PassReport(stage, epoch, False, tallies, Usage(1.0, 1.0, 5))


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path)


# --- the line of an epoch -----------------------------------------------------------------


def test_line_of_an_epoch_is_as_promised(recording: Recording) -> None:
    recording.recorder.start_clock()
    recording.now += 8.0
    recording.tell(trained(0, 1), trained(1, 1), evaluated(0, 1), evaluated(1, 1))
    expected = {
        "event": "epoch",
        "epoch": 1,
        "step": 4,
        "lr": 0.5,
        "train": {"loss": 2.0, "error_pct": 50.0},
        "test": {"loss": 1.5, "error_pct": 10.0},
        "blocks": [
            {"block": 0, "loss": 0.5, "error_pct": None},
            {"block": 1, "loss": 0.25, "error_pct": 25.0},
            {"block": 2, "loss": 2.0, "error_pct": 50.0},
        ],
        "images_per_s": 12.5,
        "seconds": 8.0,
        "stages": [
            {"stage": 0, "device": "cpu", "busy": 0.75, "peak_memory_bytes": 1000},
            {"stage": 1, "device": "cuda:1", "busy": 0.875, "peak_memory_bytes": 1001},
        ],
    }
    assert recording.lines() == [expected]
    assert list(recording.lines()[0]) == list(expected)
    assert recording.events == [EpochDone(expected)]


def test_lines_use_the_rate_of_their_epoch(recording: Recording) -> None:
    for epoch in (1, 2):
        recording.tell(
            trained(0, epoch), trained(1, epoch), evaluated(0, epoch), evaluated(1, epoch)
        )
    assert [(line["epoch"], line["step"], line["lr"]) for line in recording.lines()] == [
        (1, 4, 0.5),
        (2, 8, 0.125),
    ]


REPORTS = (trained(0, 1), trained(1, 1), evaluated(0, 1), evaluated(1, 1))


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_reports_in_any_order_give_the_same_line(tmp_path: Path, order: tuple[int, ...]) -> None:
    recording = Recording(tmp_path)
    for place, index in enumerate(order):
        assert len(recording.lines()) == 0, place
        recording.tell(REPORTS[index])
    (line,) = recording.lines()
    assert line["train"] == {"loss": 2.0, "error_pct": 50.0}
    assert line["test"] == {"loss": 1.5, "error_pct": 10.0}
    assert [entry["block"] for entry in line["blocks"]] == [0, 1, 2]
    assert [entry["stage"] for entry in line["stages"]] == [0, 1]


def test_stages_may_be_an_epoch_apart(recording: Recording) -> None:
    recording.tell(trained(0, 1), evaluated(0, 1), trained(0, 2), evaluated(0, 2))
    assert recording.lines() == []
    recording.tell(trained(1, 1), evaluated(1, 1))
    assert [line["epoch"] for line in recording.lines()] == [1]
    recording.tell(trained(1, 2), evaluated(1, 2))
    assert [line["epoch"] for line in recording.lines()] == [1, 2]


def test_epoch_without_a_test(tmp_path: Path) -> None:
    course = Course(2, 4, 2, lr=0.5, eval_every_epochs=0)
    recording = Recording(tmp_path, course)
    recording.tell(trained(0, 1), trained(1, 1))
    (line,) = recording.lines()
    assert line["test"] is None
    assert line["train"] == {"loss": 2.0, "error_pct": 50.0}


def test_test_before_training_is_epoch_zero(tmp_path: Path) -> None:
    course = Course(2, 4, 2, lr=0.5, eval_before_training=True)
    recording = Recording(tmp_path, course)
    recording.tell(evaluated(0, 0), evaluated(1, 0))
    (line,) = recording.lines()
    assert (line["epoch"], line["step"], line["lr"]) == (0, 0, 0.5)
    assert (line["train"], line["blocks"], line["stages"]) == (None, [], [])
    assert line["test"] == {"loss": 1.5, "error_pct": 10.0}
    assert (line["images_per_s"], line["seconds"]) == (None, 0.0)


def test_time_of_tests_is_not_counted(recording: Recording) -> None:
    recording.now += 1000.0  # start-up
    recording.recorder.start_clock()
    recording.now += 5.0
    recording.tell(trained(1, 1))
    recording.now += 100.0  # the test, and a first stage that speaks late
    recording.tell(trained(0, 1), evaluated(0, 1), evaluated(1, 1))
    recording.now += 4.0
    recording.tell(trained(0, 2), trained(1, 2), evaluated(0, 2), evaluated(1, 2))
    assert [(line["seconds"], line["images_per_s"]) for line in recording.lines()] == [
        (5.0, 20.0),
        (4.0, 25.0),
    ]


def test_resumed_epoch_counts_all_images_but_times_only_its_own(tmp_path: Path) -> None:
    recording = Recording(tmp_path, images_before=60)
    recording.recorder.start_clock()
    for epoch in (1, 2):
        recording.now += 4.0
        recording.tell(
            trained(0, epoch), trained(1, epoch), evaluated(0, epoch), evaluated(1, epoch)
        )
    assert [line["images_per_s"] for line in recording.lines()] == [10.0, 25.0]
    assert {line["train"]["loss"] for line in recording.lines()} == {2.0}


# --- snapshots ----------------------------------------------------------------------------


def snapshot(stage: int, step: int = 4) -> StageSnapshot:
    blocks = ((0, 1), (2,))[stage]
    return StageSnapshot(
        stage,
        step,
        1,
        True,
        blocks,
        tuple(b"block %d" % block for block in blocks),
        tuple(Tally(block, 10, 1.0, None) for block in reversed(blocks)),
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_checkpoint_is_written_when_every_stage_has_spoken(
    recording: Recording, order: tuple[int, int]
) -> None:
    recording.recorder.snapshot(snapshot(order[0]))
    assert recording.store.written == []
    assert recording.recorder.last_checkpoint is None
    recording.recorder.snapshot(snapshot(order[1]))
    (written,) = recording.store.written
    assert written["at"] == (4, 1, True)
    assert written["files"] == {0: b"block 0", 1: b"block 1", 2: b"block 2"}
    assert [tally.block for tally in written["tallies"]] == [0, 1, 2]
    assert recording.recorder.last_checkpoint == 4
    assert recording.events == [CheckpointWritten(Path("step-4"), 4)]


def test_snapshots_of_different_steps_do_not_mix(recording: Recording) -> None:
    recording.recorder.snapshot(snapshot(0, step=4))
    recording.recorder.snapshot(snapshot(0, step=8))
    assert recording.store.written == []
    recording.recorder.snapshot(snapshot(1, step=4))
    recording.recorder.snapshot(snapshot(1, step=8))
    assert [written["at"][0] for written in recording.store.written] == [4, 8]


def test_same_step_may_be_written_twice(recording: Recording) -> None:
    for _ in range(2):
        recording.recorder.snapshot(snapshot(0))
        recording.recorder.snapshot(snapshot(1))
    assert len(recording.store.written) == 2


# --- lines that will be written again -----------------------------------------------------


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"epoch": {n}, "step": {4 * n}}}\n' for n in range(4)))
    return path


@pytest.mark.parametrize(
    ("position", "kept"),
    [
        (Position(0), []),
        (Position(2, epoch_reported=False), [0]),
        (Position(4, epoch_reported=False), [0]),
        (Position(4, epoch_reported=True), [0, 1]),
        (Position(5, epoch_reported=False), [0, 1]),
        (Position(12, epoch_reported=True), [0, 1, 2, 3]),
        (Position(99, epoch_reported=False), [0, 1, 2, 3]),
    ],
)
def test_trimmed_to_the_position(metrics: Path, position: Position, kept: list[int]) -> None:
    trim_metrics(metrics, position)
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == kept


@pytest.mark.parametrize("half", ['{"epoch": 4, "st', "", "[]", "3", '{"step": null}', '"text"'])
def test_half_written_lines_are_dropped(metrics: Path, half: str) -> None:
    whole = metrics.read_text()
    metrics.write_text(whole + half)
    trim_metrics(metrics, Position(99))
    assert metrics.read_text() == whole


def test_nothing_to_trim(tmp_path: Path) -> None:
    trim_metrics(tmp_path / "metrics.jsonl", Position(3))
    assert list(tmp_path.iterdir()) == []
