"""In which precision a block computes (`runtime.precision`), and what lies between two blocks is
(`runtime.wire_dtype`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def autocast(device: torch.device, *, bf16: bool) -> torch.autocast:
    """Around whatever computes with layers: under bf16 they do so in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


@dataclass(frozen=True, slots=True)
class Between:
    """Activations on their way from one block to the next that learns apart from it.

    Where they are rounded, they are so between all such blocks, whether a link lies between the two
    or not: else results would depend on how blocks are divided among processes. What is carried
    beside them, and targets, stay as they are: their types are what a rule declares.

    Args:
        rounds: to bfloat16, whose 8 bits of mantissa links carry in half the bytes of float32.
        computed: the type in which the next block reads them.
    """

    rounds: bool = False
    computed: torch.dtype = torch.float32

    def left(self, x: Tensor) -> Tensor:
        """As the next block reads what one leaves."""
        if not self.rounds or not x.is_floating_point():
            return x
        return x.to(torch.bfloat16).to(self.computed)

    def sent(self, x: Tensor) -> Tensor:
        """What has `left`, as a link carries it, without loss."""
        return x.to(torch.bfloat16) if self.rounds and x.is_floating_point() else x

    def arrived(self, x: Tensor) -> Tensor:
        """What was `sent`, as it had left."""
        return x.to(self.computed) if self.rounds and x.dtype == torch.bfloat16 else x
