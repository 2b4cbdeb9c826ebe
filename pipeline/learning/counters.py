"""Counters that stay on the device: reading them is the only synchronisation, once a pass. Who
watches meanwhile sees them as they were a moment ago.

All that a batch adds is added there, so that a captured step (`cuda_graphs.py`) counts when it is
replayed.
"""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

import torch

from pipeline.device.cuda_streams import Glances, marks_of
from pipeline.schedule.reports import Tally

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from torch import Tensor

    from pipeline.learning.losses import LossValue


class Counters:
    """Sums of losses (float64) and errors (int64) per block, and the number of predictions."""

    def __init__(
        self, blocks: Sequence[int], device: torch.device, without_loss: Collection[int] = ()
    ) -> None:
        """`without_loss`: blocks of which there is nothing to count, and which have a tally."""
        self._blocks = {block: row for row, block in enumerate(blocks)}
        self._predicts = [False] * len(blocks)
        self._parts = [(False, False)] * len(blocks)
        """Whether a loss has a cross-entropy, and a similarity."""
        self._skipped = [False] * len(blocks)
        self._without_loss = [block in without_loss for block in blocks]
        self._counted = torch.zeros(len(blocks), dtype=torch.int64, device=device)
        self._losses = torch.zeros(len(blocks), 3, dtype=torch.float64, device=device)
        """As they are minimised; cross-entropies; similarities."""
        self._errors = torch.zeros(len(blocks), dtype=torch.int64, device=device)
        self._none = torch.zeros((), device=device)
        # made once: to index a tensor costs more than to add to it
        self._rows = list(
            zip(self._counted.unbind(), self._losses.unbind(), self._errors.unbind(), strict=True)
        )
        self._glances = Glances(marks_of(device))

    def add(self, block: int, value: LossValue, predictions: int) -> None:
        """Count a batch that asks for `predictions`; `value.loss` is their mean."""
        row = self._blocks[block]
        counted, losses, errors = self._rows[row]
        counted.add_(predictions)
        loss, entropy, matching = value.loss.detach(), value.cross_entropy, value.similarity
        self._parts[row] = entropy is not None, matching is not None
        found = (loss, *(self._none if part is None else part for part in (entropy, matching)))
        losses.add_(torch.stack(found).double(), alpha=predictions)
        if value.errors is not None:
            self._predicts[row] = True
            errors.add_(value.errors)

    def skip(self, block: int) -> None:
        """A batch of which nothing is counted: a block that skips them all still has a tally."""
        self._skipped[self._blocks[block]] = True

    def read(self) -> tuple[Tally, ...]:
        """The sums so far, one tally per block that was given anything to count, or has no
        loss to begin with."""
        return self._tallies(*(counted.tolist() for counted in self.sums))

    def glance(self) -> tuple[Tally, ...]:
        """The sums a moment ago, without waiting for the device; none where it never got so far."""
        found = self._glances.at(self.sums)
        return () if found is None else self._tallies(*found)

    def _tallies(
        self, losses: Sequence[Sequence[float]], errors: Sequence[int], counted: Sequence[int]
    ) -> tuple[Tally, ...]:
        tallies = []
        for block, row in self._blocks.items():
            if counted[row] or self._skipped[row] or self._without_loss[row]:
                wrong = errors[row] if self._predicts[row] else None
                loss, *parts = losses[row]
                entropy, matching = (
                    part if has else None for part, has in zip(parts, self._parts[row], strict=True)
                )
                tallies.append(Tally(block, counted[row], loss, wrong, entropy, matching))
        return tuple(tallies)

    @property
    def sums(self) -> tuple[Tensor, ...]:
        """What counting changes: of losses, errors and predictions, by block."""
        return self._losses, self._errors, self._counted

    def reset(self, tallies: Iterable[Tally] = ()) -> None:
        """Start again from nothing, or from the sums of a snapshot."""
        self._skipped = [False] * len(self._skipped)
        self._glances.forget()
        for counted in self.sums:
            counted.zero_()
        for tally in tallies:
            row = self._blocks[tally.block]
            self._counted[row] = tally.images
            self._skipped[row] = not tally.images
            self._predicts[row] = tally.errors is not None
            self._errors[row] = tally.errors or 0
            parts = tally.cross_entropy_sum, tally.similarity_sum
            self._parts[row] = parts[0] is not None, parts[1] is not None
            # a part that was not counted, by an earlier version, is not known of the whole pass
            unknown = nan if tally.images else 0.0
            known = (unknown if part is None else part for part in parts)
            self._losses[row] = torch.tensor([tally.loss_sum, *known], dtype=torch.float64)


class Confusion:
    """How many predictions of each class (rows) were taken for each (columns)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counted: Tensor | None = None

    def add(self, predicted: Tensor, targets: Tensor, classes: int) -> None:
        """Count predictions (n, …) for targets (n, …), both int64."""
        if self._counted is None:
            self._counted = torch.zeros(classes**2, dtype=torch.int64, device=self._device)
        pairs = targets.flatten() * classes + predicted.flatten()
        # not bincount, which asks a CUDA device how large its result is, and waits for it
        self._counted.index_add_(0, pairs, torch.ones_like(pairs))

    def read(self) -> tuple[int, ...]:
        """Row by row; empty where nothing was counted."""
        return () if self._counted is None else tuple(self._counted.tolist())

    def reset(self) -> None:
        """Start again from nothing."""
        self._counted = None
