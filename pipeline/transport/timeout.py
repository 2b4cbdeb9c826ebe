"""Time-outs that do not count time in which the process was stopped (Ctrl-Z, suspended jobs)."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S = 0.2
"""How often a waiting end looks whether it is still wanted."""
_LONGEST_POLL_S = 1.0
"""No poll takes longer, but where the process was stopped: that is no time of waiting."""


class Timeout:
    """A wait of `seconds` at most, in polls; `used_s` of them are over."""

    def __init__(self, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self.used_s, self._seconds, self._clock, self._polled_at = 0.0, seconds, clock, clock()

    def next_poll_s(self) -> float:
        """How long the next poll may take, in seconds; 0 where all are used up."""
        before, self._polled_at = self._polled_at, self._clock()
        self.used_s += min(self._polled_at - before, _LONGEST_POLL_S)
        return max(0.0, min(self._seconds - self.used_s, POLL_S))

    def pause(self) -> None:
        """Leave out what has passed since the last poll: what was waited for was something else."""
        self._polled_at = self._clock()
