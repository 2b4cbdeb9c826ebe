"""Whether a run goes on after it has lost a stage. No clock, no sockets.

It does, unless stages are lost too often (`runtime.max_restarts` within an hour), or the same
stage fails at the same batch again: then the cause is in the batch or the network, and would
come back for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import StageFailedError

if TYPE_CHECKING:
    from pipeline.errors import StageLostError

WITHIN_S = 3600.0


class Restarts:
    """The faults of a run so far; times are seconds of one monotonic clock."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._recent: list[tuple[float, StageLostError]] = []
        self._seen: set[tuple[int, int]] = set()

    @property
    def count(self) -> int:
        """How often the run has begun again within the last hour."""
        return len(self._recent)

    def allow(self, fault: StageLostError, now: float) -> None:
        """Take note of a fault from which the run is to recover.

        Raises:
            StageFailedError: where it ends instead: the first cause.
        """
        self._recent = [(at, known) for at, known in self._recent if now - at < WITHIN_S]
        if len(self._recent) >= self.most:
            raise self._first_cause([*(known for _, known in self._recent), fault])
        # its traceback would keep what the lost attempt had open: links, mapped memory
        self._recent.append((now, fault.with_traceback(None)))
        self._seen.add((fault.stage, fault.batch_id))

    def came_back(self, fault: StageLostError) -> bool:
        """Whether the same stage has failed at the same batch before."""
        return fault.batch_id > 0 and (fault.stage, fault.batch_id) in self._seen

    def _first_cause(self, faults: list[StageLostError]) -> StageFailedError:
        first = faults[0]
        if len(faults) == 1:
            return first
        text = (
            f"{first.summary}; after that {len(faults) - 1} more faults within an hour, the last: "
            f"{faults[-1].summary} (runtime.max_restarts {self.most})"
        )
        return StageFailedError(text, first.remote_traceback)
