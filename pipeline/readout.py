"""What the heads of a convolution block read from its feature maps.

    h ──┬── average pooling ───────────────────────────▶ pooled, for the local classifier
        └── 3×3 convolution ── deviation over space ───▶ spread, for the similarity matrix

The loss sees the map g(h) only through its standard deviation over space, a number per example
and channel. So the backward pass is written by hand: it goes through a few examples at a time,
which stay in the processor's cache, and leaves the gradient of h where g(h) was. Left to
autograd it takes five more tensors of the size of h, and most of its time goes to memory.

Legend of shapes: n examples, C channels, H×W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.layout import pixels
from pipeline.losses import pool, wide

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from pipeline.specs import PoolSpec

SLICE_BYTES = {"cpu": 2 << 20, "cuda": 64 << 20}
"""Of feature maps that are worked on at a time."""
_ONE = [1, 1]  # stride, padding and dilation of g


def read_out(h: Tensor, weight: Tensor, spec: PoolSpec | None) -> tuple[Tensor, Tensor | None]:
    """Spread (n, C), at least float32, and h pooled as `spec` says (None: not wanted).

    Args:
        h: (n, C, H, W), H·W > 1.
        weight: of the map g, (C, C, 3, 3).

    A graph that holds this is good for one backward pass, which overwrites g(h).
    """
    spread, pooled = _ReadOut.apply(h, weight, spec)
    return spread, pooled


class _ReadOut(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, spec: PoolSpec | None
    ) -> tuple[Tensor, Tensor | None]:
        g = F.conv2d(h, weight, padding=1)
        moments = [_moments(g[at]) for at in _slices(g)]
        mean, spread = (torch.cat(column) for column in zip(*moments, strict=True))
        ctx.save_for_backward(h, weight, g, mean, spread)
        ctx.spec = spec
        return spread, None if spec is None else pool(h, spec)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_spread: Tensor, by_pooled: Tensor | None
    ) -> tuple[Tensor, Tensor, None]:
        h, weight, g, mean, spread = ctx.saved_tensors
        low, by_weight = weight.to(g.dtype), torch.zeros_like(weight)
        # a map that is the same at every pixel has no direction in which it spreads more
        scale = torch.where(spread > 0, by_spread / (spread * (g[0, 0].numel() - 1)), 0.0)
        for at in _slices(g):
            by_g = _spread_backward(g[at], mean[at], scale[at])
            by_h, by_low = _map_backward(by_g, h[at].to(g.dtype), low)
            if by_pooled is not None:
                by_h += _pool_backward(by_pooled[at], h[at], ctx.spec)
            by_weight += by_low
            g[at] = by_h
        return g, by_weight, None


def _slices(g: Tensor) -> Iterator[slice]:
    """The examples of g, a few at a time."""
    examples = max(1, SLICE_BYTES[g.device.type] // g[0].nbytes)
    return (slice(first, first + examples) for first in range(0, len(g), examples))


def _moments(g: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (unbiased) standard deviation over space: (n, C)."""
    values = wide(pixels(g))
    mean = values.mean(dim=1)
    squares = (values - mean.unsqueeze(1)).square_().sum(dim=1)
    return mean, squares.div_(values.size(1) - 1).sqrt_()


def _spread_backward(g: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """(g - mean) · scale, in place of g."""
    values, mean, scale = pixels(g), mean.unsqueeze(1), scale.unsqueeze(1)
    if values.dtype == mean.dtype:
        values.sub_(mean).mul_(scale)
    else:
        values.copy_((wide(values) - mean).mul_(scale))
    return g


def _map_backward(by_g: Tensor, h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of h and of the weight of g."""
    by_h, by_weight, _ = torch.ops.aten.convolution_backward(
        by_g, h, weight, None, _ONE, _ONE, _ONE, False, [0, 0], 1, [True, True, False]
    )
    return by_h, by_weight


def _pool_backward(by_pooled: Tensor, h: Tensor, spec: PoolSpec) -> Tensor:
    assert spec.kind == "average", "the local classifier's pooling"
    by_h: Tensor = torch.ops.aten.avg_pool2d_backward(
        by_pooled, h, spec.kernel, spec.stride, spec.padding, False, True, None
    )
    return by_h
