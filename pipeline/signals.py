"""Signals reach the whole terminal or job: only the process that a person talks to acts on them."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def signals_held(*numbers: signal.Signals) -> Iterator[None]:
    """A process started in here gets none of them from its first instruction on, nor do its
    children: they are blocked. What comes for this one meanwhile it gets at the end of the block;
    were they ignored, a signal that is to end the run could be lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
