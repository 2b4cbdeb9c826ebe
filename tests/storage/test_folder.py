"""A folder is the one that was opened, whatever its name comes to mean."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support.processes import until

from pipeline.storage.atomic import replace_in, write_synced
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    return tmp_path


def renamed(here: Path) -> Path:
    (here / "run").rename(here / "moved")
    return here / "moved"


def with_its_parent(here: Path) -> Path:
    (here / "above").mkdir()
    (here / "run").rename(here / "above" / "run")
    (here / "above").rename(here / "elsewhere")
    return here / "elsewhere" / "run"


def replaced_by_a_link(here: Path) -> Path:
    moved = renamed(here)
    (here / "other").mkdir()
    (here / "run").symlink_to("other")
    return moved


def to_an_odd_name(here: Path) -> Path:
    (here / "run").rename(here / "x (deleted)")
    return here / "x (deleted)"


MOVES = [renamed, with_its_parent, replaced_by_a_link, to_an_odd_name]


@pytest.mark.parametrize("move", MOVES)
def test_what_is_done_is_done_where_it_went(here: Path, move: Callable[[Path], Path]) -> None:
    folder = Folder.open(here / "run")
    replace_in(folder, "before", b"1")
    folder.make("inner")
    moved = move(here)
    assert folder.path == moved
    assert not folder.deleted
    replace_in(folder, "file", b"2")
    folder.rename("before", "after")
    with folder.child("inner") as inner:
        write_synced(inner, "deep", b"3")
        assert inner.path == moved / "inner"
    assert folder.read("after") == b"1"
    assert folder.names() == sorted(os.listdir(moved)) == ["after", "file", "inner"]
    folder.remove("inner")
    assert folder.names() == ["after", "file"]


def test_a_link_that_is_turned_elsewhere_changes_nothing(here: Path) -> None:
    (here / "other").mkdir()
    (here / "link").symlink_to("run")
    folder = Folder.open(here / "link")
    assert folder.path == here / "link"
    (here / "link").unlink()
    (here / "link").symlink_to("other")
    write_synced(folder, "file", b"1")
    assert os.listdir(here / "other") == []
    assert folder.path == here / "run"


def test_a_deleted_one_takes_nothing_and_comes_back_under_no_name(here: Path) -> None:
    folder = Folder.open(here / "run")
    shutil.rmtree(here / "run")
    (here / "run").mkdir()
    assert folder.deleted
    for write in (lambda: write_synced(folder, "file", b"1"), lambda: folder.make("inner")):
        with pytest.raises(FileNotFoundError):
            write()
    assert os.listdir(here / "run") == []


def test_a_relative_name_stays_what_was_typed(here: Path) -> None:
    from pathlib import Path

    assert str(Folder.open(Path("run")).path) == "run"


def test_what_is_removed_is_removed_without_following_links(here: Path) -> None:
    folder = Folder.open(here)
    (here / "precious").write_text("precious")
    (here / "run" / "inner").mkdir()
    (here / "run" / "inner" / "file").touch()
    for name, target in (("a", "precious"), ("b", ".."), ("run/inner/c", "../.."), ("d", "none")):
        (here / name).symlink_to(target)
    for name in ("run", "a", "b", "d", "never there"):
        folder.remove(name)
    assert folder.names() == ["precious"]
    assert (here / "precious").read_text() == "precious"


def test_a_closed_one_is_no_other_that_gets_its_number(here: Path) -> None:
    folder = Folder.open(here / "run")
    folder.close()
    folder.close()
    (here / "other").mkdir()
    others = [Folder.open(here / "other") for _ in range(3)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        write_synced(folder, "file", b"")
    assert others[0].names() == []


def test_what_is_no_file_is_not_read(here: Path) -> None:
    os.mkfifo(here / "pipe")  # which would be waited for
    for name in ("pipe", "run"):
        with pytest.raises(OSError, match="is no regular file"):
            Folder.open(here).read(name)


# --- one at a time ------------------------------------------------------------------------


def test_one_at_a_time_until_all_that_hold_it_are_closed(here: Path) -> None:
    one, other = Folder.open(here / "run"), Folder.open(here / "run")
    assert one.lock()
    same = one.again()
    for _ in range(2):
        with pytest.raises(BlockingIOError, match="another run is at work in it"):
            other.lock()
        one.close()
    same.close()
    assert other.lock()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(
    here: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*given: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert not Folder.open(here / "run").lock()


LEFT_BEHIND = """
import os, signal, sys
from pathlib import Path
from pipeline.storage.folder import Folder
folder = Folder.open(Path("run"))
same = folder.again()
assert folder.lock()
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
"""A process that dies and leaves a child, as a user's own module may have started one."""


@pytest.mark.processes
def test_a_child_does_not_keep_the_lock_of_a_dead_process(here: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LEFT_BEHIND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    child = int(process.stdout.readline())
    try:
        assert process.wait(60.0) == -signal.SIGKILL
        os.kill(child, 0)  # it lives
        folder = Folder.open(here / "run")

        def locked() -> bool:
            try:
                return folder.lock()
            except BlockingIOError:  # the child has not got so far yet
                return False

        until(locked, "a lock")
        os.kill(child, 0)
    finally:
        process.stdin.close()
        process.stdout.close()
