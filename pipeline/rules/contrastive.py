"""Supervised contrastive learning at each block: examples of a class attract each other.

Khosla et al., "Supervised Contrastive Learning" (NeurIPS 2020): the loss that sums over positives
outside the logarithm. That each block has it to itself is as in Löwe, O'Connor & Veeling, "Putting
An End to End-to-End" (NeurIPS 2019), there without labels.

What differs: a batch has one view of each image, where the paper has two.

Shapes: n examples, z (n, D) their projections.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.dtypes import wide
from pipeline.rules.auxiliary import Readout, averaged, check_place, cross_entropy, perceptron
from pipeline.rules.options import check_number, check_whole
from pipeline.rules.rule import LocalRule

if TYPE_CHECKING:
    from pipeline.rules.rule import Batch, Place


class Contrastive(LocalRule):
    """The contrastive loss of projections of the activation, averaged to 2×2 pixels. Beside it a
    linear classifier, for `scores`, learns from the activation without teaching the block.

    Options:
        temperature: that similarities are divided by.
        hidden: units of the hidden layer of the projection.
        projected: numbers in a projection.
    """

    static = True

    def __init__(
        self, place: Place, temperature: float = 0.1, hidden: int = 256, projected: int = 128
    ) -> None:
        super().__init__(place)
        check_place(place)
        check_number("temperature", temperature, above=0)
        check_whole("hidden", hidden)
        check_whole("projected", projected)
        self.temperature = temperature
        pooled = averaged(place.shape, 2)
        self.projection = nn.Sequential(pooled, perceptron(prod(pooled.shape), hidden, projected))
        self.readout = Readout(place.shape, place.classes)

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        scores: Tensor = self.readout(h)
        return scores

    def loss(
        self, h: Tensor, x: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        scores = self.scores(h, batch)
        attraction, same = attractions(self.projection(h), batch.y, self.temperature)
        alike = same.sum(dim=1)
        by_example = attraction.sum(dim=1) / alike.clamp(min=1)
        contrast = -by_example.sum() / (alike > 0).sum().clamp(min=1)
        return contrast + cross_entropy(scores, batch.y), scores


def attractions(z: Tensor, y: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """How near each example is to those of its class, compared with all others, in at least
    float32: log softmax over the others of cosine similarities divided by the temperature.

    Returns:
        (n, n), zero where the two are the same example or of different classes; and (n, n), where
        they are different examples of one class.
    """
    with torch.autocast(z.device.type, enabled=False):  # of bfloat16, exp would see little
        directions = F.normalize(wide(z), dim=1)
        similar = directions @ directions.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    shares = similar.masked_fill(itself, float("-inf")).log_softmax(dim=1)
    same = (y[:, None] == y) & ~itself
    return shares.masked_fill(~same, 0.0), same
