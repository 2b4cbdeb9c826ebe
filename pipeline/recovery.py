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
        self._faults: list[tuple[float, StageLostError]] = []

    @property
    def count(self) -> int:
        """How often the run has begun again."""
        return len(self._faults)

    def allow(self, fault: StageLostError, now: float) -> None:
        """Take note of a fault from which the run is to recover.

        Raises:
            StageFailedError: where it ends instead: the first cause.
        """
        if self.came_back(fault):
            raise StageFailedError(
                f"{fault.summary} (again at the same batch after a restart: this is no accident)",
                fault.remote_traceback,
            )
        recent = [known for at, known in self._faults if now - at < WITHIN_S]
        if len(recent) >= self.most:
            raise self._first_cause([*recent, fault])
        self._faults.append((now, fault))

    def came_back(self, fault: StageLostError) -> bool:
        """Whether the same stage has failed at the same batch before."""
        at = (fault.stage, fault.batch_id)
        return fault.batch_id > 0 and any(
            (known.stage, known.batch_id) == at for _, known in self._faults
        )

    def _first_cause(self, faults: list[StageLostError]) -> StageFailedError:
        first = faults[0]
        if len(faults) == 1:
            return first
        text = (
            f"{first.summary}; after that {len(faults) - 1} more faults within an hour, the last: "
            f"{faults[-1].summary} (runtime.max_restarts {self.most})"
        )
        return StageFailedError(text, first.remote_traceback)
