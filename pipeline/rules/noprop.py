"""NoProp: each block learns to find the label in a noised one, beside the image.

Li, Teh & Pascanu (2025), "NoProp: Training Neural Networks without Full Back-propagation or Full
Forward-propagation", in discrete time (NoProp-DT): nothing goes from block to block in training.
In tests the blocks take noise away in turn, from pure noise to the label. `networks.denoisers` is a
network for it.

What differs: labels are one-hot and fixed; the last block's guess is the prediction, without a
classifier for z_T (so of the paper's objective only the sum over blocks is left); the cosine
schedule ends before it reaches no noise; in tests no noise is added again (as DDIM with σ = 0 has
it, Song, Meng & Ermon, "Denoising Diffusion Implicit Models", ICLR 2021), in place of the
posterior's draw.
"""

from __future__ import annotations

from math import pi, prod, sin, sqrt
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from pipeline.dtypes import wide
from pipeline.rules.options import check_classes, check_number
from pipeline.rules.rule import Batch, LocalRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pipeline.rules.rule import Place, Shape


class NoProp(LocalRule):
    """A block computes (pixels + classes,), image and noised label z, to a logit a class.

    Options:
        eta: weight of the loss, η of the paper.
    """

    carries = ("image", "code")
    output_layer = False

    def __init__(self, place: Place, eta: float = 0.1) -> None:
        super().__init__(place)
        check_classes(place)
        check_number("eta", eta, above=0)
        if place.shape != (place.classes,):
            raise ValueError(
                f"block {place.index} gives {place.shape} for {place.classes} classes: each block "
                "must give a number for each class, as those of pipeline.rules.networks:denoisers"
            )
        self.before, self.after = (_signal(place.nth + t, place.rules) for t in (0, 1))
        gain = self.after / (1 - self.after) - self.before / (1 - self.before)
        self.weight = eta * place.rules / 2 * gain
        """As in the paper's objective: the gain is of the signal-to-noise ratio."""

    @classmethod
    def expand(
        cls, batch: Batch, classes: int, training: bool, generator: torch.Generator
    ) -> Batch:
        """The image goes along; in tests also z, which begins as noise."""
        image = wide(batch.x)
        shape = (len(image), classes)
        code = image.new_zeros(shape) if training else _noise(shape, image, generator)
        return Batch(batch.x, batch.y, {"image": image, "code": code}, training)

    @classmethod
    def entered_shape(cls, in_shape: Shape, classes: int, image_shape: Shape) -> Shape:
        """Image and z in a row, whatever arrives."""
        return (prod(image_shape) + classes,)

    def enter(self, x: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """(n, pixels + classes): in training, z is the label noised anew."""
        image, z = batch.carry["image"], batch.carry["code"]
        if batch.training:
            noise = _noise(z.shape, image, generator)
            z = sqrt(self.before) * self._label(batch.y, noise) + sqrt(1 - self.before) * noise
        return torch.cat([image.flatten(1), z], dim=1)

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """How far the guess is from the label."""
        guess = wide(h).softmax(1)
        return self.weight * (guess - self._label(batch.y, guess)).square().sum(1).mean()

    def leave(self, h: Tensor, batch: Batch) -> None:
        """In tests, z with less of its noise."""
        if not batch.training:
            guess, z = wide(h).softmax(1), batch.carry["code"]
            noise = (z - sqrt(self.before) * guess) / sqrt(1 - self.before)
            batch.carry["code"] = sqrt(self.after) * guess + sqrt(1 - self.after) * noise

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        """What this block takes for the label."""
        return wide(h)

    def _label(self, y: Tensor, like: Tensor) -> Tensor:
        """The label as the paper embeds it, u_y: (n, classes), one-hot here."""
        return F.one_hot(y, self.place.classes).to(like.dtype)


def _signal(t: int, blocks: int) -> float:
    """Share of signal in z_t, t = 0 … blocks: from none to nearly all, by the cosine schedule."""
    return sin(pi / 2 * t / (blocks + 1)) ** 2


def _noise(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.to(like.device)
