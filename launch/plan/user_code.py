"""While a user's own function runs, which may take long, hang, or hold the interpreter: people are
told what is awaited, and signals end the process."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from threading import Timer, current_thread, main_thread
from typing import TYPE_CHECKING

from launch.engines.interrupts import INTERRUPTIONS
from pipeline.system.given import in_callers_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOLD_AFTER_S = 10.0


@contextmanager
def awaited(named: Mapping[str, str], doing: str) -> Iterator[None]:
    """Around calls of a user's own code; nothing where there is none, or where a caller's process
    is not ours to end.

    Python's own handlers of signals run between two of its instructions, so a call into C that
    does not come back would keep Ctrl-C waiting: the system's way to handle them does not.

    Args:
        named: as `Config.user_code` gives it.
        doing: what the code is called for, as "planning".
    """
    if not named or in_callers_process():
        yield
        return
    code = " and ".join(f"{key} {name}" for key, name in named.items())
    what = f"{doing}: waiting for {code} since {TOLD_AFTER_S:g} s (Ctrl-C ends it)"
    teller = Timer(TOLD_AFTER_S, lambda: print(what, file=sys.stderr, flush=True))
    teller.daemon = True
    teller.start()
    try:
        with _ended_by_signals():
            yield
    finally:
        teller.cancel()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    if current_thread() is not main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in INTERRUPTIONS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
