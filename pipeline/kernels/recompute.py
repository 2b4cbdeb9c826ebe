"""Activations of convolution blocks that can be computed again, so that nobody has to keep them.

    x ──convolution──▶ z ──batch norm, non-linearity──▶ h ──▶ heads, dropout, pooling

What the convolution gives, z, is kept for the backward pass of the batch norm anyway; h is computed
from it again, some examples at a time, at the cost of a product and a sum per unit. So the memory
of h is free once it was passed on, and the gradient of h becomes that of z where it lies: two of
the five tensors of that size that a step holds at its peak are spared. That is for the CPU: on
CUDA a way through the device's memory takes time that the convolutions there don't.

Legend of shapes: n examples, C channels, H×W pixels.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.dtypes import wide
from pipeline.kernels.memory_layout import channels_last, pixels, slices
from pipeline.kernels.nonlinearity import activate_, activate_backward_

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from pipeline.kernels.nonlinearity import Nonlinearity

    Recompute: TypeAlias = Callable[[slice], Tensor]

RECOMPUTING_DEVICES = frozenset({"cpu"})
"""Where doing without the activation for a while pays."""


class Activation(NamedTuple):
    """What a block computed, h, as its heads read it: who may overwrite it, and how it is got back.

    The rule: the heads are the last to read h and may overwrite it where there is `recompute`;
    without, h must stay as it is. Plain `Activation(h)` is kept.
    """

    h: Tensor
    """(n, C, H, W) or (n, D)."""
    recompute: Recompute | None = None
    """Gives some examples of h again, bit for bit as they were, until its backward pass is over."""

    @classmethod
    def read_last(cls, h: Tensor, passed: Tensor) -> Activation:
        """That of heads which nobody but the next block reads after: h may be overwritten if
        `normalised` made it, and if `passed`, what that block receives, does not lie in its memory,
        as it does without dropout and pooling."""
        is_passed = h.untyped_storage().data_ptr() == passed.untyped_storage().data_ptr()
        is_normalised = isinstance(getattr(h.grad_fn, "how", None), _How)
        return cls(h, partial(_recomputed, h.grad_fn) if is_normalised and not is_passed else None)


def normalised(z: Tensor, norm: nn.BatchNorm2d, nonlinearity: Nonlinearity) -> Tensor:
    """The activation of z (n, C, H, W) in training, which can be computed again.

    The running statistics of `norm` move as by calling it. The backward pass overwrites the
    gradient of the activation.
    """
    assert norm.num_batches_tracked is not None, "as for every batch norm of ours"
    norm.num_batches_tracked.add_(1)
    with torch.no_grad():
        running = norm.running_mean, norm.running_var, norm.momentum
        mean, variance = torch.ops.aten.batch_norm_update_stats(z, *running)
    how = _How(norm.eps, nonlinearity)
    h: Tensor = _Normalised.apply(z, norm.weight, norm.bias, mean, variance, how)
    return h


class _How(NamedTuple):
    eps: float
    nonlinearity: Nonlinearity


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        how: _How,
    ) -> Tensor:
        ctx.save_for_backward(z, mean, variance, weight, bias)
        ctx.how = how
        return activate_(_affine(z, mean, variance, weight, bias, how), how.nonlinearity)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_h: Tensor) -> tuple[Tensor | None, ...]:
        z, mean, variance, weight, _ = ctx.saved_tensors
        by_h = channels_last(by_h)
        for at in slices(z):
            # before the non-linearity h has the sign that it has after
            activate_backward_(by_h[at], _before_activation(ctx, at), ctx.how.nonlinearity)
        inverse = (variance + ctx.how.eps).rsqrt()
        _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            by_h, z, weight, None, None, mean, inverse, True, ctx.how.eps, [False, True, True]
        )
        scale, per_channel = weight * inverse, z.numel() // z.size(1)
        slope = -scale * inverse * by_weight / per_channel
        offset = -scale * by_bias / per_channel - slope * mean
        for at in slices(z):
            _combine_(pixels(by_h[at]), scale, pixels(z[at]), slope, offset)
        return by_h, by_weight, by_bias, None, None, None


def _recomputed(node: Any, at: slice) -> Tensor:
    return activate_(_before_activation(node, at), node.how.nonlinearity)


def _before_activation(node: Any, at: slice) -> Tensor:
    """Some examples of the batch norm's result. `node`: of autograd, of a `_Normalised`."""
    z, mean, variance, weight, bias = node.saved_tensors
    return _affine(z[at], mean, variance, weight, bias, node.how)


@torch.no_grad()
def _affine(
    z: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, how: _How
) -> Tensor:
    return F.batch_norm(z, mean, variance, weight, bias, training=False, eps=how.eps)


def _combine_(by_h: Tensor, scale: Tensor, z: Tensor, slope: Tensor, offset: Tensor) -> None:
    """by_h · scale + z · slope + offset, in place of by_h; (n, H·W, C) and (C,)."""
    correction = torch.addcmul(offset, wide(z), slope)
    if by_h.dtype == correction.dtype:
        torch.addcmul(correction, by_h, scale, out=by_h)
    else:
        by_h.copy_(correction.addcmul_(wide(by_h), scale))
