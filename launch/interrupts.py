"""Ctrl-C, SIGTERM, SIGHUP: the first asks the run to end with a checkpoint, the second ends it."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; what clusters and `kill` send; what a closed terminal sends."""


@contextmanager
def interrupts_noted() -> Iterator[Callable[[], bool]]:
    """Yields a question: has an interruption been asked for?

    A second signal raises KeyboardInterrupt, which unwinds through all that cleans up; from then
    on signals are ignored, so that nothing interrupts the cleaning. What was ignored before stays
    so: `nohup`, and scripts that start a command in the background, mean it.
    """
    asked: list[int] = []
    heeded = [number for number in INTERRUPTIONS if signal.getsignal(number) != signal.SIG_IGN]

    def note(number: int, frame: object) -> None:
        if asked:
            for ignored in INTERRUPTIONS:
                signal.signal(ignored, signal.SIG_IGN)
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
