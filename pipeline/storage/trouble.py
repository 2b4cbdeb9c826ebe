"""A disk that refuses is told once, not with every attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Trouble:
    """Refusals of one thing: the first is told at once, repetitions are counted, the end is told.

    Args:
        tell: takes one line for the person who watches.
        meanwhile: what goes on while it lasts, as the end of a sentence.
        over: that it works again, as the beginning of one.
    """

    def __init__(self, tell: Callable[[str], None], *, meanwhile: str, over: str) -> None:
        self._tell, self._meanwhile, self._over = tell, meanwhile, over
        self._times = 0
        self.reason: str | None = None
        """Why it is refused now; None: it is not."""

    def refused(self, reason: str, *, for_good: str = "") -> None:
        """It was refused, again or for the first time.

        Args:
            for_good: what that means, where it will not end; in place of what goes on meanwhile.
        """
        if reason == self.reason:
            self._times += 1
            return
        before = f" (before that, {self._count()}: {self.reason})" if self.reason else ""
        self.reason, self._times = reason, 1
        self._tell(f"{reason}; {for_good or self._meanwhile}{before}")

    def over(self) -> None:
        """It worked."""
        if self.reason is None:
            return
        self._tell(f"{self._over}; refused {self._count()}: {self.reason}")
        self.reason = None

    def _count(self) -> str:
        return "once" if self._times == 1 else f"{self._times} times"
