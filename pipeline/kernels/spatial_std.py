"""What the heads of a convolution block read from its feature maps (section 3.1 of the paper).

    h ──┬── average pooling ───────────────────────▶ pooled, for the local classifier
        └── 3×3 convolution g ── std over space ───▶ std, for the similarity matrix

The loss sees the map g(h) only through its standard deviation over space, a number per example
and channel. So the backward pass is written by hand: it goes through a few examples at a time,
which stay in the processor's cache, and leaves the gradient of h where g(h) was. Left to
autograd it takes five more tensors of the size of h, and most of its time goes to memory. Where
the heads may overwrite h (`recompute.py`), g(h) takes its place, and no tensor of that size is
added.

Legend of shapes: n examples, C channels, H×W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.dtypes import wide
from pipeline.kernels.memory_layout import channels_last, pixels, slices
from pipeline.kernels.pooling import pool, pool_backward_

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.kernels.recompute import Activation, Recompute
    from pipeline.network.specs import PoolSpec

CONVERTING_DEVICES = frozenset({"cuda"})
"""Whose kernels read numbers of one type as another on the way; elsewhere PyTorch copies them."""

_ONE = [1, 1]  # stride, padding and dilation of g


def spatial_std(
    activation: Activation, weight: Tensor, spec: PoolSpec | None
) -> tuple[Tensor, Tensor | None]:
    """Standard deviation over space of g(h), (n, C'), at least float32; and h pooled as `spec` says
    (None: not wanted).

    Args:
        activation: of shape (n, C, H, W), H·W > 1.
        weight: of the map g, (C', C / groups, 3, 3); C' is C, unless nothing may be overwritten.

    A graph that holds this is good for one backward pass, which overwrites g(h).
    """
    std, pooled = _SpatialStd.apply(activation.h, weight, spec, activation.recompute)
    return std, pooled


def overwriting_pool(h: Tensor, spec: PoolSpec) -> Tensor:
    """Average pooling whose backward pass leaves the gradient of h where h was."""
    pooled: Tensor = _OverwritingPool.apply(h, spec)
    return pooled


class _OverwritingPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, spec: PoolSpec) -> Tensor:
        ctx.save_for_backward(h)
        ctx.spec = spec
        return pool(h, spec)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_pooled: Tensor) -> tuple[Tensor, None]:
        (h,) = ctx.saved_tensors
        by_h = h.detach()
        for at in slices(h):
            pool_backward_(by_h[at], by_pooled[at], ctx.spec, add=False)
        return by_h, None


class _SpatialStd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, spec: PoolSpec | None, recompute: Recompute | None
    ) -> tuple[Tensor, Tensor | None]:
        pooled = None if spec is None else pool(h, spec)
        groups = h.size(1) // weight.size(1)
        g = (
            _map_(h.detach(), weight)
            if recompute
            else channels_last(F.conv2d(h, weight, padding=1, groups=groups))
        )
        moments = [_moments(g[at]) for at in slices(g)]
        mean, std = (torch.cat(column) for column in zip(*moments, strict=True))
        ctx.save_for_backward(None if recompute else h, weight, g, mean, std)
        ctx.spec, ctx.recompute = spec, recompute
        return std, pooled

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_std: Tensor, by_pooled: Tensor | None
    ) -> tuple[Tensor, Tensor, None, None]:
        kept, weight, g, mean, std = ctx.saved_tensors
        low, by_weight = weight.to(g.dtype), torch.zeros_like(weight)
        # a map that is the same at every pixel has no direction in which it spreads more
        scale = torch.where(std > 0, by_std / (std * (g[0, 0].numel() - 1)), 0.0)
        parts = list(slices(g))
        takes_g = kept is None or kept.shape == g.shape
        all_by_h = g if takes_g else torch.empty_like(kept, dtype=g.dtype)
        for at in parts:
            h = ctx.recompute(at) if ctx.recompute else kept[at]
            by_g = _std_backward(g[at], mean[at], scale[at])
            by_h, by_low = _map_backward(by_g, h.to(g.dtype), low)
            if by_pooled is not None:
                pool_backward_(by_h, by_pooled[at], ctx.spec, add=True)
            by_weight += by_low
            if len(parts) == 1:
                return by_h, by_weight, None, None
            all_by_h[at] = by_h
        return all_by_h, by_weight, None, None


def _map_(h: Tensor, weight: Tensor) -> Tensor:
    """g(h), in place of h."""
    for at in slices(h):
        h[at] = F.conv2d(h[at], weight, padding=1)
    return h


def _moments(g: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (unbiased) standard deviation over space: (n, C), at least float32."""
    if g.device.type in CONVERTING_DEVICES:
        return _moments_of(pixels(g))
    values = wide(pixels(g))
    mean = values.mean(dim=1)
    is_copy = values.dtype != g.dtype
    off = values.sub_(mean.unsqueeze(1)) if is_copy else values - mean.unsqueeze(1)
    return mean, off.square_().sum(dim=1).div_(values.size(1) - 1).sqrt_()


def _moments_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """The same of (n, H·W, C), without a copy of it that is wide."""
    mean = values.mean(dim=1, dtype=torch.promote_types(values.dtype, torch.float32))
    return mean, torch.std(values, dim=1, out=torch.empty_like(mean))


def _std_backward(g: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """(g - mean) · scale, in place of g."""
    values, mean, scale = pixels(g), mean.unsqueeze(1), scale.unsqueeze(1)
    if g.device.type in CONVERTING_DEVICES:
        torch.addcmul(-mean * scale, values, scale, out=values)
    elif values.dtype == mean.dtype:
        values.sub_(mean).mul_(scale)
    else:
        values.copy_(wide(values).sub_(mean).mul_(scale))
    return g


def _map_backward(by_g: Tensor, h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of h and of the weight of g."""
    groups = h.size(1) // weight.size(1)
    by_h, by_weight, _ = torch.ops.aten.convolution_backward(
        by_g, h, weight, None, _ONE, _ONE, _ONE, False, [0, 0], groups, [True, True, False]
    )
    return by_h, by_weight
