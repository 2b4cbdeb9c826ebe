"""Signals reach the whole terminal or job: only the process that a person talks to acts on them."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def signals_ignored(*numbers: signal.Signals) -> Iterator[None]:
    """A process started in here ignores them from its first instruction on, and so do its
    children. This one does so until the end of the block."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
