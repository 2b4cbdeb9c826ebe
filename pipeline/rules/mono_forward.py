"""Mono-Forward: each layer projects its activations to the classes, and learns by cross-entropy.

Gong, Li & Abdulla (2025), "Mono-Forward: Backpropagation-Free Algorithm for Efficient Neural
Network Training Harnessing Local Errors": goodness G = a Mᵀ with a trained matrix M for each layer.
Prediction is the paper's, by the last layer (its "BP" way) or by the sum over layers ("FF" way).

What differs: nothing of the layer; optimizer and initial weights are the configured ones, M begins
as a linear layer of PyTorch without bias.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from torch import nn

from pipeline.dtypes import wide
from pipeline.rules.auxiliary import cross_entropy
from pipeline.rules.options import check_choice, check_classes
from pipeline.rules.rule import Batch, LocalRule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.rules.rule import Place


class MonoForward(LocalRule):
    """Cross-entropy of a linear map of the activation to the classes.

    Options:
        predict: by the `last` layer, or by the `sum` over all layers so far.
    """

    carries = ("goodness",)
    output_layer = False
    static = True

    def __init__(self, place: Place, predict: str = "last") -> None:
        super().__init__(place)
        check_choice("predict", predict, ("last", "sum"))
        check_classes(place)
        self.sums = predict == "sum"
        self.projection = nn.Linear(prod(place.shape), place.classes, bias=False)

    @classmethod
    def expand(
        cls, batch: Batch, classes: int, training: bool, generator: torch.Generator
    ) -> Batch:
        """No goodness so far."""
        goodness = wide(batch.x).new_zeros(len(batch.y), classes)
        return Batch(batch.x, batch.y, {"goodness": goodness}, training)

    def loss(
        self, h: Tensor, x: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of this layer's goodness alone."""
        goodness = self._goodness(h)
        return cross_entropy(goodness, batch.y), goodness

    def leave(self, h: Tensor, batch: Batch) -> None:
        """The sum up to here, where it is wanted."""
        if self.sums:
            batch.carry["goodness"] = batch.carry["goodness"] + self._goodness(h)

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        """The goodness of each class: of this layer, or the sum up to here."""
        return batch.carry["goodness"] if self.sums else self._goodness(h)

    def _goodness(self, h: Tensor) -> Tensor:
        """The goodness of each class by this layer alone: (n, classes)."""
        goodness: Tensor = self.projection(h.flatten(1))
        return wide(goodness)
