"""Lines that a disk refuses are kept, and written in order; it is told once, and its end, too."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from support.disk import CHANGING, Dead, FailingDisk, fill, no_space, small_disk

from launch.display.plain_view import open_log
from pipeline.run.events import Note
from pipeline.storage.atomic import replace_file
from pipeline.storage.folder import Folder
from pipeline.storage.line_log import MOST_WAITING, LineLog, json_lines

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.run.events import Event

# --- lines --------------------------------------------------------------------------------


class Lines:
    """A file of lines and what it says."""

    def __init__(self, path: Path, most: int = MOST_WAITING) -> None:
        self.path, self.said = path, list[str]()
        held = Folder.open(path.parent)
        self.file = LineLog(held, path.name, self.said.append, most=most)

    def there(self) -> list[str]:
        return self.path.read_text().splitlines()


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    return Lines(tmp_path / "lines")


def refusing(lines: Lines, *given: str, at: int = 0, times: int | None = None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        FailingDisk(patch, at, no_space, times=times)
        for line in given:
            lines.file.append(line)


def test_lines_are_appended(lines: Lines) -> None:
    lines.path.write_text("old\n")
    for line in ("one", "two — ∞"):
        lines.file.append(line)
    assert lines.path.read_bytes().decode() == "old\none\ntwo — ∞\n"
    assert (lines.said, lines.file.waiting, lines.file.refusal) == ([], 0, None)


def test_what_is_refused_is_written_later_in_order(lines: Lines) -> None:
    lines.file.append("one")
    refusing(lines, "two", "three")
    assert (lines.there(), lines.file.waiting) == (["one"], 2)
    reason = f"{lines.path}: can't be written: No space left on device"
    assert lines.file.refusal == reason
    lines.file.append("four")
    assert lines.there() == ["one", "two", "three", "four"]
    assert lines.said == [
        f"{reason}; its lines are kept, and written when the disk works again",
        f"{lines.path}: is written again, with the lines that were kept",
    ]
    assert lines.file.waiting == 0


@pytest.mark.parametrize("times", [1, None])
def test_no_line_is_lost_doubled_or_torn_wherever_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int | None
) -> None:
    write, without_close = os.write, tuple(name for name in CHANGING if name != "close")
    for at in range(16):
        lines = Lines(tmp_path / str(at))
        lines.file.append("one")
        refusing(lines, "two")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda file, data: write(file, data[:2]))  # in pieces
            FailingDisk(patch, at, no_space, names=without_close, times=times)
            lines.file.append("three")
        if times == 1:  # a disk that can still be told to forget shows no half of a line
            assert set(lines.there()) <= {"one", "two", "three"}
        lines.file.append("four")
        assert lines.there() == ["one", "two", "three", "four"], at


def test_a_line_that_a_crash_has_torn_is_cut_off(lines: Lines) -> None:
    lines.path.write_text("one\ntw")
    lines.file.append("two")
    assert lines.there() == ["one", "two"]
    lines.path.write_text("o")
    lines.file.append("one")
    assert lines.there() == ["one"]


def test_only_the_newest_are_kept_where_there_is_a_limit(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "lines", most=2)
    refusing(lines, "one", "two", "three")
    for _ in range(2):
        lines.file.flush()
        assert lines.there() == ["two", "three"]


def test_trimmed_on_disk_and_in_memory(lines: Lines) -> None:
    for line in ("1", "2", "3"):
        lines.file.append(line)
    refusing(lines, "4", "5")
    lines.file.trim(lambda line: int(line) < 3 or line == "4")
    assert lines.there() == ["1", "2", "4"]


def test_a_trim_that_is_refused_comes_before_the_next_line(lines: Lines) -> None:
    for line in ("1", "2", "3"):
        lines.file.append(line)
    with pytest.MonkeyPatch.context() as patch:
        FailingDisk(patch, 0, no_space, times=None)
        lines.file.trim(lambda line: int(line) < 3)
        lines.file.append("3 again")
        lines.file.trim(lambda line: line != "2")
    assert lines.there() == ["1", "2", "3"]
    lines.file.flush()
    assert lines.there() == ["1", "3 again"]


def test_the_last_lines_go_where_the_file_is_and_without_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        lines = Lines(tmp_path / "lines")
        lines.path.symlink_to(disk / "elsewhere")
        for line in ("one", "two", "three"):
            lines.file.append(line)
        fill(disk)
        lines.file.trim(lambda line: line == "one")
        assert (lines.there(), lines.said) == (["one"], [])
        assert lines.path.is_symlink()


def test_a_folder_that_is_moved_is_followed(tmp_path: Path) -> None:
    folder, moved = tmp_path / "run", tmp_path / "moved"
    folder.mkdir()
    lines = Lines(folder / "lines")
    lines.file.append("one")
    folder.rename(moved)
    folder.mkdir()  # another's, under the old name
    lines.file.append("two")
    lines.file.trim(lambda line: line == "two")
    assert (moved / "lines").read_text() == "two\n"
    assert list(folder.iterdir()) == []
    with pytest.MonkeyPatch.context() as patch:
        FailingDisk(patch, 0, no_space, times=None)
        lines.file.append("three")
    assert lines.said[0].startswith(f"{moved}/lines: can't be written: ")


def test_a_folder_that_was_deleted_is_told_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines = Lines(folder / "lines")
    folder.rmdir()
    for line in ("one", "two"):
        lines.file.append(line)
    (said,) = lines.said
    assert said == (f"{folder}/lines: can't be written: the folder was deleted; its lines are lost")
    assert not folder.exists()


# --- files that are replaced --------------------------------------------------------------


@pytest.mark.parametrize("error", [no_space, Dead])
def test_a_replaced_file_holds_the_old_or_the_new(
    tmp_path: Path, error: type[Dead] | object
) -> None:
    for at in range(8):
        path = tmp_path / str(at) / "config.yaml"
        path.parent.mkdir()
        path.write_text("old")
        with pytest.MonkeyPatch.context() as patch, suppress(OSError, Dead):
            FailingDisk(patch, at, error, times=None if error is Dead else 1)  # type: ignore[arg-type]
            replace_file(path, b"new")
        assert path.read_text() in ("old", "new")
        assert error is Dead or [file.name for file in path.parent.iterdir()] == ["config.yaml"]
    assert path.read_text() == "new"


# --- run.log ------------------------------------------------------------------------------


def test_a_log_that_is_refused_ends_nothing_and_is_told(tmp_path: Path) -> None:
    told: list[Event] = []
    path = tmp_path / "run.log"
    with open_log(Folder.open(tmp_path), told.append) as log:
        log(Note("one"))
        with pytest.MonkeyPatch.context() as patch:
            FailingDisk(patch, 0, no_space, times=None)
            log(Note("two"))
            log(Note("three\nin two lines"))
        assert [type(event) for event in told] == [Note]
        assert f"{path}: can't be written: No space left" in str(told[0])
        assert len(path.read_text().splitlines()) == 1
    assert [line[20:] for line in path.read_text().splitlines()] == [
        "one", "two", "three", "in two lines",
    ]  # fmt: skip
    assert "is written again" in str(told[1])


def test_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    for text in ("one", "two → 2"):
        with open_log(Folder.open(tmp_path), lambda event: None) as log:
            log(Note(text))
    lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in lines] == ["one", "two → 2"]
    assert all(line[4] == line[7] == "-" for line in lines)


def test_what_is_no_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text('{"a": 1}\n3\n{"a": 2}\n{"a": ')
    with Folder.open(tmp_path) as folder:
        assert json_lines(folder, "lines") == [{"a": 1}, {"a": 2}]
        assert json_lines(folder, "none") == []
