"""A file of lines on a disk that may refuse them for a while: metrics.jsonl, run.log."""

from __future__ import annotations

import json
import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.storage.atomic import reason, replace_in, write_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.storage.folder import Folder

MOST_WAITING = 10_000
"""What a disk that refuses may cost in memory: a day of a line every ten seconds."""


class LineLog:
    """Appends lines; those that the disk refuses wait, and are written in order when it works.

    The file is opened anew for every line: it may be moved away, or be replaced.

    Args:
        folder: holds the file.
        tell: takes one line for the person who watches, when the disk refuses and when it works.
        most: changes that wait while it refuses, the newest.
    """

    def __init__(
        self, folder: Folder, name: str, tell: Callable[[str], None], *, most: int = MOST_WAITING
    ) -> None:
        self._folder, self._name, self._tell = folder, name, tell
        self._waiting: deque[str | Callable[[str], bool]] = deque(maxlen=most)
        """Lines and, in their order, what is to stay of the lines before."""
        self.refusal: str | None = None
        """Which file is refused now and why; None where all is well."""

    @property
    def waiting(self) -> int:
        """How many lines are not on the disk yet."""
        return sum(isinstance(change, str) for change in self._waiting)

    def append(self, line: str) -> None:
        """Write a line, or have it wait."""
        self._waiting.append(line)
        self.flush()

    def trim(self, stays: Callable[[str], bool]) -> None:
        """Drop lines, now or, on a disk that refuses, before the next is written."""
        self._waiting.append(stays)
        self.flush()

    def flush(self) -> None:
        """Try again what the disk refused."""
        try:
            while self._waiting:
                change = self._waiting[0]
                if isinstance(change, str):
                    self._write(change)
                else:
                    trim_lines(self._folder, self._name, change)
                self._waiting.popleft()
        except OSError as error:
            before, path = self.refusal, self._folder.path / self._name
            self.refusal = f"{path}: can't be written: {reason(error, self._folder)}"
            if self.refusal != before:  # else it was told
                meanwhile = "are kept, and written when the disk works again"
                fate = "are lost" if self._folder.deleted else meanwhile
                self._tell(f"{self.refusal}; its lines {fate}")
        else:
            if self.refusal is not None:
                path = self._folder.path / self._name
                self._tell(f"{path}: is written again, with the lines that were kept")
            self.refusal = None

    def _write(self, line: str) -> None:
        """All of it or nothing; what a crash or a full disk has left of another is cut off."""
        descriptor = self._folder.open_file(self._name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            end = size = os.lseek(descriptor, 0, os.SEEK_END)
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                end = os.pread(descriptor, size, 0).rfind(b"\n") + 1
                os.ftruncate(descriptor, end)
            try:
                write_all(descriptor, f"{line}\n".encode())
            except OSError:
                with suppress(OSError):  # else the next attempt cuts it off
                    os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)


def trim_lines(folder: Folder, name: str, stays: Callable[[str], bool]) -> None:
    """Drop the lines that do not stay.

    Where they are the last ones, as ever but for a damaged file, the file is cut: that needs no
    space, and whoever follows it, by a link or by `tail -f`, goes on.

    Raises:
        OSError: where the disk refuses; the file is as it was.
    """
    if not folder.has(name):
        return
    before = folder.read(name)
    lines = (line for line in before.split(b"\n") if line and stays(line.decode(errors="replace")))
    kept = b"".join(line + b"\n" for line in lines)
    if not before.startswith(kept):
        replace_in(folder, name, kept)
    elif kept != before:
        descriptor = folder.open_file(name, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, len(kept))
        finally:
            os.close(descriptor)


def json_lines(folder: Folder, name: str) -> list[dict[str, Any]]:
    """The objects in a file of lines, but for one that a crash has left half written; none where
    there is no file.

    Raises:
        OSError: where it can't be read.
    """
    found = []
    for text in folder.read(name).splitlines() if folder.has(name) else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found
