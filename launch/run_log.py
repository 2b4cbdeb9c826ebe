"""run.log: the plain lines of a run, each with its date and time."""

from __future__ import annotations

import io
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console

from launch.view import PlainView

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.events import Observer


class _Dated(io.TextIOWrapper):
    """Writes each line with the time at which it was begun."""

    _fresh = True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            if self._fresh:
                super().write(f"{datetime.now():%Y-%m-%d %H:%M:%S} ")
            super().write(line)
            self._fresh = line.endswith("\n")
        return len(text)


@contextmanager
def open_log(path: Path) -> Iterator[Observer]:
    """An observer that appends to `path`; a resumed run goes on in the same file."""
    with _Dated(path.open("ab"), encoding="utf-8", line_buffering=True) as file:
        yield PlainView(Console(file=file, width=200, color_system=None))
