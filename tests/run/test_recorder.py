"""One line per epoch and one checkpoint per snapshot, in whatever order the stages speak, and
whatever the disk says to it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import CheckpointError, RunError, TimedOutError
from pipeline.run.events import CheckpointWritten, EpochDone, Note, Waiting
from pipeline.run.recorder import Recorder, trim_metrics
from pipeline.schedule.feed import Course, Position
from pipeline.schedule.reports import PassReport, StageState, Tally, Usage
from pipeline.storage.background_writer import LeftOut, Refused, Written
from pipeline.storage.checkpoint import RunState
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from pipeline.run.events import Event
    from pipeline.storage.background_writer import Outcome

COURSE = Course(
    epochs=3, steps_per_epoch=4, evaluation_batches=2, lr=0.5, milestones=(1,), factor=0.25
)
IMAGES = 100


@dataclass
class Keeper:
    """Remembers what it was given; the test decides what becomes of it, and when."""

    given: list[RunState] = field(default_factory=list)
    results: list[Outcome] = field(default_factory=list)
    when_waited_for: list[Outcome | None] = field(default_factory=list)
    """What is finished with each wait; None: the wait was too short."""

    def keep(self, state: RunState) -> None:
        self.given.append(state)

    def outcomes(self) -> list[Outcome]:
        results, self.results = self.results, []
        return results

    def settle(self, timeout_s: float) -> bool:
        if not self.when_waited_for:
            return True
        outcome = self.when_waited_for.pop(0)
        if outcome:
            self.results.append(outcome)
        return outcome is not None


class Recording:
    """A recorder of two stages (blocks 0 and 1; block 2, the output), its clock and its ear."""

    def __init__(
        self, folder: Path, course: Course = COURSE, start: RunState | None = None
    ) -> None:
        self.now = 100.0
        self.path = folder / "metrics.jsonl"
        self.keeper = Keeper()
        self.events: list[Event] = []
        self.recorder = Recorder(
            Folder.open(folder),
            course,
            ["cpu", "cuda:1"],
            self.keeper,
            self.events.append,
            start=start or RunState(),
            clock=lambda: self.now,
        )

    def lines(self) -> list[dict[str, Any]]:
        return (
            list(map(json.loads, self.path.read_text().splitlines())) if self.path.exists() else []
        )

    def tell(self, *reports: PassReport) -> None:
        for report in reports:
            self.recorder.report(report)

    def tell_epoch(self, epoch: int, images: int = IMAGES) -> None:
        self.tell(trained(0, epoch, images), trained(1, epoch, images))
        self.tell(evaluated(0, epoch), evaluated(1, epoch))

    def snap(self, *steps: int, reported: bool = True) -> None:
        for step in steps:
            for stage in (0, 1):
                self.say(stage, step, reported=reported)

    def say(self, stage: int, step: int, *, reported: bool = True) -> None:
        """A stage's state: blocks in order, their counters in another."""
        blocks = ((0, 1), (2,))[stage]
        tallies = tuple(Tally(block, 10, 1.0, None) for block in reversed(blocks))
        files = tuple(b"block %d" % block for block in blocks)
        self.recorder.snapshot(stage, StageState(step, 1, reported, blocks, tallies), files)

    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]


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
    counted = tuple(Tally(block, 60, 1.0, None) for block in range(3))
    start = RunState(Position(3, epoch_reported=False), {0: b"block"}, counted)
    recording = Recording(tmp_path, start=start)
    recording.recorder.start_clock()
    for epoch in (1, 2):
        recording.now += 4.0
        recording.tell(
            trained(0, epoch), trained(1, epoch), evaluated(0, epoch), evaluated(1, epoch)
        )
    assert [line["images_per_s"] for line in recording.lines()] == [10.0, 25.0]
    assert {line["train"]["loss"] for line in recording.lines()} == {2.0}


# --- snapshots ----------------------------------------------------------------------------


def written(step: int) -> Written:
    return Written(step, Path(f"step-{step}"))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_snapshot_is_kept_when_every_stage_has_spoken(
    recording: Recording, order: tuple[int, int]
) -> None:
    recording.say(order[0], 4)
    assert recording.keeper.given == []
    assert recording.recorder.newest is None
    recording.say(order[1], 4)
    (given,) = recording.keeper.given
    assert recording.recorder.newest is given
    assert given.position == Position(4, epoch_reported=True)
    assert given.files == {0: b"block 0", 1: b"block 1", 2: b"block 2"}
    assert [tally.block for tally in given.tallies] == [0, 1, 2]


