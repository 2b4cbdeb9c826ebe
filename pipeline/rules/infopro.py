"""Information propagation: each block keeps what the image says, and what the label says of it.

Wang, Ni, Song, Yang & Huang, "Revisiting Locally Supervised Learning: an Alternative to
End-to-end Training" (ICLR 2021): λ₁ times the error of an image rebuilt from the activation, plus
λ₂ times a cross-entropy or contrastive loss; λ₁ and λ₂ change linearly with depth.

What differs: images arrive normalised, so the error is their mean squared difference, where the
paper has the cross-entropy of pixels within [0, 1].
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.dtypes import wide
from pipeline.rules.auxiliary import (
    Enlarged,
    Readout,
    averaged,
    check_place,
    convolution,
    cross_entropy,
    perceptron,
)
from pipeline.rules.contrastive import attractions
from pipeline.rules.options import between, check_choice, check_number, check_whole
from pipeline.rules.rule import Batch, LocalRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from pipeline.rules.rule import Place, Shape

_DECODER_MAPS = 12


class InfoPro(LocalRule):
    """Carries `image`, as the first block sees it. On feature maps, the task's network is a 3×3
    convolution, an average over all pixels and an MLP of two layers; the decoder enlarges the
    maps to the image and has two 3×3 convolutions. On vectors there are only the MLP, and a linear
    decoder.

    Options:
        reconstruction: λ₁ at the first and at the last block.
        task: λ₂ at the first and at the last block.
        surrogate: for what the label says, `cross-entropy` or `contrastive`; then a linear
            classifier, for `scores`, learns beside it without teaching the block.
        hidden: maps and hidden units of the task's network, and numbers that are contrasted.
        temperature: of the contrastive loss.
    """

    carries = ("image",)
    static = True

    def __init__(
        self,
        place: Place,
        reconstruction: Sequence[float] = (1.0, 0.1),
        task: Sequence[float] = (1.0, 1.0),
        surrogate: str = "cross-entropy",
        hidden: int = 128,
        temperature: float = 0.07,
    ) -> None:
        super().__init__(place)
        check_place(place)
        check_choice("surrogate", surrogate, ("cross-entropy", "contrastive"))
        check_whole("hidden", hidden)
        check_number("temperature", temperature, above=0)
        self.keeps = between("reconstruction", reconstruction, place)
        self.tells = between("task", task, place)
        self.temperature = temperature
        classifies = surrogate == "cross-entropy"
        self.readout = None if classifies else Readout(place.shape, place.classes)
        self.task = _task(place.shape, hidden, place.classes if classifies else hidden)
        self.decoder = _decoder(place.shape, place.image_shape)

    @classmethod
    def expand(
        cls, batch: Batch, classes: int, training: bool, generator: torch.Generator
    ) -> Batch:
        return Batch(batch.x, batch.y, {"image": batch.x}, batch.training)

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        scores: Tensor = (self.task if self.readout is None else self.readout)(h)
        return scores

    def loss(
        self, h: Tensor, x: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        scores = self.scores(h, batch)
        told = cross_entropy(scores, batch.y)
        image = wide(batch.carry["image"])
        lost = F.mse_loss(wide(self.decoder(h)).view_as(image), image)
        if self.readout is None:
            return self.keeps * lost + self.tells * told, scores
        attraction, same = attractions(self.task(h), batch.y, self.temperature)
        contrast = -attraction.sum() / same.sum().clamp(min=1)
        return self.keeps * lost + self.tells * contrast + told, scores


def _decoder(shape: Shape, image_shape: Shape) -> nn.Module:
    if len(shape) == 1 or len(image_shape) != 3:
        return perceptron(prod(shape), prod(image_shape))
    enlarged = Enlarged(shape[1:], image_shape[1:])
    last = nn.Conv2d(_DECODER_MAPS, image_shape[0], 3, padding=1)
    return nn.Sequential(enlarged, convolution(shape[0], _DECODER_MAPS, 3), last)


def _task(shape: Shape, hidden: int, outputs: int) -> nn.Module:
    if len(shape) == 1:
        return perceptron(shape[0], hidden, outputs)
    pooled = averaged((hidden, *shape[1:]), 1)
    return nn.Sequential(
        convolution(shape[0], hidden, 3), pooled, perceptron(hidden, hidden, outputs)
    )
