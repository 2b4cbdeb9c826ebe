"""Disks that fail on purpose: at one call or from one call on, or with the process at that call."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections import deque
from contextlib import contextmanager
from itertools import repeat
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHANGING = (
    "open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir", "truncate",
    "ftruncate", "link",
)  # fmt: skip
"""Every call by which this project, and `shutil.rmtree`, changes a disk."""
TAKING_SPACE = ("write", "fsync", "mkdir")


class Dead(BaseException):
    """The process ended here: nothing that it would have done after this is done."""


class FailingDisk:
    """Counts the calls that change the disk; from the n-th on, some of them fail.

    Args:
        at: the call that fails first, from 0; None: none does.
        error: what it raises; `Dead` is raised by every later call too, whatever it is.
        names: the calls that fail; each counts.
        times: how many of them fail; None: all later ones.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        at: int | None,
        error: Callable[[], BaseException],
        *,
        names: tuple[str, ...] = CHANGING,
        times: int | None = 1,
    ) -> None:
        self.calls: list[str] = []
        self._at, self._error, self._names, self._times = at, error, names, times
        for name in CHANGING:
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            if name == "close" and S_ISDIR(os.fstat(given[0]).st_mode):
                return call(*given)  # has nothing to say; shutil would take it badly
            index = len(self.calls)
            self.calls.append(name)
            if self._fails(index, name):
                if name == "close":
                    call(*given)  # the kernel has taken the file back, whatever close says
                raise self._error()
            return call(*given, **named)

        return watched

    def _fails(self, index: int, name: str) -> bool:
        if self._at is None or index < self._at or name not in self._names:
            return False
        if self._times is not None:
            self._times -= 1
        return self._times is None or self._times >= 0


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """A file system of its own, in memory, that really fills."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)


def remount(folder: Path, how: str) -> None:
    """Make a disk read-only (`ro`) or as it was (`rw`)."""
    _mount("-o", f"remount,{how}", str(folder))


def fill(folder: Path) -> None:
    """Leave no room for a single byte more."""
    full = pytest.raises(OSError, match="No space left")
    with (folder / "ballast").open("wb", buffering=0) as file, full:
        deque(map(file.write, repeat(bytes(4096))), maxlen=0)


@contextmanager
def immutable(folder: Path) -> Iterator[None]:
    """A folder in which not even root makes or removes a file."""
    _or_skip("chattr", "+i", str(folder))
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True, timeout=60)


def _mount(*arguments: str) -> None:
    _or_skip("mount", *arguments)


def _or_skip(*command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]} here")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} is not allowed here: {done.stderr.strip()}")
