"""Global backprop that holds less at once, as anyone would have it who is short of memory.

    recompute    input ─▶ blocks 0 1 ─▶ blocks 2 3 ─▶ …      of each segment only what arrives is
                           segment       segment             held; the rest is computed again when
                                                             the gradient comes back
    accumulate   rows 0 … 63, then rows 64 … 127             of a batch, and one step by the mean

Recomputed, a batch gives the same bits: masks of dropout belong to it, and running statistics see
it once (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from pipeline.kernels.recompute import Activation
from pipeline.learning.nonfinite import restore
from pipeline.learning.stage import Stage, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from pipeline.device.cuda_graphs import Send, Tensors
    from pipeline.learning.block import Block
    from pipeline.learning.losses import LossValue
    from pipeline.rules.rule import Batch


class FrugalBackprop(Stage):
    """A whole network without shortcuts, trained by global backprop alone.

    Args:
        recompute: blocks of a segment; 0: all is held.
        accumulate: parts of a batch; a smaller batch has as many, of at least one example.
    """

    def __init__(self, *given: Any, recompute: int, accumulate: int, **named: Any) -> None:
        super().__init__(*given, **named)
        self._accumulate = accumulate
        size = recompute or len(self.blocks)
        self._segments = [
            self.blocks[first : first + size] for first in range(0, len(self.blocks), size)
        ]

    def step(self, given: Tensors, batch_id: int, send: Send) -> None:
        """One step of all blocks, from the cross-entropy of the last one."""
        batch = self._arrived(given, batch_id, training=True)
        del given
        last = self.blocks[-1].spec.index
        statistics = self._finite.statistics_of(self.blocks)
        learned = [parameter for block in self.blocks for parameter in block.learned]
        sums: list[Tensor] = []
        values: list[tuple[LossValue, int]] = []
        for rows in _parts(len(batch.y), self._accumulate):
            value = self._value(batch, rows, batch_id)
            if not self._finite.passes(value.loss, last, batch_id):
                restore(statistics)
                self._skipped.setdefault(last, []).append(batch_id)
                self.training.skip(last)
                return
            share = (rows.stop - rows.start) / len(batch.y)
            loss = value.loss if share == 1 else value.loss * share
            _add(sums, torch.autograd.grad(loss, learned))
            values.append((value, counted(batch.y[rows])))
        gradients = iter(sums)
        for block in self.blocks:
            block.update([next(gradients) for _ in block.learned], self._scalars.lr)
        for value, predictions in values:
            self.training.add(last, value, predictions)

    def _value(self, batch: Batch, rows: slice, batch_id: int) -> LossValue:
        """Of some rows of a batch."""
        x, whole = batch.x[rows], len(batch.y)
        for segment in self._segments[:-1]:
            through = partial(self._through, segment, rows=rows, whole=whole, batch_id=batch_id)
            learned = [parameter for block in segment for parameter in block.learned]
            x = _ComputedAgain.apply(through, segment, x, *learned)
        h = self._through(self._segments[-1], x, rows=rows, whole=whole, batch_id=batch_id)
        block = self.blocks[-1]
        self.at_work = block.spec.index
        part = type(batch)(batch.x[rows], batch.y[rows])
        value = block.local_loss(Activation(h), part, part.x)
        self.at_work = None
        return value

    def _through(
        self, segment: Sequence[Block], x: Tensor, *, rows: slice, whole: int, batch_id: int
    ) -> Tensor:
        """What consecutive blocks pass on; of the last one its activation."""
        for block in self.in_turn(segment):
            x = block(x, batch_id=batch_id)
            if not block.spec.is_last:
                x = block.transfer_part(x, rows, whole, batch_id=batch_id)
        return x


def _parts(examples: int, number: int) -> list[slice]:
    """Rows of each part, as equal as can be, none of them empty."""
    number = min(number, examples)
    ends = [examples * part // number for part in range(number + 1)]
    return [slice(*pair) for pair in pairwise(ends)]


def _add(sums: list[Tensor], gradients: Sequence[Tensor]) -> None:
    if not sums:
        sums.extend(gradients)
        return
    for total, gradient in zip(sums, gradients, strict=True):
        total.add_(gradient)


class _ComputedAgain(torch.autograd.Function):
    """A segment, of which what arrives is held. torch.utils.checkpoint does the same, and imports
    PyTorch's compiler for it: 150 MB."""

    @staticmethod
    def forward(
        ctx: Any,
        through: Callable[[Tensor], Tensor],
        segment: Sequence[Block],
        x: Tensor,
        *learned: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.through, ctx.segment, ctx.learned = through, segment, learned
        return through(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_passed: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        wants_x = ctx.needs_input_grad[2]
        x = x.detach().requires_grad_(wants_x)
        with torch.enable_grad(), _statistics_kept(ctx.segment):
            passed = ctx.through(x)
        wanted = [x, *ctx.learned] if wants_x else ctx.learned
        gradients = torch.autograd.grad(passed, wanted, by_passed)
        return (None, None, *([] if wants_x else [None]), *gradients)


@contextmanager
def _statistics_kept(segment: Sequence[Block]) -> Iterator[None]:
    """Inside, batch norms compute as in training and leave their running statistics as they are."""
    norms = [
        module
        for block in segment
        for module in block.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            # the backward pass reads the buffers: they can't be put back once it has begun
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
