"""Augmented local learning: deep auxiliary networks at the first blocks, shallow ones at the last.

Ma, Wu, Si & Tan, "Scaling Supervised Local Learning with Augmented Auxiliary Networks" (ICLR
2024): auxiliary networks of several layers, and their pyramidal depth.

What differs: the paper builds an auxiliary network of layers like some of those that follow the
block. A rule knows its own block only, so here they are convolutions of the block's width, which
shrink the maps at evenly spaced layers, as the following ones would.
"""

from __future__ import annotations

from math import ceil, log2, prod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pipeline.rules.auxiliary import (
    averaged,
    check_place,
    convolution,
    cross_entropy,
    perceptron,
)
from pipeline.rules.options import check_whole
from pipeline.rules.rule import LocalRule

if TYPE_CHECKING:
    import torch

    from pipeline.rules.rule import Batch, Place

_LAST_SIDE = 4
"""Pixels of a map's longer side that need no more shrinking before the average over all."""


class AugLocal(LocalRule):
    """Cross-entropy at the end of an auxiliary network: 3×3 convolutions with batch norm, some of
    stride 2, an average over all pixels, a linear classifier; on vectors, an MLP of the width.

    Options:
        depth: hidden layers of the auxiliary network at the first block.
        least: the same at the last block; those in between lie on a line.
    """

    static = True

    def __init__(self, place: Place, depth: int = 4, least: int = 1) -> None:
        super().__init__(place)
        check_place(place)
        check_whole("least", least)
        check_whole("depth", depth, least=least)
        width, *sides = place.shape
        layers = depth_at(place, depth, least)
        if not sides:
            self.auxiliary = perceptron(*[width] * (layers + 1), place.classes)
            return
        strides = _strides(max(sides), layers)
        left = averaged((width, *(-(-side // prod(strides)) for side in sides)), 1)
        convolutions = (convolution(width, width, 3, stride) for stride in strides)
        self.auxiliary = nn.Sequential(*convolutions, left, perceptron(width, place.classes))

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        scores: Tensor = self.auxiliary(h)
        return scores

    def loss(
        self, h: Tensor, x: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        scores = self.scores(h, batch)
        return cross_entropy(scores, batch.y), scores


def depth_at(place: Place, depth: int, least: int) -> int:
    """Hidden layers at a place: from `depth` to `least`, linearly, halves rounded up."""
    steps = max(1, place.rules - 1)
    return (2 * (depth * steps - (depth - least) * place.nth) + steps) // (2 * steps)


def _strides(side: int, layers: int) -> list[int]:
    """1 or 2 for each layer: halvings spread evenly, as many as leave `_LAST_SIDE` pixels."""
    halvings = min(layers, ceil(log2(max(1.0, side / _LAST_SIDE))))
    return [1 + halvings * (at + 1) // layers - halvings * at // layers for at in range(layers)]
