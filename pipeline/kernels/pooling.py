"""Pooling of feature maps (n, C, H, W) over space.

Windows that tile a map leave PyTorch's kernels something to gain on a CPU: the maximum without
the place where it was, the gradient of an average added to another one on the way.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from pipeline.kernels.memory_layout import slices

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.network.specs import PoolSpec


def pool(x: Tensor, spec: PoolSpec | None) -> Tensor:
    """As `spec` says; unchanged for None."""
    if spec is None:
        return x
    apply = F.max_pool2d if spec.kind == "max" else F.avg_pool2d
    return apply(x, spec.kernel, spec.stride, spec.padding)


@torch.no_grad()
def pool_values(x: Tensor, spec: PoolSpec | None) -> Tensor:
    """The same where no gradient will be asked for: a few examples at a time, since PyTorch's
    maximum also writes down where it was, in twice the memory of the maxima."""
    if torch.compiler.is_compiling():
        return pool(x, spec)
    parts = list(slices(x))
    if spec is None or spec.kind == "average" or len(parts) == 1:
        return _values(x, spec)
    shape = (len(x), *spec.out_shape(tuple(x.shape[1:])))
    pooled = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for at in parts:
        pooled[at] = _values(x[at], spec)
    return pooled


def _values(x: Tensor, spec: PoolSpec | None) -> Tensor:
    if spec is None or spec.kind == "average" or x.device.type != "cpu" or not _tiles(x, spec):
        return pool(x, spec)
    height, width = spec.kernel
    rows = reduce(torch.maximum, (x[:, :, first::height] for first in range(height)))
    return reduce(torch.maximum, (rows[..., first::width] for first in range(width)))


def _tiles(x: Tensor, spec: PoolSpec) -> bool:
    """Whether every pixel lies in one window, and every window in the map."""
    sides = zip(x.shape[2:], spec.kernel, strict=True)
    return (
        spec.kernel == spec.stride
        and spec.padding == (0, 0)
        and all(side % kernel == 0 for side, kernel in sides)
    )


def pool_backward_(by_x: Tensor, by_pooled: Tensor, spec: PoolSpec, *, add: bool) -> None:
    """The gradient of x, of average pooling, in place of `by_x` (n, C, H, W), or added to it."""
    assert spec.kind == "average", "the local classifier's pooling"
    if not _tiles(by_x, spec):
        by_all = torch.ops.aten.avg_pool2d_backward(
            by_pooled, by_x, spec.kernel, spec.stride, spec.padding, False, True, None
        )
        by_x.add_(by_all) if add else by_x.copy_(by_all)
        return
    height, width = spec.kernel
    by_pixel = (by_pooled / (height * width)).permute(0, 2, 3, 1)[:, :, None, :, None]
    n, rows, columns = len(by_x), by_pooled.size(2), by_pooled.size(3)
    windows = by_x.permute(0, 2, 3, 1).view(n, rows, height, columns, width, by_x.size(1))
    windows.add_(by_pixel) if add else windows.copy_(by_pixel)
