"""Losses and states that are not finite: what `runtime.on_nonfinite` asks for.

stop         the run ends, naming block and batch
skip_batch   the block learns nothing from the batch; others do, unless theirs isn't finite either
rollback     the run goes back to its newest snapshot, and leaves out the batch that is to blame
             (`bad_batches.py`)
"""

from __future__ import annotations

from itertools import chain
from math import isfinite
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from pipeline.errors import NonFiniteLossError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from pipeline.learning.block import Block

Policy: TypeAlias = Literal["stop", "skip_batch", "rollback"]
_NEVER = 2**63 - 1


class FiniteCheck:
    """Looks at every loss. On a CUDA device, unless batches are to be skipped, it only takes note
    there, so that nobody waits for the device; `settle` reads the notes."""

    def __init__(self, policy: Policy, blocks: Sequence[int], at_work: Tensor) -> None:
        """`at_work`: the id of the batch at work, on the device."""
        device = at_work.device
        self._policy, self._at_work = policy, at_work
        self._later = device.type == "cuda" and policy != "skip_batch"
        self._rows = {block: row for row, block in enumerate(blocks)}
        self.first_bad = torch.full((len(blocks),), _NEVER, device=device)
        """By block, the first batch whose loss was not finite, as far as it was noted."""
        self._never = torch.full((), _NEVER, device=device)

    def passes(self, loss: Tensor, block: int, batch_id: int) -> bool:
        """Whether the block may learn from this loss.

        Raises:
            NonFiniteLossError: where the run is to stop or to go back, and it is known already.
        """
        if self._later:
            first_bad, loss = self.first_bad[self._rows[block]], loss.detach()
            # as isfinite, in 2 kernels
            bad = torch.where(loss - loss == 0, self._never, self._at_work)
            torch.minimum(first_bad, bad, out=first_bad)
            return True
        if isfinite(loss.item()):
            return True
        if self._policy != "skip_batch":
            raise NonFiniteLossError(block, batch_id)
        return False

    def settle(self) -> None:
        """Before a snapshot or a report: a state that such a loss has spoilt is never kept.

        Raises:
            NonFiniteLossError: for the first batch whose loss was not finite.
        """
        if self._later:
            worst = {block: int(self.first_bad[row]) for block, row in self._rows.items()}
            block = min(worst, key=lambda index: (worst[index], index))
            if worst[block] != _NEVER:
                raise NonFiniteLossError(block, worst[block])

    def statistics_of(self, blocks: Iterable[nn.Module]) -> list[tuple[Tensor, Tensor]]:
        """Batch statistics as they are before a batch that may be skipped: (live, copy)."""
        if self._policy != "skip_batch":
            return []
        buffers = [buffer for block in blocks for buffer in block.buffers()]
        return [(buffer, buffer.clone()) for buffer in buffers]


class StateCheck:
    """Looks at what blocks hold: a state that is spoilt is never kept, even where no loss has
    shown it yet.

    What does not learn may hold numbers that are not finite by design: a mask of -inf, the least
    value seen so far. Where that was so when the block was made, these very elements may be so
    ever after; all others, and whatever learns, are spoilt once they are.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        """`blocks`: as they were made, before anything is loaded or learned."""
        self._by_design = {
            (block.spec.index, name): ~torch.isfinite(tensor)
            for block in blocks
            # in a block of ours all is finite: no need to wait for the device
            if block.spec.custom or block.spec.rule
            for name, tensor in chain(block.named_parameters(), block.named_buffers())
            if not (tensor.requires_grad or _is_finite(tensor))
        }

    def check(self, states: Mapping[int, Mapping[str, Tensor]], batch_id: int) -> None:
        """Of every block, by name, after batch `batch_id`.

        Raises:
            NonFiniteLossError: for the first block that is spoilt.
        """
        for block, tensors in states.items():
            for name, tensor in tensors.items():
                if not (_is_finite(tensor) or self._is_excused(block, name, tensor)):
                    raise NonFiniteLossError(block, batch_id, "state")

    def _is_excused(self, block: int, name: str, tensor: Tensor) -> bool:
        by_design = self._by_design.get((block, name))
        if by_design is None:
            return False
        if by_design.shape != tensor.shape:
            return True  # no element is what it was
        return bool((torch.isfinite(tensor) | by_design).all())


def _is_finite(tensor: Tensor) -> bool:
    """Whether all of it is; whole numbers are."""
    numbers = tensor.is_floating_point() or tensor.is_complex()
    return not numbers or bool(torch.isfinite(tensor).all())


@torch.no_grad()
def restore(statistics: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Undo what the forward pass of a skipped batch has changed."""
    for live, copy in statistics:
        live.copy_(copy)
