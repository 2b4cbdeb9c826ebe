"""File descriptors of this process: as many as it may have, and some that are kept back.

Strangers can only hold as many connections as there are descriptors for; what the run itself
opens later must find some.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress

MOST_RESERVED = 256


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
        """Take what is missing of them, as far as the process has any left."""
        with suppress(OSError):
            while len(self._held) < self.size:
                self._held.append(os.open(os.devnull, os.O_RDONLY))

    def release(self) -> None:
        """From now on the run can have them."""
        while self._held:
            os.close(self._held.pop())
