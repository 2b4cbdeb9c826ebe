"""What happens where a loss is not finite: `runtime.on_nonfinite`.

stop         the run ends, naming block and batch
skip_batch   the block, and those after it, learn nothing from the batch
rollback     the run goes back to its newest snapshot, and leaves the batch out
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from pipeline.errors import NonFiniteLossError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

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
        self._first_bad = torch.full((len(blocks),), _NEVER, device=device)
        self._never = torch.full((), _NEVER, device=device)

    def passes(self, loss: Tensor, block: int, batch_id: int) -> bool:
        """Whether the block may learn from this loss.

        Raises:
            NonFiniteLossError: where the run is to stop or to go back, and it is known already.
        """
        if self._later:
            self._note(loss, block)
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
            worst = {block: int(self._first_bad[row]) for block, row in self._rows.items()}
            block = min(worst, key=lambda index: (worst[index], index))
            if worst[block] != _NEVER:
                raise NonFiniteLossError(block, worst[block])

    def _note(self, loss: Tensor, block: int) -> None:
        first_bad, loss = self._first_bad[self._rows[block]], loss.detach()
        bad = torch.where(loss - loss == 0, self._never, self._at_work)  # as isfinite, in 2 kernels
        torch.minimum(first_bad, bad, out=first_bad)

    def memory(self) -> Tensor:
        """What taking note changes."""
        return self._first_bad

    def statistics_of(self, blocks: Iterable[nn.Module]) -> list[tuple[Tensor, Tensor]]:
        """Batch statistics as they are before a batch that may be skipped: (live, copy)."""
        if self._policy != "skip_batch":
            return []
        buffers = [buffer for block in blocks for buffer in block.buffers()]
        return [(buffer, buffer.clone()) for buffer in buffers]


def check_state(states: Mapping[int, Mapping[str, Tensor]], batch_id: int) -> None:
    """A state that is spoilt is never kept, even where no loss has shown it yet.

    Raises:
        NonFiniteLossError: for the first block that holds a number which is not finite.
    """
    for block, tensors in states.items():
        floating = (tensor for tensor in tensors.values() if tensor.is_floating_point())
        if not all(bool(torch.isfinite(tensor).all()) for tensor in floating):
            raise NonFiniteLossError(block, batch_id, "state")


@torch.no_grad()
def put_back(statistics: Iterable[tuple[Tensor, Tensor]]) -> None:
    """The batch was skipped: what its forward pass has changed is as before."""
    for live, copy in statistics:
        live.copy_(copy)
