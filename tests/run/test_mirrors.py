"""The table and the event files say what metrics.jsonl says, whatever a run goes through."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pytest
from support.recording import Recording, evaluated, trained

from pipeline.run import event_files
from pipeline.run.event_files import EventFiles
from pipeline.run.metrics import CONFUSION_FILE
from pipeline.schedule.feed import Course
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path


class Points:
    """What TensorBoard's own reader finds in a folder."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        self._read = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
        self._read.Reload()

    def scalars(self, tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in self._read.Scalars(tag)]

    @property
    def tags(self) -> list[str]:
        return list(self._read.Tags()["scalars"])

    def images(self) -> list[tuple[int, int]]:
        """Epochs, and the sides in pixels."""
        return [(event.step, event.width) for event in self._read.Images("confusion")]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def losses(folder: Path) -> list[tuple[int, float]]:
    """Epochs with their tested losses, by the table."""
    return [(int(row["epoch"]), float(row["test_loss"])) for row in rows(folder)]


def test_a_row_of_the_table(recording: Recording) -> None:
    recording.recorder.metrics.start_clock()
    recording.now += 8.0
    recording.tell_epoch(1)
    recording.tell_epoch(2)
    first, second = rows(recording.path.parent)
    assert first == {
        "epoch": "1",
        "step": "4",
        "time": "1970-01-01T00:01:48.000+00:00",
        "lr": "0.5",
        "train_loss": "2.0",
        "train_error_pct": "50.0",
        "train_cross_entropy": "4.0",
        "train_similarity": "",
        "test_loss": "1.5",
        "test_error_pct": "10.0",
        "test_cross_entropy": "3.0",
        "test_similarity": "",
        "block0_loss": "0.5",
        "block0_error_pct": "",
        "block0_cross_entropy": "",
        "block0_similarity": "0.75",
        "block1_loss": "0.25",
        "block1_error_pct": "25.0",
        "block1_cross_entropy": "",
        "block1_similarity": "0.125",
        "block2_loss": "2.0",
        "block2_error_pct": "50.0",
        "block2_cross_entropy": "4.0",
        "block2_similarity": "",
        "images_per_s": "12.5",
        "seconds": "8.0",
        "stage0_busy": "0.75",
        "stage0_peak_memory_bytes": "1000",
        "stage1_busy": "0.875",
        "stage1_peak_memory_bytes": "1001",
    }
    assert second["epoch"] == "2"


def test_columns_that_come_later_are_in_all_rows(tmp_path: Path) -> None:
    recording = Recording(tmp_path, Course(2, 4, 2, lr=0.5, eval_before_training=True))
    recording.tell(evaluated(0, 0), evaluated(1, 0))
    assert [row["test_loss"] for row in rows(tmp_path)] == ["1.5"]
    recording.tell_epoch(1)
    assert [(row["epoch"], row["block0_loss"]) for row in rows(tmp_path)] == [
        ("0", ""),
        ("1", "0.5"),
    ]


def test_errors_by_depth_have_columns(tmp_path: Path) -> None:
    course = Course(2, 4, 2, lr=0.5, tests_every_depth=True)
    recording = Recording(tmp_path, course)
    recording.tell_epoch(1)
    assert rows(tmp_path)[0]["test_block2_error_pct"] == "10.0"


def test_points_of_all_that_is_known(tmp_path: Path) -> None:
    recording = Recording(tmp_path, tensorboard=True)
    recording.recorder.metrics.start_clock()
    for epoch in (1, 2):
        recording.now += 8.0
        recording.tell_epoch(epoch)
    points = Points(tmp_path / "tensorboard")
    assert sorted(points.tags) == [
        "block_cross_entropy/02 output 3→2",
        "block_error_pct/01 linear 3→3",
        "block_error_pct/02 output 3→2",
        "block_loss/00 linear 2→3",
        "block_loss/01 linear 3→3",
        "block_loss/02 output 3→2",
        "block_similarity/00 linear 2→3",
        "block_similarity/01 linear 3→3",
        "learning/lr",
        "speed/images_per_s",
        "speed/seconds",
        "stage_busy/0",
        "stage_busy/1",
        "stage_peak_memory_bytes/0",
        "stage_peak_memory_bytes/1",
        "test/cross_entropy",
        "test/error_pct",
        "test/loss",
        "train/cross_entropy",
        "train/error_pct",
        "train/loss",
    ]
    assert points.scalars("learning/lr") == [(1, 0.5), (2, 0.125)]
    assert points.scalars("block_similarity/00 linear 2→3") == [(1, 0.75), (2, 0.75)]
    assert points.images() == [(1, 271), (2, 271)]


def test_a_run_that_goes_back_has_no_epoch_twice(tmp_path: Path) -> None:
    recording = Recording(tmp_path, tensorboard=True)
    recording.tell_epoch(1)
    recording.snap(4)
    recording.tell_epoch(2)
    recording.go_back()
    assert losses(tmp_path) == [(1, 1.5)]
    recording.tell_epoch(2, errors=6)
    points = Points(tmp_path / "tensorboard")
    assert points.scalars("test/error_pct") == [(1, 10.0), (2, 15.0)]
    assert points.images() == [(1, 271), (2, 271)]
    assert losses(tmp_path) == [(1, 1.5), (2, 1.5)]