def test_snapshots_of_different_steps_do_not_mix(recording: Recording) -> None:
    recording.say(0, 4)
    recording.say(0, 8)
    assert recording.keeper.given == []
    recording.say(1, 4)
    recording.say(1, 8)
    assert [given.position.step for given in recording.keeper.given] == [4, 8]


def test_same_step_may_be_written_twice(recording: Recording) -> None:
    recording.snap(4, 4)
    assert len(recording.keeper.given) == 2


def test_what_was_written_is_told_when_the_recorder_is_asked_next(recording: Recording) -> None:
    recording.snap(4)
    assert (recording.recorder.last_checkpoint, recording.events) == (None, [])
    recording.keeper.results = [written(4)]
    recording.recorder.tell_written()
    assert recording.recorder.last_checkpoint == 4
    assert recording.events == [CheckpointWritten(Path("step-4"), 4)]
    recording.keeper.results = [written(8)]
    recording.tell(trained(0, 1))
    recording.keeper.results = [written(12)]
    recording.say(0, 4)
    assert recording.recorder.last_checkpoint == 12
    assert len(recording.events) == 3


def test_a_slow_disk_is_told_once(recording: Recording) -> None:
    for step in (4, 8):
        recording.keeper.results = [LeftOut(step)]
        recording.recorder.tell_written()
    assert recording.notes() == [
        "the disk is slower than snapshots come: that of step 4 was left out for a newer one, "
        "and others may be"
    ]


# --- a disk that refuses ------------------------------------------------------------------

FULL = CheckpointError("run/checkpoints: can't be written: No space left on device")


def test_a_refused_checkpoint_is_told_once_and_training_goes_on(recording: Recording) -> None:
    recording.snap(4)
    recording.keeper.results = [written(4)]
    for step in (8, 12):
        recording.snap(step)
        recording.keeper.results.append(Refused(step, FULL))
    recording.recorder.tell_written()
    assert recording.recorder.last_checkpoint == 4
    assert recording.recorder.newest is recording.keeper.given[-1]
    assert recording.notes() == [f"{FULL}; training goes on, and the next snapshot tries again"]
    recording.keeper.results = [written(16)]
    recording.recorder.tell_written()
    assert recording.recorder.last_checkpoint == 16
    assert recording.notes()[1:] == [f"checkpoints are written again; refused 2 times: {FULL}"]


def test_what_is_not_the_disk_s_fault_ends_the_run(recording: Recording) -> None:
    recording.keeper.results = [Refused(4, ValueError("a bug"))]
    with pytest.raises(ValueError, match="a bug"):
        recording.recorder.tell_written()


def test_lines_that_are_refused_come_with_the_next_checkpoint(
    recording: Recording, tmp_path: Path
) -> None:
    recording.path.mkdir()
    recording.tell_epoch(1)
    recording.tell_epoch(2)
    assert [type(event) for event in recording.events] == [Note, EpochDone, EpochDone]
    assert f"{recording.path}: can't be written: Is a directory" in recording.notes()[0]
    recording.path.rmdir()
    recording.keeper.results = [written(8)]
    recording.recorder.tell_written()
    assert [line["epoch"] for line in recording.lines()] == [1, 2]
    assert "is written again" in recording.notes()[1]


# --- the end of a run ---------------------------------------------------------------------


def test_the_end_waits_for_the_newest(recording: Recording) -> None:
    recording.snap(12)
    recording.keeper.when_waited_for = [None, None, written(12)]
    recording.recorder.finish()
    assert recording.recorder.last_checkpoint == 12
    assert [type(event) for event in recording.events] == [Waiting, Waiting, CheckpointWritten]
    recording.recorder.finish()  # once is enough


def test_a_last_checkpoint_that_is_refused_is_tried_once_more(recording: Recording) -> None:
    recording.snap(12)
    recording.keeper.when_waited_for = [Refused(12, FULL), written(12)]
    recording.recorder.finish()
    assert [given.position.step for given in recording.keeper.given] == [12, 12]
    assert recording.recorder.last_checkpoint == 12


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
    recording.keeper.when_waited_for = [Refused(12, FULL), Refused(12, FULL)]
    with pytest.raises(CheckpointError) as caught:
        recording.recorder.finish()
    assert str(caught.value) == f"{FULL}: the last checkpoint, of step 12, is lost; {on_disk}"


def test_lines_that_are_lost_are_an_error(recording: Recording) -> None:
    recording.path.mkdir()
    recording.tell_epoch(1)
    with pytest.raises(RunError, match=r"jsonl: can't be written: Is a directory: 1 lines are lo"):
        recording.recorder.finish()


