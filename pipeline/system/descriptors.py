"""File descriptors of this process: as many as it may have, and some that are kept back.

Connections of strangers use up descriptors; what the run itself opens later must find some.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress

from pipeline.errors import STAGES, ConfigError

MOST_RESERVED = 256
_OF_A_RUN, _OF_A_STAGE = 40, 2
"""Measured: 27 with one stage over tcp, and two connections of each (control and heartbeat)."""


def raise_limit() -> int:
    """Raise the soft limit of descriptors to the hard one, where that is allowed; the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return soft


class Reserve:
    """Descriptors that are held so that others can't take them.

    Args:
        limit: of this process; a quarter of it is held, but at most `MOST_RESERVED`.
    """

    def __init__(self, limit: int) -> None:
        self.size = min(max(limit, 0) // 4 if limit >= 0 else MOST_RESERVED, MOST_RESERVED)
        self._held: list[int] = []

    def hold(self) -> None:
        """Open descriptors up to `size`, or until the process has none left."""
        with suppress(OSError):
            while len(self._held) < self.size:
                self._held.append(os.open(os.devnull, os.O_RDONLY))

    def release(self) -> None:
        """Close them, so that the run can use them."""
        while self._held:
            os.close(self._held.pop())


def check_enough(stages: int, *, reserved: bool) -> None:
    """Whether this process may open what a run of so many stages needs.

    Args:
        reserved: whether a `Reserve` is held back from it.

    Raises:
        ConfigError: naming the limit, what is needed, and what to do.
    """
    limit, needed = raise_limit(), _OF_A_RUN + _OF_A_STAGE * stages
    if reserved:
        needed += needed // 3  # a quarter of the limit is held back
    if 0 <= limit < needed:
        raise ConfigError(
            f"{stages} processes: this one needs {needed} descriptors of files and sockets, and "
            f"may have {limit} (ulimit -n): raise that, or use fewer ",
            STAGES,
        )
