"""Which batches `runtime.on_nonfinite: rollback` leaves out. No clock, no sockets.

A loss that is not finite shows at its batch. A state that is not shows only where it is looked at,
at a snapshot, and may give finite losses until then. So the batch at which a fault is found need
not be the one that caused it: it is one of those since the newest snapshot. The run goes back there
and looks at the state after every batch; the first after which anything is not finite is left out.

    fed      1  2  3  4 S     found at the snapshot
    again    1? 2!            2 is to blame
    again    1? -  3? 4? S    without it, as if it had never been

Where more than half of a run's batches would be left out, it fails: it would end with weights that
have learned from next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import StageFailedError

if TYPE_CHECKING:
    from pipeline.schedule.feed import Course

MOST_LEFT_OUT = 10
"""Batches that are left out before the run gives up, or half of its batches if these are fewer."""
MOST_TRIES = 3 * MOST_LEFT_OUT
"""From one snapshot: one to look for the first bad batch, one for each; the rest is for stages that
find out in another order, and for faults that come and go."""
_CURE = "try a lower optimizer.lr"


@dataclass(frozen=True, slots=True)
class BadBatchSearch:
    """What was decided so far, for the attempt that comes next."""

    left_out: frozenset[int] = frozenset()
    """Training batches of which only the count is fed."""
    check_until: int = 0
    """Up to this batch the state is looked at after each."""
    tries: int = 0
    """How often the run has gone back to the same snapshot."""
    last: int | None = None
    """The batch that was left out last; None: the one to blame is still to be found."""

    def after(self, found: int, start: int, course: Course) -> BadBatchSearch:
        """What to do about a fault that was found at batch `found`.

        Args:
            start: the step of the snapshot that the run goes back to.

        Raises:
            StageFailedError: where leaving out batches does not help.
        """
        # after a batch that was looked at closely, all before it are cleared
        first = found if found <= self.check_until else start + 1
        suspects = [batch for batch in range(first, found + 1) if batch not in self.left_out]
        if not suspects:
            raise StageFailedError(
                f"what is not finite at batch {found} comes of no batch after step {start}: "
                f"leaving out batches does not help; {_CURE}"
            )
        if self.tries == MOST_TRIES:
            raise StageFailedError(
                f"the run went back to step {start} {MOST_TRIES} times for losses or states that "
                f"are not finite, the last at batch {found}; {_CURE}"
            )
        until = max(self.check_until, course.snapshot_after(found))
        tries = self.tries + 1
        if len(suspects) > 1:
            return BadBatchSearch(self.left_out, until, tries)
        # what was decided on a later batch was decided on another history: it is tried again, so
        # that the order in which stages find out does not matter
        bad = suspects[0]
        left_out = frozenset(batch for batch in self.left_out if batch < bad) | {bad}
        if len(left_out) > min(MOST_LEFT_OUT, course.steps // 2):
            raise StageFailedError(
                f"{len(left_out)} of {course.steps} batches gave losses or states that are not "
                f"finite, the last {bad}: leaving them out does not help; {_CURE}"
            )
        return BadBatchSearch(left_out, until, tries, bad)

    def __str__(self) -> str:
        """As the end of a sentence: how the run goes on."""
        if self.last is None:
            return f"to look after every batch, up to {self.check_until}, for the one to blame"
        return f"without batch {self.last}"
