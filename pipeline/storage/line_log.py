"""A file of lines on a disk that may refuse them for a while: metrics.jsonl, run.log."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.storage.atomic import reason, replace_in, write_all
from pipeline.storage.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.storage.folder import Folder


class LineFile:
    """Appends lines; those that the disk refuses are kept and written, in order, when it works.

    The file is opened anew for every line: it may be moved away, or be replaced.

    Args:
        folder: holds the file.
        tell: takes one line for the person who watches, when the disk refuses and when it works.
        at_most: lines to keep while it refuses, the newest; None: all.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        tell: Callable[[str], None],
        *,
        at_most: int | None = None,
    ) -> None:
        self._folder, self._name = folder, name
        self._kept: deque[str] = deque(maxlen=at_most)
        self._stays: list[Callable[[str], bool]] = []
        self._trouble = Trouble(
            tell,
            meanwhile="its lines are kept, and written when the disk works again",
            over=f"{folder.path / name}: is written again, with the lines that were kept",
        )

    @property
    def kept(self) -> int:
        """How many lines are not on the disk yet."""
        return len(self._kept)

    @property
    def trouble(self) -> str | None:
        """Which file is refused now and why; None where all is well."""
        return self._trouble.reason

    def append(self, line: str) -> None:
        """Write a line, or keep it."""
        self._kept.append(line)
        self.flush()

    def trim(self, stays: Callable[[str], bool]) -> None:
        """Drop lines, now or, on a disk that refuses, before the next is written."""
        self._kept = deque(filter(stays, self._kept), self._kept.maxlen)
        self._stays.append(stays)
        self.flush()

    def flush(self) -> None:
        """Try again what the disk refused."""
        if not (self._kept or self._stays):
            return
        try:
            self._write()
        except OSError as error:
            path, why = self._folder.path / self._name, reason(error, self._folder)
            lost = "its lines are lost" if self._folder.deleted else ""
            self._trouble.refused(f"{path}: can't be written: {why}", for_good=lost)
        else:
            self._trouble.over()

    def _write(self) -> None:
        if self._stays:
            trim_lines(
                self._folder, self._name, lambda line: all(stays(line) for stays in self._stays)
            )
            self._stays.clear()
        while self._kept:
            append_line(self._folder, self._name, self._kept[0])
            self._kept.popleft()


def append_line(folder: Folder, name: str, line: str) -> None:
    """Append all of the line or nothing.

    Raises:
        OSError: where the disk refuses.
    """
    descriptor = folder.open_file(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        end = _end_of_last_line(descriptor)
        try:
            write_all(descriptor, f"{line}\n".encode())
        except OSError:
            with suppress(OSError):  # else the next attempt finds a line without an end
                os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def trim_lines(folder: Folder, name: str, stays: Callable[[str], bool]) -> None:
    """Drop the lines that do not stay.

    Where they are the last ones, as ever but for a damaged file, this needs no space.

    Raises:
        OSError: where the disk refuses; the file is as it was.
    """
    if not folder.has(name):
        return
    data = folder.read(name)
    lines = [line for line in data.split(b"\n") if line and stays(line.decode(errors="replace"))]
    kept = b"".join(line + b"\n" for line in lines)
    if data.startswith(kept):
        _cut(folder, name, len(kept))
    else:
        replace_in(folder, name, kept)


def _cut(folder: Folder, name: str, size: int) -> None:
    descriptor = folder.open_file(name, os.O_WRONLY)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def _end_of_last_line(descriptor: int) -> int:
    """Where to write on; what a crash or a full disk has left of a line is cut off."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    end = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    os.ftruncate(descriptor, end)
    return end
