"""What a person sees of a run: live bars and a table, plain lines, or nothing."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launch.display.plain_view import PlainView, lines_on
from pipeline.run.events import ignore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from launch.job import ViewKind
    from pipeline.run.events import Observer

_QUIET_S = 1.0
"""A data set that is read sooner needs no bar that comes and goes."""


@contextmanager
def open_view(
    kind: ViewKind, console: Console, clock: Callable[[], float] = time.monotonic
) -> Iterator[Observer]:
    """An observer that shows a run on `console` until the end of the `with` block.

    `auto` is `live` on a terminal that can redraw lines, else `plain`. `clock` gives seconds.
    """
    if kind == "quiet":
        yield ignore
    elif kind == "plain" or (kind == "auto" and not can_redraw(console)):
        yield PlainView(lines_on(console), clock)
    else:
        from launch.display.live_view import open_live_view  # only where one is shown

        with open_live_view(console, clock) as observer:
            yield observer


def can_redraw(console: Console) -> bool:
    """Whether the live view would look right: bars and arrows need more than ASCII."""
    unicode = console.encoding.lower().startswith("utf")
    return console.is_terminal and not console.is_dumb_terminal and unicode


@contextmanager
def reading_shown(
    kind: ViewKind, console: Console, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str, int, int], None]]:
    """A function to call, while examples are read or evaluated, with what is done, with how many,
    and how many there are. On a terminal it shows a bar, elsewhere a line every ten seconds.
    """
    if kind == "quiet":
        yield lambda what, done, total: None
    elif kind == "plain" or not can_redraw(console):
        yield PlainView(lines_on(console), clock).reading
    else:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task, began = bar.add_task("", total=None, visible=False), clock()

            def show(what: str, done: int, total: int) -> None:
                if bar.tasks[0].description != what:  # its speed is another
                    bar.reset(task, description=what, total=total)
                visible = clock() - began >= _QUIET_S
                bar.update(task, completed=done, total=total, visible=visible)

            yield show


@contextmanager
def looking_shown() -> Iterator[Callable[[str, int, int], None]]:
    """As `reading_shown`, on standard error: what is found goes to standard output."""
    from rich.console import Console

    with reading_shown("auto", Console(stderr=True)) as show:
        yield show
