"""What the tests of a run have shown so far; `schedule.patience` ends a run by it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class BestSoFar:
    """The least tested error, and the first epoch that had it (from 1; 0: none had any yet).

    `error`: wrong predictions in percent, or the loss where nothing is predicted. `tested`: the
    last epoch that was tested.
    """

    epoch: int = 0
    error: float = inf
    tested: int = 0

    def after(self, epoch: int, error: float | None) -> BestSoFar:
        """With the test of a later epoch. None, where its loss was not finite, is no success."""
        if error is not None and error < self.error:
            return BestSoFar(epoch, error, epoch)
        return BestSoFar(self.epoch, self.error, epoch)

    @property
    def epochs_since(self) -> int:
        """Epochs that brought no lower error."""
        return self.tested - self.epoch

    def in_words(self) -> str:
        """Why a run may end, as a part of a sentence."""
        since = f"{self.epochs_since} epoch{'s' * (self.epochs_since != 1)}"
        return f"{since} brought no lower tested error than epoch {self.epoch}"
