"""Pooling of feature maps (n, C, H, W) over space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from pipeline.layout import slices

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.specs import PoolSpec


def pool(x: Tensor, spec: PoolSpec | None) -> Tensor:
    """As `spec` says; unchanged for None."""
    if spec is None:
        return x
    apply = F.max_pool2d if spec.kind == "max" else F.avg_pool2d
    return apply(x, spec.kernel, spec.stride, spec.padding)


@torch.no_grad()
def pool_values(x: Tensor, spec: PoolSpec | None) -> Tensor:
    """The same where no gradient will be asked for: a few examples at a time, since PyTorch also
    writes down where each maximum was, in twice the memory of the maxima."""
    if spec is None or spec.kind == "average" or len(list(slices(x))) == 1:
        return pool(x, spec)
    shape = (len(x), *spec.out_shape(tuple(x.shape[1:])))
    pooled = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for at in slices(x):
        pooled[at] = pool(x[at], spec)
    return pooled


def pool_backward(by_pooled: Tensor, x: Tensor, spec: PoolSpec) -> Tensor:
    """Gradient of x, of average pooling."""
    assert spec.kind == "average", "the local classifier's pooling"
    by_x: Tensor = torch.ops.aten.avg_pool2d_backward(
        by_pooled, x, spec.kernel, spec.stride, spec.padding, False, True, None
    )
    return by_x
