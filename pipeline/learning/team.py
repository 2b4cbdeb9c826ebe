"""The steps of a member of a team: what it found is given away, and the step is made when the sum
is needed, before the next time that the group computes.

    batch t     group 0  forward, backward, give │ group 1  forward, backward, give │ …
    batch t+1   group 0  total, step, forward, …          while others add up what was given

What is given, in this order:

    flags        1 where the loss is finite, then 1 for each parameter that has a gradient
    gradients    of the mean over the share, times its weight: they add up to that over the batch
    statistics   how buffers have changed, times the weight: all get the mean of the changes; of a
                 round, running statistics take one batch after the other
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.learning.shares import Contribution, Share, share_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pipeline.learning.block import Block
    from pipeline.learning.exchange import Exchange, Key
    from pipeline.learning.losses import LossValue

    Gradients = Sequence[Tensor | None]
    Group = Sequence[Block]


@dataclass(slots=True)
class _Given:
    """What this member gave, and what is to be done once all have."""

    key: Key
    group: Group
    lr: float | Tensor
    before: list[Tensor]
    values: Mapping[Block, LossValue]
    predictions: int


class Team:
    """One member's view of its team.

    Args:
        exchange: its end of what adds up.
        may_skip: whether a batch may be skipped (`runtime.on_nonfinite: skip_batch`).
        count: called with the block, the loss value and the number of predictions of each loss
            that was learned from.
        skip: called with the group and the batch where nothing was.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        may_skip: bool,
        count: Callable[[Block, LossValue, int], None],
        skip: Callable[[Group, int], None],
    ) -> None:
        self._exchange, self._may_skip = exchange, may_skip
        self._count, self._skip = count, skip
        self._before: list[Tensor] = []
        self._given: dict[int, _Given] = {}
        """By the last block of a group, in the order in which it was given."""

    @property
    def members(self) -> int:
        """How many there are."""
        return self._exchange.members

    def share(self, examples: int) -> Share:
        """This member's of a batch."""
        return share_of(examples, self._exchange.member, self._exchange.members)

    def begin(self, group: Group) -> None:
        """Before the group computes in training: make the step of the batch before."""
        self.complete(group)
        self._before = [buffer.detach().clone() for buffer, _ in _moving(group)]

    def give(
        self,
        group: Group,
        batch_id: int,
        gradients: Gradients | None,
        contribution: Contribution,
        lr: float | Tensor,
        values: Mapping[Block, LossValue],
        predictions: int,
    ) -> None:
        """After it has computed.

        Args:
            batch_id: of the batch, or of the first of its round.
            gradients: of all that the group learns, in order, weighted; None: the loss was not
                finite, or there was nothing to learn from.
        """
        learned = [parameter for block in group for parameter in block.learned]
        is_finite = gradients is not None or not contribution.weight
        given = [None] * len(learned) if gradients is None else gradients
        flags = torch.tensor([is_finite, *(one is not None for one in given)], dtype=torch.uint8)
        found = [flags]
        found += [_as_parameter(one, p) for one, p in zip(given, learned, strict=True)]
        for (live, fades), before in zip(_moving(group), self._before, strict=True):
            found.append(_change(live.detach(), before, contribution, fades))
        key = batch_id, group[-1].spec.index
        lr = lr.clone() if isinstance(lr, Tensor) else lr  # the next batch may have another
        self._given[key[1]] = _Given(key, group, lr, self._before, values, predictions)
        self._exchange.give(key, found)

    def complete(self, group: Group) -> None:
        """Make the group's step, if it has one to make; waits for the other members."""
        given = self._given.pop(group[-1].spec.index, None)
        if given is None:
            return
        flags, *total = self._exchange.total(given.key)
        learned = [parameter for block in group for parameter in block.learned]
        changes = total[len(learned) :]
        for (live, _), before in zip(_moving(group), given.before, strict=True):
            live.detach().copy_(before)
        asks = self._may_skip or any(block.spec.may_miss_gradients for block in group)
        finite, *has = flags.tolist() if asks else [self._exchange.members] * (1 + len(learned))
        if finite < self._exchange.members:
            self._skip(group, given.key[0])
            return
        for (live, _), change in zip(_moving(group), changes, strict=True):
            live.detach().add_(change)
        gradients = iter(zip(total, has, strict=False))
        for block in group:
            own = [next(gradients) for _ in block.learned]
            block.update([each if has_any else None for each, has_any in own], given.lr)
        for block, value in given.values.items():
            self._count(block, value, given.predictions)

    def settle(self) -> None:
        """Make every step that is still to be made."""
        for given in list(self._given.values()):
            self.complete(given.group)


def sizes(group: Group) -> list[int]:
    """Bytes of each tensor that a member gives of a group."""
    learned = [parameter for block in group for parameter in block.learned]
    moving = [buffer for buffer, _ in _moving(group)]
    return [1 + len(learned), *(tensor.nbytes for tensor in (*learned, *moving))]


def _moving(group: Group) -> Iterator[tuple[Tensor, float | None]]:
    """Buffers that training may change: those of batch norms; of a user's own network or rule, all
    that are numbers. Each with what a later batch leaves of its change, where that is known."""
    for block in group:
        is_users = block.spec.custom or block.spec.rule
        for module in block.modules():
            if is_users or isinstance(module, _BatchNorm):
                fades = None
                if isinstance(module, _BatchNorm) and module.momentum is not None:
                    fades = 1.0 - module.momentum
                for buffer in module.buffers(recurse=False):
                    if buffer.dtype != torch.bool:
                        yield buffer, fades


def _as_parameter(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """Laid out in memory as the parameter, on every member; zeros for None."""
    like = parameter.detach()
    if gradient is None:
        return torch.zeros_like(like)
    fresh = torch.empty_like(like)
    return gradient if gradient.stride() == fresh.stride() else fresh.copy_(gradient)


def _change(
    live: Tensor, before: Tensor, contribution: Contribution, fades: float | None
) -> Tensor:
    """What this member adds to what a buffer was. What stays the same may be infinite.

    Running statistics take the batches of a round one after the other, in order: each of those that
    are later leaves `fades` of the change.
    """
    change = torch.where(live == before, torch.zeros_like(live), live - before)
    if not (live.is_floating_point() or live.is_complex()):
        return change.mul_(contribution.whole)
    weight, later = contribution.weight, contribution.later
    if later is not None and fades is not None and weight > 0:
        weight = fades**later
    return change.mul_(weight)
