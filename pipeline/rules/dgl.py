"""Decoupled greedy learning: each block learns through an auxiliary network of its own.

Belilovsky, Eickenberg & Oyallon, "Decoupled Greedy Learning of CNNs" (ICML 2020), with its three
auxiliary networks.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pipeline.rules.auxiliary import (
    Averaged,
    averaged,
    check_place,
    convolution,
    cross_entropy,
    perceptron,
)
from pipeline.rules.options import check_choice, check_whole
from pipeline.rules.rule import LocalRule

if TYPE_CHECKING:
    import torch

    from pipeline.rules.rule import Batch, Place


class DGL(LocalRule):
    """Cross-entropy at the end of an auxiliary network.

    Options:
        auxiliary: on feature maps, `cnn`: a 3×3 convolution, averages to 2×2 pixels, a linear
            classifier; `mlp`: averages to 2×2, an MLP of three layers; `mlp-sr`: first averages
            to a quarter of each side, but to no less than 2, and three 1×1 convolutions, then as
            `mlp`. On vectors, `cnn`: a hidden layer, a linear classifier; the others: the MLP.
            Convolutions have the width of the block, and batch norm.
        hidden: units of each hidden layer of the MLP, and on vectors of that of `cnn`.
    """

    static = True

    def __init__(self, place: Place, auxiliary: str = "mlp-sr", hidden: int = 256) -> None:
        super().__init__(place)
        check_place(place)
        check_choice("auxiliary", auxiliary, ("cnn", "mlp", "mlp-sr"))
        check_whole("hidden", hidden)
        width, *sides = place.shape
        before: list[nn.Module] = []
        shape = place.shape
        if sides and auxiliary == "cnn":
            before = [convolution(width, width, 3)]
        elif sides and auxiliary == "mlp-sr":
            quarter = Averaged(shape, tuple(max(1, min(4, side // 2)) for side in sides))
            before = [quarter, *(convolution(width, width, 1) for _ in range(3))]
            shape = quarter.shape
        last = averaged(shape, 2)
        layers = 2
        if auxiliary == "cnn":
            layers = 0 if sides else 1
        classifier = perceptron(prod(last.shape), *[hidden] * layers, place.classes)
        self.auxiliary = nn.Sequential(*before, last, classifier)

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        scores: Tensor = self.auxiliary(h)
        return scores

    def loss(
        self, h: Tensor, x: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        scores = self.scores(h, batch)
        return cross_entropy(scores, batch.y), scores
