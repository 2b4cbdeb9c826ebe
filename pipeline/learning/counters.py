"""Counters that stay on the device: reading them is the only synchronisation, once a pass. Who
watches meanwhile sees them as they were a moment ago.

All that a batch adds is added there, so that a captured step (`cuda_graphs.py`) counts when it is
replayed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.device.cuda_streams import Glances, marks_of
from pipeline.schedule.reports import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from pipeline.learning.losses import LossValue


class Counters:
    """Sums of loss (float64) and errors (int64) per block, and the number of predictions."""

    def __init__(self, blocks: Sequence[int], device: torch.device) -> None:
        self._blocks = {block: row for row, block in enumerate(blocks)}
        self._predicts = [False] * len(blocks)
        self._skipped = [False] * len(blocks)
        self._counted = torch.zeros(len(blocks), dtype=torch.int64, device=device)
        self._loss = torch.zeros(len(blocks), dtype=torch.float64, device=device)
        self._errors = torch.zeros(len(blocks), dtype=torch.int64, device=device)
        self._glances = Glances(marks_of(device))

    def add(self, block: int, value: LossValue, predictions: int) -> None:
        """Count a batch that asks for `predictions`; `value.loss` is their mean."""
        row = self._blocks[block]
        # `sums[row] += x` would also copy the sum onto itself
        self._counted[row].add_(predictions)
        self._loss[row].add_(value.loss.detach().double(), alpha=predictions)
        if value.errors is not None:
            self._predicts[row] = True
            self._errors[row].add_(value.errors)

    def skip(self, block: int) -> None:
        """A batch of which nothing is counted: a block that skips them all still has a tally."""
        self._skipped[self._blocks[block]] = True

    def read(self) -> tuple[Tally, ...]:
        """The sums so far, one tally per block that was given anything to count."""
        return self._tallies(*(counted.tolist() for counted in self.sums))

    def glance(self) -> tuple[Tally, ...]:
        """The sums a moment ago, without waiting for the device; none where it never got so far."""
        found = self._glances.at(self.sums)
        return () if found is None else self._tallies(*found)

    def _tallies(
        self, loss: Sequence[float], errors: Sequence[int], counted: Sequence[int]
    ) -> tuple[Tally, ...]:
        return tuple(
            Tally(block, counted[row], loss[row], errors[row] if self._predicts[row] else None)
            for block, row in self._blocks.items()
            if counted[row] or self._skipped[row]
        )

    @property
    def sums(self) -> tuple[Tensor, ...]:
        """What counting changes: of losses, errors and predictions, by block."""
        return self._loss, self._errors, self._counted

    def reset(self, tallies: Iterable[Tally] = ()) -> None:
        """Start again from nothing, or from the sums of a snapshot."""
        self._skipped = [False] * len(self._skipped)
        self._glances.forget()
        for counted in self.sums:
            counted.zero_()
        for tally in tallies:
            row = self._blocks[tally.block]
            self._counted[row], self._loss[row] = tally.images, tally.loss_sum
            self._skipped[row] = not tally.images
            self._predicts[row] = tally.errors is not None
            self._errors[row] = tally.errors or 0