def test_a_resumed_run_goes_on_with_what_was_there(tmp_path: Path) -> None:
    """Also of an earlier version, which wrote none of these files, nor all keys."""
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps(
            {
                "event": "epoch",
                "epoch": 1,
                "step": 4,
                "train": {"loss": 3.0, "error_pct": None},
                "test": {"loss": 2.5, "error_pct": None},
                "blocks": [{"block": 0, "loss": 7.0, "error_pct": None}],
                "stages": [],
            }
        )
        + "\n[]\nhalf a li"
    )
    theirs = tmp_path / "tensorboard/events.out.tfevents.1.somebody"
    theirs.parent.mkdir()
    theirs.write_bytes(b"")
    recording = Recording(tmp_path, tensorboard=True)
    recording.recorder.metrics.start_clock()
    assert losses(tmp_path) == [(1, 2.5)]
    recording.tell_epoch(2)
    assert losses(tmp_path) == [(1, 2.5), (2, 1.5)]
    assert Points(tmp_path / "tensorboard").scalars("test/loss") == [(1, 2.5), (2, 1.5)]
    assert len(list(theirs.parent.iterdir())) == 2
    assert theirs.exists()


def test_without_being_asked_no_event_is_written(recording: Recording) -> None:
    recording.tell_epoch(1)
    assert not (recording.path.parent / "tensorboard").exists()


def test_a_disk_that_refuses_one_of_them_ends_nothing(tmp_path: Path) -> None:
    recording = Recording(tmp_path, tensorboard=True)
    in_the_way = tmp_path / "tensorboard"
    in_the_way.write_bytes(b"")
    for epoch in (1, 2):
        recording.tell_epoch(epoch)
    assert recording.notes() == [
        f"{in_the_way}: can't be written: Not a directory; "
        "it is written from metrics.jsonl when that works"
    ]
    assert losses(tmp_path) == [(1, 1.5), (2, 1.5)]
    in_the_way.unlink()
    recording.recorder.finish()
    assert Points(in_the_way).scalars("test/loss") == [(1, 1.5), (2, 1.5)]


def test_a_table_that_is_removed_comes_back_whole(recording: Recording) -> None:
    recording.tell_epoch(1)
    (recording.path.parent / "metrics.csv").unlink()
    recording.tell_epoch(2)
    assert losses(recording.path.parent) == [(1, 1.5), (2, 1.5)]


def test_a_folder_that_was_moved_is_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    recording = Recording(tmp_path / "run", tensorboard=True)
    recording.tell_epoch(1)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    recording.tell_epoch(2)
    assert losses(moved) == [(1, 1.5), (2, 1.5)]
    assert len(Points(moved / "tensorboard").images()) == 2


def test_lines_that_wait_for_the_disk_are_not_ahead_in_a_mirror(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.tell_epoch(1)
    whole = recording.path.rename(tmp_path / "aside")
    recording.path.mkdir()
    recording.tell(trained(0, 2), trained(1, 2), evaluated(0, 2), evaluated(1, 2))
    assert losses(tmp_path) == [(1, 1.5)]
    recording.path.rmdir()
    whole.rename(recording.path)
    recording.recorder.metrics.flush()
    assert losses(tmp_path) == [(1, 1.5), (2, 1.5)]


def test_a_row_that_was_never_predicted_is_white(tmp_path: Path) -> None:
    from PIL import Image

    line: dict[str, Any] = {"epoch": 1, "blocks": []}
    with Folder.open(tmp_path) as folder:
        EventFiles(folder, CONFUSION_FILE).write([])
        encoded = event_files._picture([[3, 1], [0, 0]], ()).encoded_image_string
        assert event_files._events(line, [[3, 1], [0, 0]], ())
    (tmp_path / "picture.png").write_bytes(encoded)
    with Image.open(tmp_path / "picture.png") as image:
        # 15 pixels of numbers to the left, 21 above
        assert [image.getpixel(at) for at in ((24, 30), (215, 30), (24, 221), (215, 221))] == [
            64, 191, 255, 255,
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "most", "size"),
    [
        ([], 9, (15 + 250, 21 + 250)),
        (["cat"] * 10, 9, (8 + 7 * 5 + 250, 21 + 250)),
        (["日本"] * 10, 123_456, (8 + 7 * 4 + 460, 21 + 460)),
        ([], None, (250, 250)),
    ],
)
def test_confusions_are_written_where_there_is_room(
    classes: list[str], most: int | None, size: tuple[int, int]
) -> None:
    n = 10 if most else 25
    table = [[most or 9] * n for _ in range(n)]
    picture = event_files._picture(table, classes)
    assert (picture.width, picture.height) == size
