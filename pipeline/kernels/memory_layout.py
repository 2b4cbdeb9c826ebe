"""How feature maps lie in memory: the channels of a pixel side by side ("channels last").

Convolutions, pooling and sums over space are faster so, and need no copies in between. Strides
are always those of a fresh tensor, also where a size of 1 leaves others possible: kernels are
chosen by them, and N processes would no longer equal one.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

_ALIGNED = {"cpu": 64, "cuda": 256}
"""Bytes: PyTorch's own tensors begin at multiples of these."""
SLICE_BYTES = {"cpu": 2 << 20, "cuda": 64 << 20}
"""Of feature maps that are worked on at a time: what stays in the processor's cache."""


def channels_last(x: Tensor) -> Tensor:
    """x itself, or a copy where feature maps (n, C, H, W) lie otherwise; others contiguous."""
    if x.dim() != 4:
        return x.contiguous()
    x = x.contiguous(memory_format=torch.channels_last)
    return x if is_channels_last(x) else x.as_strided(x.shape, _strides(x))


def as_it_arrives(x: Tensor) -> Tensor:
    """Contiguous, with the strides and the alignment of a fresh tensor, which it would have in
    another process: x itself, or a copy."""
    x = x.contiguous()
    fresh = tuple(prod(x.shape[at + 1 :]) for at in range(x.dim()))
    if x.stride() != fresh:  # sizes of 1 leave others possible
        x = x.as_strided(x.shape, fresh)
    return x.clone() if x.data_ptr() % _ALIGNED[x.device.type] else x


def is_channels_last(x: Tensor) -> bool:
    """Whether x is what `channels_last` gives for feature maps."""
    return x.dim() == 4 and x.stride() == _strides(x)


def flattened(x: Tensor) -> Tensor:
    """(n, D): feature maps channel by channel, as files and other programs order them. Their
    gradient comes back channels last: else kernels copy everything that it meets."""
    if x.dim() != 4 or not x.requires_grad or torch.compiler.is_compiling():
        return x.flatten(1)
    flat: Tensor = _Flattened.apply(x)
    return flat


class _Flattened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.flatten(1)

    @staticmethod
    def backward(ctx: Any, by_flat: Tensor) -> Tensor:
        return channels_last(by_flat.view(ctx.shape))


def pixels(x: Tensor) -> Tensor:
    """Feature maps (n, C, H, W) as (n, H·W, C), the same memory."""
    n, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).view(n, height * width, channels)


def slices(x: Tensor) -> Iterator[slice]:
    """The examples of x, a few at a time."""
    examples = max(1, SLICE_BYTES[x.device.type] // x[0].nbytes)
    return (slice(first, first + examples) for first in range(0, len(x), examples))


def _strides(x: Tensor) -> tuple[int, ...]:
    _, channels, height, width = x.shape
    return (height * width * channels, 1, width * channels, channels)
