"""Blocks that learn together: what they pass on, and one step on their parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pipeline.kernels.recompute import Activation
    from pipeline.learning.block import Block
    from pipeline.learning.losses import LossValue


@dataclass(slots=True)
class Pending:
    """A group that has computed what it passes on, and now is to learn."""

    activation: Activation | None
    """Of its last block."""
    received: Tensor
    """The input of the part that the activation belongs to."""
    passed: Tensor
    """(n, *out_shape), detached."""
    values: dict[Block, LossValue] = field(default_factory=dict)
    """Of the blocks before the last."""
    statistics: Sequence[tuple[Tensor, Tensor]] = ()
    """Those of batch norm, where the batch may be skipped: live, as they were before."""

    def take_activation(self) -> Activation:
        """It is needed once: learning gives its memory back as soon as it can."""
        activation, self.activation = self.activation, None
        assert activation is not None, "taken once"
        return activation


def rest(group: Sequence[Block]) -> None:
    """These blocks learn no more, or not yet, and give back what only learning needs."""
    for block in group:
        block.rest()


def learn(group: Sequence[Block], loss: Tensor, lr: float | Tensor) -> None:
    """One step on the parameters of blocks that learn together; gradients are freed at once."""
    learned = [block.learned for block in group]
    may_miss = any(block.spec.custom is not None for block in group)
    gradients = iter(_gradients(loss, list(chain(*learned)), may_miss=may_miss))
    for block, own in zip(group, learned, strict=True):
        block.update([next(gradients) for _ in own], lr)


def _gradients(
    loss: Tensor, learned: Sequence[Tensor], *, may_miss: bool
) -> Sequence[Tensor | None]:
    """One per parameter. A user's own network may leave some out, for a batch or for good: they
    get None. That a built-in block does is a bug, of which autograd tells."""
    if may_miss and not loss.requires_grad:
        return [None] * len(learned)
    return torch.autograd.grad(loss, learned, allow_unused=may_miss)
