"""Networks for rules that don't fit a plain stack of layers: what `model.factory` names."""

from __future__ import annotations

from itertools import pairwise
from math import prod, sqrt
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.rules.auxiliary import convolution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def denoisers(
    image_shape: Sequence[int],
    classes: int,
    blocks: int = 10,
    channels: Sequence[int] = (),
    hidden: int = 256,
) -> nn.Sequential:
    """For NoProp: each block is a network of its own, that sees the image.

    Args:
        image_shape: (channels, height, width).
        channels: of 3×3 convolutions, each halving the sides; none: the image as it is.
        hidden: units of fully connected layers.
    """
    made = (Denoiser(tuple(image_shape), classes, channels, hidden) for _ in range(blocks))
    return nn.Sequential(*made)


class Denoiser(nn.Module):
    """From an image and a noised label to a number a class: (n, pixels + classes) to (n, classes).

    Features of both are computed apart and joined, as in the networks of Li, Teh & Pascanu (2025),
    which are larger.
    """

    def __init__(
        self, image_shape: tuple[int, ...], classes: int, channels: Sequence[int], hidden: int
    ) -> None:
        super().__init__()
        self.image_shape, self.classes = image_shape, classes
        first, *sides = image_shape
        widths = (first, *channels)
        halving = [
            nn.Sequential(convolution(here, there, 3), nn.MaxPool2d(2))
            for here, there in pairwise(widths)
        ]
        left = prod(side >> len(channels) for side in sides)
        self.image = nn.Sequential(*halving, nn.Flatten(), _dense(widths[-1] * left, hidden))
        self.label = _dense(classes, hidden)
        self.both = nn.Sequential(_dense(2 * hidden, hidden), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        image = x[:, : -self.classes].reshape(-1, *self.image_shape)
        seen = [self.image(image), self.label(x[:, -self.classes :])]
        guess: Tensor = self.both(torch.cat(seen, dim=1))
        return guess


def _dense(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())


def hebbian(
    image_shape: Sequence[int],
    classes: int,
    channels: Sequence[int] = (),
    hidden: Sequence[int] = (),
    kernel: int = 5,
    triangle: float = 1.0,
    radius: float = 5.0,
) -> nn.Sequential:
    """For SoftHebb: layers without bias, each followed by a `Triangle`, and an output layer.

    Args:
        image_shape: (channels, height, width).
        channels: of convolutions, each halving the sides by max pooling.
        hidden: units of fully connected layers.
        kernel: side of the convolutions, odd.
        triangle: power of each `Triangle`.
        radius: mean norm of the weights of a neuron at the start.
    """
    layers: list[nn.Module] = []
    first, *sides = image_shape
    for here, there in pairwise((first, *channels)):
        maps = nn.Conv2d(here, there, kernel, padding=kernel // 2, bias=False)
        layers += [_drawn(maps, radius), Triangle(triangle), nn.MaxPool2d(2)]
    layers.append(nn.Flatten())
    features = (first, *channels)[-1] * prod(side >> len(channels) for side in sides)
    for here, there in pairwise((features, *hidden)):
        layers += [_drawn(nn.Linear(here, there, bias=False), radius), Triangle(triangle)]
    return nn.Sequential(*layers, nn.Linear((features, *hidden)[-1], classes))


def _drawn(layer: nn.Linear | nn.Conv2d, radius: float) -> nn.Module:
    """With normal weights, of about this norm for each neuron."""
    nn.init.normal_(layer.weight, std=radius / sqrt(layer.weight[0].numel()))
    return layer


class Triangle(nn.Module):
    """How far a neuron is above the mean of all at its position, to a power (Journé et al. 2023;
    Coates, Ng & Lee, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning",
    AISTATS 2011)."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, u: Tensor) -> Tensor:
        return (u - u.mean(dim=1, keepdim=True)).relu() ** self.power
