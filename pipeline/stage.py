"""Consecutive blocks: train or evaluate one batch. No input, no output, no clock.

    x ──▶ block ──▶ h ──dropout, pool──▶ passed ──▶ next block …
                    └──▶ heads ──▶ loss ──▶ this block's weights

What a block passes on is computed before it learns and is detached (invariant 2), so the last
block's output is handed to `send` before its weights change.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from pipeline.metrics import Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pipeline.augment import Preprocess
    from pipeline.block import Block
    from pipeline.losses import LossValue

    Send: TypeAlias = Callable[[Tensor], None]


class Stage:
    """Trains its blocks from their local losses, each batch as it comes by.

    The first stage of a network also has the `preprocess` that turns images into its input.
    """

    def __init__(self, blocks: Sequence[Block], preprocess: Preprocess | None) -> None:
        self.blocks = list(blocks)
        self._preprocess = preprocess
        indices = [block.spec.index for block in blocks]
        self.at_work: int | None = None
        """Index of the block at work, for error messages."""
        self.training = Counters(indices, blocks[0].device)
        self.evaluation = Counters(indices, blocks[0].device)

    def train(self, x: Tensor, labels: Tensor, *, batch_id: int, lr: float, send: Send) -> None:
        """One step of every block.

        Args:
            x: what arrived: (n, *in_shape), or uint8 images for the first stage; not modified.
            labels: (n,) int64.
            send: receives the last block's output, (n, *out_shape), unless it is the output's.
        """
        if self._preprocess:
            x = self._preprocess.train(x, batch_id)
        for block in self._in_turn():
            h, received = block(x, training=True), x
            with torch.no_grad():
                x = block.transfer(h.detach(), batch_id=batch_id)
            if block is self.blocks[-1] and not block.spec.is_output:
                send(x)
            value = block.local_loss(h, labels, received)
            block.learn(value.loss, lr)
            self._count(self.training, block, value, labels)

    @torch.no_grad()
    def evaluate(self, x: Tensor, labels: Tensor, *, send: Send) -> None:
        """Count the output block's loss and errors; changes nothing else (invariant 8)."""
        if self._preprocess:
            x = self._preprocess.evaluate(x)
        for block in self._in_turn():
            h = block(x, training=False)
            if block.spec.is_output:
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

    def _in_turn(self) -> Iterator[Block]:
        for block in self.blocks:
            self.at_work = block.spec.index
            yield block
        self.at_work = None

    @staticmethod
    def _count(counters: Counters, block: Block, value: LossValue, labels: Tensor) -> None:
        counters.add(block.spec.index, value, len(labels))


class GlobalStage(Stage):
    """The whole network trained by global backprop: `glob`, or `glob+…` with local losses added.

    The same blocks, dropout and optimizers; only the source of the gradient differs. It needs
    every block in one process, since the gradient flows upstream.
    """

    def train(self, x: Tensor, labels: Tensor, *, batch_id: int, lr: float, send: Send) -> None:
        """One step of every block from the sum of all losses; nothing is sent."""
        if self._preprocess:
            x = self._preprocess.train(x, batch_id)
        losses = []
        for block in self._in_turn():
            h, received = block(x, training=True), x
            x = block.transfer(h, batch_id=batch_id)
            if block.has_loss:
                value = block.local_loss(h, labels, received)
                losses.append(value.loss)
                self._count(self.training, block, value, labels)
        self._learn(torch.stack(losses).sum(), lr)

    def _learn(self, loss: Tensor, lr: float) -> None:
        learned = [block.learned for block in self.blocks]
        gradients = iter(torch.autograd.grad(loss, list(chain(*learned))))
        for block, own in zip(self.blocks, learned, strict=True):
            block.update([next(gradients) for _ in own], lr)
