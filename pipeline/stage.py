"""Consecutive blocks: train or evaluate one batch. No input, no output, no clock.

    x ──▶ block ──▶ h ──dropout, pool──▶ passed ──▶ next block …
                    └──▶ heads ──▶ loss ──▶ the weights of this block's group

Blocks that learn together are a group; by default each block is one. What a group passes on is
computed before it learns and is detached (invariant 2), so the last block's output is handed to
`send` before its weights change. Global backprop is the group that holds the whole network.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from pipeline.compiled import Compiler
from pipeline.finite import FiniteCheck, put_back
from pipeline.metrics import Counters
from pipeline.specs import in_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pipeline.augment import Preprocess
    from pipeline.block import Block
    from pipeline.finite import Policy
    from pipeline.losses import LossValue
    from pipeline.specs import BlockSpec

    Send: TypeAlias = Callable[[Tensor], None]


class Stage:
    """Trains its blocks from their local losses, each batch as it comes by.

    The first stage of a network also has the `preprocess` that turns images into its input.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        preprocess: Preprocess | None,
        on_nonfinite: Policy = "stop",
    ) -> None:
        self.blocks = list(blocks)
        self._preprocess = preprocess
        self._groups = in_runs(self.blocks, lambda block: block.spec.same_group)
        self._shortcuts = Shortcuts(block.spec for block in blocks)
        indices = [block.spec.index for block in blocks]
        self._finite = FiniteCheck(on_nonfinite, indices, blocks[0].device)
        self._skipped: dict[int, list[int]] = {}
        self._remarks: list[str] = []
        self.at_work: int | None = None
        """Index of the block at work, for error messages."""
        self.training = Counters(indices, blocks[0].device)
        self.evaluation = Counters(indices, blocks[0].device)

    def train(
        self,
        x: Tensor,
        labels: Tensor,
        *,
        batch_id: int,
        lr: float,
        send: Send,
        learner: int | None = None,
    ) -> None:
        """One step of every block; in greedy training of the `learner` and its group.

        Args:
            x: what arrived: (n, *in_shape), or uint8 images for the first stage; not modified.
            labels: (n,) int64.
            send: receives the last block's output, (n, *out_shape), unless it is the output's or
                the learner comes before the end of this stage.
        """
        if self._preprocess:
            x = self._preprocess.train(x, batch_id)
        self._shortcuts.clear()
        for group in self._groups:
            ends = group[-1].spec.index
            if learner not in (None, ends):
                rest(group)
            if learner is None:
                x = self._step(group, x, labels, batch_id, lr, send)
            elif ends < learner:
                x = self._frozen(group, x, send)
            elif ends == learner:
                self._step(group, x, labels, batch_id, lr, _to_nobody)

    def ends_at(self, learner: int | None) -> bool:
        """Whether greedy training goes no further than this stage, which holds the learner."""
        return learner is not None and learner <= self.blocks[-1].spec.index

    @torch.no_grad()
    def _frozen(self, group: Sequence[Block], x: Tensor, send: Send) -> Tensor:
        """What a group that has finished learning passes on: as in a test."""
        for block in self._in_turn(group):
            h = block(x, batch_id=None, shortcut=self._shortcuts.at(block.spec, x))
            x = block.transfer(h, batch_id=None)
        if group[-1] is self.blocks[-1]:
            send(x)
        return x

    def _step(
        self,
        group: Sequence[Block],
        x: Tensor,
        labels: Tensor,
        batch_id: int,
        lr: float,
        send: Send,
    ) -> Tensor:
        """One step of the blocks of a group, from all their losses; gives what it passes on."""
        values: dict[Block, LossValue] = {}
        statistics, received = self._finite.statistics_of(group), x
        for block in self._in_turn(group):
            h = block(x, batch_id=batch_id, shortcut=self._shortcuts.at(block.spec, x))
            ends = block is group[-1]
            with torch.set_grad_enabled(not ends):
                x = block.transfer(h.detach() if ends else h, batch_id=batch_id)
            if block is self.blocks[-1] and not block.spec.is_output:
                send(x)
            if block.has_loss:
                values[block] = block.local_loss(h, labels, received)
                received = x
            del h  # learning gives its memory back as soon as it can
        self._learn(group, values, labels, batch_id, lr, statistics)
        self._shortcuts.detach()
        return x

    def _learn(
        self,
        group: Sequence[Block],
        values: Mapping[Block, LossValue],
        labels: Tensor,
        batch_id: int,
        lr: float,
        statistics: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """Learn and count, unless the batch is to be skipped."""
        losses = [value.loss for value in values.values()]
        loss = sum(losses[1:], start=losses[0])
        if not self._finite.passes(loss, group[-1].spec.index, batch_id):
            put_back(statistics)
            self._skipped.setdefault(group[-1].spec.index, []).append(batch_id)
            for block in values:
                self.training.skip(block.spec.index)
            return
        learn(group, loss, lr)
        for block, value in values.items():
            self._count(self.training, block, value, labels)

    def take_skipped(self) -> dict[int, list[int]]:
        """The batches that each block has skipped since this was asked last."""
        skipped, self._skipped = self._skipped, {}
        return skipped

    def compile(self) -> None:
        """From now on blocks compute with what torch.compile makes of them."""
        compiler = Compiler(self._remarks.append)
        for block in self.blocks:
            block.use(compiler)

    def take_remarks(self) -> list[str]:
        """What a person who watches should know, since this was asked last."""
        remarks = self._remarks.copy()
        self._remarks.clear()
        return remarks

    def settle(self) -> None:
        """Before a report or a snapshot.

        Raises:
            NonFiniteLossError: where a loss was not finite and only now comes to light.
        """
        self._finite.settle()

    @torch.no_grad()
    def evaluate(
        self, x: Tensor, labels: Tensor, *, send: Send, learner: int | None = None
    ) -> None:
        """Count loss and errors of the output block, or of the learner in greedy training;
        changes nothing else (invariant 8)."""
        if self._preprocess:
            x = self._preprocess.evaluate(x)
        for block in self._in_turn(self.blocks):
            h = block(x, batch_id=None, shortcut=self._shortcuts.at(block.spec, x))
            if block.spec.is_output or block.spec.index == learner:
                self._count(self.evaluation, block, block.local_loss(h, labels, x), labels)
                return
            x = block.transfer(h, batch_id=None)
        send(x)

    def state(self) -> dict[int, dict[str, Tensor]]:
        """The live tensors of every block, by block index."""
        return {block.spec.index: block.state() for block in self.blocks}

    def load(self, states: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Overwrite the state of every block.

        Raises:
            CheckpointError: where a state is not of the block it is for.
        """
        for block in self.blocks:
            block.load(states[block.spec.index])

    def _in_turn(self, blocks: Iterable[Block]) -> Iterator[Block]:
        for block in blocks:
            self.at_work = block.spec.index
            yield block
        self.at_work = None

    @staticmethod
    def _count(counters: Counters, block: Block, value: LossValue, labels: Tensor) -> None:
        counters.add(block.spec.index, value, len(labels))


def _to_nobody(passed: Tensor) -> None:
    """What a greedy learner passes on while it learns is of no use to anybody."""


class Shortcuts:
    """The inputs that residual connections carry past the blocks they span."""

    def __init__(self, specs: Iterable[BlockSpec]) -> None:
        self._sources = {spec.shortcut.source for spec in specs if spec.shortcut}
        self._carried: dict[int, Tensor] = {}

    def at(self, spec: BlockSpec, x: Tensor) -> Tensor | None:
        """Keeps the input x of a block where a shortcut begins; gives what ends in this block."""
        if spec.index in self._sources:
            self._carried[spec.index] = x
        return self._carried.pop(spec.shortcut.source) if spec.shortcut else None

    def clear(self) -> None:
        """Forget what greedy training, which may end within a span, has left behind."""
        self._carried.clear()

    def detach(self) -> None:
        """At the end of a group: what goes past it brings no gradient back to it."""
        self._carried = {source: x.detach() for source, x in self._carried.items()}


def rest(group: Sequence[Block]) -> None:
    """These blocks learn no more, or not yet, and give back what only learning needs."""
    for block in group:
        block.rest()


def learn(group: Sequence[Block], loss: Tensor, lr: float) -> None:
    """One step on the parameters of blocks that learn together; gradients are freed at once."""
    learned = [block.learned for block in group]
    gradients = iter(torch.autograd.grad(loss, list(chain(*learned))))
    for block, own in zip(group, learned, strict=True):
        block.update([next(gradients) for _ in own], lr)
