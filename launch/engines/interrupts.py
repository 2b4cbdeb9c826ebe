"""Ctrl-C, SIGTERM, SIGHUP: the first asks the run to end with a checkpoint, the second ends it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; what clusters and `kill` send; what a closed terminal sends."""
INTERRUPTED = 130
"""Exit status of a command that one of them has ended."""
ONE_S = 1.0
"""Signals so close together are one: `timeout` sends its own to the child and to its group."""


def catch_interruptions() -> None:
    """Those that end a process without a word become KeyboardInterrupt, as Ctrl-C is: it unwinds
    through all that cleans up. Signals close together are one."""
    last = [-ONE_S]

    def interrupt(number: int, frame: object) -> None:
        before, last[0] = last[0], time.monotonic()
        if last[0] - before >= ONE_S:
            raise KeyboardInterrupt

    for number in INTERRUPTIONS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, interrupt)


def end_at_once_with(status: int) -> None:
    """From now on a signal ends this process with the status that the command has anyway: while
    Python takes down its modules, nobody catches a KeyboardInterrupt."""

    def end(number: int, frame: object) -> None:
        os._exit(status)

    for number in INTERRUPTIONS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


@contextmanager
def interrupts_noted(
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[], bool]]:
    """Yields a question: has an interruption been asked for?

    A second signal raises KeyboardInterrupt, which unwinds through all that cleans up; from then
    on signals are ignored, so that nothing interrupts the cleaning. What was ignored before stays
    so: `nohup`, and scripts that start a command in the background, mean it. Python lets only the
    main thread hear signals: in any other, nothing is noted.
    """
    if current_thread() is not main_thread():
        yield lambda: False
        return
    asked: list[float] = []
    heeded = [number for number in INTERRUPTIONS if signal.getsignal(number) != signal.SIG_IGN]

    def note(number: int, frame: object) -> None:
        asked.append(clock())
        if asked[-1] - asked[0] > ONE_S:
            for ignored in INTERRUPTIONS:
                signal.signal(ignored, signal.SIG_IGN)
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
