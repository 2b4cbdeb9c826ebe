"""Parts of the small networks that shipped rules put on an activation.

Shapes: an activation is feature maps (n, C, H, W) or vectors (n, D).
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.dtypes import wide
from pipeline.rules.options import check_classes

if TYPE_CHECKING:
    from pipeline.rules.rule import Place, Shape


def check_place(place: Place) -> None:
    """That these networks can tell classes apart there.

    Raises:
        ValueError: where targets are no classes, or activations neither feature maps nor vectors.
    """
    check_classes(place)
    if len(place.shape) not in (1, 3):
        raise ValueError(
            f"block {place.index}: the rule works on activations of shape (features,) or "
            f"(channels, height, width), not {place.shape}"
        )


class Averaged(nn.Module):
    """Feature maps averaged over windows side by side, the last one cut off where the map ends;
    vectors as they are. PyTorch's adaptive pooling adds up its gradient on CUDA in any order.

    `shape`: of what comes out for one example.
    """

    def __init__(self, shape: Shape, window: Shape) -> None:
        """`window`: (height, width), or () for vectors."""
        super().__init__()
        channels, *sides = shape
        self.window = window
        left = (-(-side // width) for side, width in zip(sides, window, strict=True))
        self.shape: Shape = (channels, *left)

    def forward(self, h: Tensor) -> Tensor:
        return F.avg_pool2d(h, self.window, ceil_mode=True) if self.window else h


def averaged(shape: Shape, side: int) -> Averaged:
    """To at most `side` × `side` pixels."""
    return Averaged(shape, tuple(-(-pixels // side) for pixels in shape[1:]))


class Enlarged(nn.Module):
    """Feature maps (n, C, *sides) enlarged by bilinear interpolation between corners, as two
    products: PyTorch's own adds up its gradient on CUDA in any order."""

    rows: Tensor
    columns: Tensor

    def __init__(self, sides: Shape, to: Shape) -> None:
        super().__init__()
        for name, *sizes in zip(("rows", "columns"), sides, to, strict=True):
            self.register_buffer(name, _interpolation(*sizes), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.rows.T @ h @ self.columns


def _interpolation(pixels: int, to: int) -> Tensor:
    """(pixels, to): what each pixel gives to each of those it is enlarged to."""
    return F.interpolate(torch.eye(pixels)[None], to, mode="linear", align_corners=True)[0]


class Readout(nn.Module):
    """Scores (n, classes) by a linear classifier of the activation, averaged to 2 × 2 pixels.

    Its weight starts at zero. It learns from the activation without teaching the block.
    """

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.averaged = averaged(shape, 2)
        self.linear = nn.Linear(prod(self.averaged.shape), classes)
        nn.init.zeros_(self.linear.weight)

    def forward(self, h: Tensor) -> Tensor:
        scores: Tensor = self.linear(self.averaged(h.detach()).flatten(1))
        return scores


def convolution(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Module:
    """A hidden layer on feature maps, with batch norm; a stride of 1 keeps their size."""
    layer = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())


def perceptron(*units: int) -> nn.Module:
    """Linear layers from (n, …), which is made vectors, to vectors; all but the last are hidden."""
    layers: list[nn.Module] = [nn.Linear(here, there) for here, there in pairwise(units)]
    hidden = [part for layer in layers[:-1] for part in (layer, nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, layers[-1])


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """Mean over the examples, in at least float32."""
    return F.cross_entropy(wide(scores), y)
