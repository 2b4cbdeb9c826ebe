"""One line per epoch, in whatever order the stages speak."""

from __future__ import annotations

import json
from itertools import permutations
from typing import TYPE_CHECKING

import pytest
from support.recording import IMAGES, Recording, evaluated, trained

from pipeline.run.events import EpochDone
from pipeline.run.metrics import trim_metrics
from pipeline.schedule.best import BestSoFar
from pipeline.schedule.feed import Course, Position
from pipeline.schedule.reports import Tally
from pipeline.storage.checkpoint import RunState
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path


TRAINED = {"loss": 2.0, "error_pct": 50.0, "cross_entropy": 4.0, "similarity": None}
TESTED = {"loss": 1.5, "error_pct": 10.0, "cross_entropy": 3.0, "similarity": None}


def test_line_of_an_epoch_is_as_promised(recording: Recording) -> None:
    recording.recorder.metrics.start_clock()
    recording.now += 8.0
    recording.tell_epoch(1)
    expected = {
        "event": "epoch",
        "epoch": 1,
        "step": 4,
        "time": "1970-01-01T00:01:48.000+00:00",
        "lr": 0.5,
        "train": TRAINED,
        "test": TESTED,
        "blocks": [
            {
                "block": 0,
                "name": "linear 2→3",
                "loss": 0.5,
                "error_pct": None,
                "cross_entropy": None,
                "similarity": 0.75,
            },
            {
                "block": 1,
                "name": "linear 3→3",
                "loss": 0.25,
                "error_pct": 25.0,
                "cross_entropy": None,  # of an epoch of which an earlier version counted a part
                "similarity": 0.125,
            },
            {"block": 2, "name": "output 3→2", **TRAINED},
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
    assert recording.events == [EpochDone(expected, ((16, 4), (0, 20)))]


def test_lines_use_the_rate_of_their_epoch(recording: Recording) -> None:
    for epoch in (1, 2):
        recording.tell_epoch(epoch)
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
    assert line["train"] == TRAINED
    assert line["test"] == TESTED
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
    assert line["train"] == TRAINED


def test_test_before_training_is_epoch_zero(tmp_path: Path) -> None:
    course = Course(2, 4, 2, lr=0.5, eval_before_training=True)
    recording = Recording(tmp_path, course)
    recording.tell(evaluated(0, 0), evaluated(1, 0))
    (line,) = recording.lines()
    assert (line["epoch"], line["step"], line["lr"]) == (0, 0, 0.5)
    assert (line["train"], line["blocks"], line["stages"]) == (None, [], [])
    assert line["test"] == TESTED
    assert (line["images_per_s"], line["seconds"]) == (None, 0.0)


def test_time_of_tests_is_not_counted(recording: Recording) -> None:
    recording.now += 1000.0  # start-up
    recording.recorder.metrics.start_clock()
    recording.now += 5.0
    recording.tell(trained(1, 1))
    recording.now += 100.0  # the test, and a first stage that speaks late
    recording.tell(trained(0, 1), evaluated(0, 1), evaluated(1, 1))
    recording.now += 4.0
    recording.tell_epoch(2)
    assert [(line["seconds"], line["images_per_s"]) for line in recording.lines()] == [
        (5.0, 20.0),
        (4.0, 25.0),
    ]


def test_resumed_epoch_counts_all_images_but_times_only_its_own(tmp_path: Path) -> None:
    counted = tuple(Tally(block, 60, 1.0, None) for block in range(3))
    start = RunState(Position(3, epoch_reported=False), {0: b"block"}, counted)
    recording = Recording(tmp_path, start=start)
    recording.recorder.metrics.start_clock()
    for epoch in (1, 2):
        recording.now += 4.0
        recording.tell_epoch(epoch)
    assert [line["images_per_s"] for line in recording.lines()] == [10.0, 25.0]
    assert {line["train"]["loss"] for line in recording.lines()} == {2.0}


# --- back to the newest snapshot ----------------------------------------------------------


def test_a_rewind_drops_the_lines_that_will_be_written_again(recording: Recording) -> None:
    recording.tell_epoch(1)
    recording.snap(6, reported=False)
    recording.tell_epoch(2)
    recording.recorder.rewind(RunState(Position(6, epoch_reported=False)))
    assert [line["epoch"] for line in recording.lines()] == [1]
    recording.tell_epoch(2)
    assert [line["epoch"] for line in recording.lines()] == [1, 2]


def test_a_rewind_drops_lines_that_the_disk_has_not_taken(recording: Recording) -> None:
    recording.tell_epoch(1)
    recording.snap(4)
    aside = recording.path.rename(recording.path.with_name("aside"))
    recording.path.mkdir()
    recording.tell_epoch(2)
    recording.recorder.rewind(RunState(Position(4)))
    recording.path.rmdir()
    aside.rename(recording.path)
    recording.tell_epoch(2)
    assert [line["epoch"] for line in recording.lines()] == [1, 2]


def test_the_best_test_is_that_of_the_lines_and_goes_back_with_them(
    recording: Recording,
) -> None:
    recording.tell_epoch(1)
    first = BestSoFar(1, 10.0, 1)
    assert recording.recorder.metrics.best == first
    recording.snap(4)
    recording.tell_epoch(2)
    assert recording.recorder.metrics.best == BestSoFar(1, 10.0, 2)
    assert recording.go_back().best == first
    assert recording.recorder.metrics.best == first


def test_the_test_before_training_is_not_the_best(tmp_path: Path) -> None:
    recording = Recording(tmp_path, Course(2, 4, 2, lr=0.5, eval_before_training=True))
    recording.tell(evaluated(0, 0), evaluated(1, 0))
    assert recording.recorder.metrics.best == BestSoFar()


@pytest.mark.parametrize(
    ("reported", "images_per_s"), [(False, (IMAGES - 10) / 4.0), (True, IMAGES / 4.0)]
)
def test_a_rewound_epoch_times_only_what_is_trained_again(
    recording: Recording, reported: bool, images_per_s: float
) -> None:
    recording.tell_epoch(1)
    recording.snap(6, reported=reported)  # after 10 images of its epoch
    recording.now += 1000.0
    recording.go_back()
    recording.now += 1000.0  # a new process is started
    recording.recorder.metrics.start_clock()
    recording.now += 4.0
    recording.tell_epoch(2)
    line = recording.lines()[-1]
    assert (line["seconds"], line["images_per_s"]) == (4.0, images_per_s)
    assert line["train"] == TRAINED


def test_a_rewind_before_the_first_snapshot_is_one_to_the_start(tmp_path: Path) -> None:
    counted = (Tally(2, 60, 1.0, None),)
    start = RunState(Position(3, epoch_reported=False), {0: b"block"}, counted)
    recording = Recording(tmp_path, start=start)
    recording.recorder.rewind(start)
    recording.now += 4.0
    recording.tell_epoch(1)
    assert recording.lines()[0]["images_per_s"] == 10.0


# --- what tests take for what -------------------------------------------------------------


def test_confusions_of_each_test_are_kept_and_go_back_with_the_lines(recording: Recording) -> None:
    recording.tell_epoch(1)
    recording.snap(4)
    recording.tell_epoch(2)
    recording.go_back()
    recording.tell_epoch(2, errors=6)
    lines = (recording.path.parent / "confusion.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [
        {
            "event": "confusion",
            "epoch": epoch,
            "step": 4 * epoch,
            "part": "test",
            "confusion": [[20 - errors, errors], [0, 20]],
        }
        for epoch, errors in ((1, 4), (2, 6))
    ]


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