def test_the_end_does_not_wait_for_ever(recording: Recording) -> None:
    recording.snap(12)
    recording.keeper.when_waited_for = [None] * 10_000
    with pytest.raises(TimedOutError, match="waited 600 s for the disk; there is no complete"):
        recording.recorder.finish()
    waits = len(recording.keeper.when_waited_for)
    recording.recorder.settle()  # what ends the run then does not wait again
    assert len(recording.keeper.when_waited_for) == waits


def test_a_resumed_run_knows_what_is_on_the_disk(tmp_path: Path) -> None:
    start = RunState(Position(7, epoch_reported=False), {0: b"block"})
    assert Recording(tmp_path, start=start).recorder.last_checkpoint == 7
    assert Recording(tmp_path).recorder.last_checkpoint is None


# --- back to the newest snapshot ----------------------------------------------------------


def test_after_a_rewind_nothing_of_before_is_mixed_in(recording: Recording) -> None:
    recording.snap(4)
    recording.tell(trained(0, 2), evaluated(0, 2), trained(1, 2, images=7))
    recording.say(0, 8)
    recording.recorder.rewind(Position(4))
    recording.say(1, 8)
    recording.tell(trained(1, 2), evaluated(1, 2))
    assert (recording.lines(), len(recording.keeper.given)) == ([], 1)
    recording.tell(trained(0, 2), evaluated(0, 2))
    recording.say(0, 8)
    assert [line["train"]["loss"] for line in recording.lines()] == [2.0]
    assert [given.position.step for given in recording.keeper.given] == [4, 8]


def test_a_rewind_drops_the_lines_that_will_be_written_again(recording: Recording) -> None:
    recording.tell_epoch(1)
    recording.snap(6, reported=False)
    recording.tell_epoch(2)
    recording.recorder.rewind(Position(6, epoch_reported=False))
    assert [line["epoch"] for line in recording.lines()] == [1]
    recording.tell_epoch(2)
    assert [line["epoch"] for line in recording.lines()] == [1, 2]


def test_a_rewind_drops_lines_that_the_disk_has_not_taken(recording: Recording) -> None:
    recording.tell_epoch(1)
    recording.snap(4)
    aside = recording.path.rename(recording.path.with_name("aside"))
    recording.path.mkdir()
    recording.tell_epoch(2)
    recording.recorder.rewind(Position(4))
    recording.path.rmdir()
    aside.rename(recording.path)
    recording.tell_epoch(2)
    assert [line["epoch"] for line in recording.lines()] == [1, 2]


@pytest.mark.parametrize(
    ("reported", "images_per_s"), [(False, (IMAGES - 10) / 4.0), (True, IMAGES / 4.0)]
)
def test_a_rewound_epoch_times_only_what_is_trained_again(
    recording: Recording, reported: bool, images_per_s: float
) -> None:
    recording.tell_epoch(1)
    recording.snap(6, reported=reported)  # after 10 images of its epoch
    recording.now += 1000.0
    recording.recorder.rewind(Position(6, epoch_reported=reported))
    recording.now += 1000.0  # a new process is started
    recording.recorder.start_clock()
    recording.now += 4.0
    recording.tell_epoch(2)
    line = recording.lines()[-1]
    assert (line["seconds"], line["images_per_s"]) == (4.0, images_per_s)
    assert line["train"] == {"loss": 2.0, "error_pct": 50.0}


def test_a_rewind_before_the_first_snapshot_is_one_to_the_start(tmp_path: Path) -> None:
    counted = (Tally(2, 60, 1.0, None),)
    start = RunState(Position(3, epoch_reported=False), {0: b"block"}, counted)
    recording = Recording(tmp_path, start=start)
    recording.recorder.rewind(start.position)
    recording.now += 4.0
    recording.tell_epoch(1)
    assert recording.lines()[0]["images_per_s"] == 10.0


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
    trim_metrics(Folder.open(metrics.parent), position)
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == kept


@pytest.mark.parametrize("half", ['{"epoch": 4, "st', "", "[]", "3", '{"step": null}', '"text"'])
def test_half_written_lines_are_dropped(metrics: Path, half: str) -> None:
    whole = metrics.read_text()
    metrics.write_text(whole + half)
    trim_metrics(Folder.open(metrics.parent), Position(99))
    assert metrics.read_text() == whole


def test_nothing_to_trim(tmp_path: Path) -> None:
    trim_metrics(Folder.open(tmp_path), Position(3))
    assert list(tmp_path.iterdir()) == []
