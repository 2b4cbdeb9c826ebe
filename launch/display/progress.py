"""Shows how far the reading of a data set is, where that takes a while."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launch.display.view import PLAIN_EVERY_S, can_redraw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Progress

    from launch.job import ViewKind

_QUIET_S = 1.0
"""What is done sooner is not worth a bar that comes and goes."""


@contextmanager
def reading_shown(
    view: ViewKind, console: Console, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str, int, int], None]]:
    """To be told what is done, how many images, and of how many: a bar on a terminal, a line every
    ten seconds elsewhere, nothing if `view` is quiet."""
    if view == "quiet":
        yield lambda what, done, of: None
    elif view == "plain" or not can_redraw(console):
        yield _Lines(console, clock)
    else:  # what few need is imported only here
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            yield _Bar(bar, clock)


class _Lines:
    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock, self._said_at = console, clock, clock()

    def __call__(self, what: str, done: int, of: int) -> None:
        if self._clock() - self._said_at >= PLAIN_EVERY_S:
            self._said_at = self._clock()
            self._console.print(f"{what}: {done} of {of}", markup=False, soft_wrap=True)


class _Bar:
    def __init__(self, bar: Progress, clock: Callable[[], float]) -> None:
        self._bar, self._clock, self._began = bar, clock, clock()
        self._task = bar.add_task("", total=None, visible=False)

    def __call__(self, what: str, done: int, of: int) -> None:
        shown = self._clock() - self._began >= _QUIET_S
        self._bar.update(self._task, description=what, completed=done, total=of, visible=shown)
