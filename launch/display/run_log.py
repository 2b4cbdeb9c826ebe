"""run.log: the plain lines of a run, each with its date and time."""

from __future__ import annotations

import io
from contextlib import contextmanager
from datetime import datetime
from typing import IO, TYPE_CHECKING, cast

from rich.console import Console

from launch.display.view import PlainView
from launch.run_directory import LOG
from pipeline.run.events import Note
from pipeline.storage.line_log import LineFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.run.events import Observer
    from pipeline.storage.folder import Folder

_KEPT_LINES = 10_000
"""What a disk that refuses may cost in memory: a day of a line every ten seconds."""


class _Dated(io.TextIOBase):
    """Gives a file each line with the time at which it was begun."""

    def __init__(self, lines: LineFile) -> None:
        self._lines = lines
        self._begun = ""

    def write(self, text: str) -> int:
        for part in text.splitlines(keepends=True):
            self._begun = self._begun or f"{datetime.now():%Y-%m-%d %H:%M:%S} "
            self._begun += part.rstrip("\n")
            if part.endswith("\n"):
                self._lines.append(self._begun)
                self._begun = ""
        return len(text)


@contextmanager
def open_log(folder: Folder, show: Observer) -> Iterator[Observer]:
    """An observer that appends to `run.log`; a resumed run goes on in the same file.

    A disk that refuses lines does not end the run: `show` is told, the lines are kept.
    """
    lines = LineFile(folder, LOG, lambda text: show(Note(text)), at_most=_KEPT_LINES)
    dated = cast("IO[str]", _Dated(lines))  # as far as a console needs it
    try:
        yield PlainView(Console(file=dated, width=200, color_system=None))
    finally:
        lines.flush()
