"""Forward-Forward: a label written into the image is right where the layers' goodness is high.

Hinton (2022), "The Forward-Forward Algorithm: Some Preliminary Investigations": goodness is the
sum of squared activities. `objective: hinton` is its logistic regression against a threshold,
`symba` the margin of Lee & Song (2023), "SymBa: Symmetric Backpropagation-Free Contrastive Learning
with Forward-Forward Algorithm for Optimizing Convergence".

What differs: the image's length is normalised as activities are; negative labels are drawn evenly
from the wrong ones; goodness is a mean by default; no peer normalisation, no pass with a neutral
label, and of SymBa the loss only.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from pipeline.dtypes import wide
from pipeline.rules.options import check_choice, check_classes, check_number
from pipeline.rules.rule import Batch, LocalRule

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.rules.rule import Place


class ForwardForward(LocalRule):
    """Rows are right and wrong label by turns in training, each label in turn in tests.

    Options:
        objective: `hinton`, or `symba`.
        goodness: `mean` or `sum` of the squared activities.
        threshold: of the goodness, for `hinton`; with `sum`, the number of units is usual.
        alpha: sharpness of the margin, for `symba`.
    """

    carries = ("goodness",)
    output_layer = False

    def __init__(
        self,
        place: Place,
        objective: str = "hinton",
        goodness: str = "mean",
        threshold: float = 2.0,
        alpha: float = 4.0,
    ) -> None:
        super().__init__(place)
        check_choice("objective", objective, ("hinton", "symba"))
        check_choice("goodness", goodness, ("mean", "sum"))
        check_number("threshold", threshold, above=0)
        check_number("alpha", alpha, above=0)
        check_classes(place)
        if place.classes > prod(place.image_shape):
            raise ValueError(
                f"{place.classes} classes in images of shape {place.image_shape}: the label is "
                "written over one number of the image a class"
            )
        self.objective, self.threshold, self.alpha = objective, threshold, alpha
        self.units = prod(place.shape) if goodness == "mean" else 1

    @classmethod
    def expand(
        cls, batch: Batch, classes: int, training: bool, generator: torch.Generator
    ) -> Batch:
        """Labels in place of the first numbers of the image: its largest, or else its smallest."""
        y = batch.y
        if training:
            other = torch.randint(1, classes, y.shape, generator=generator, device=generator.device)
            told = torch.stack([y, (y + other.to(y.device)) % classes], 1)
        else:
            told = torch.arange(classes, device=y.device).expand(len(y), classes)
        x = batch.x.flatten(1).repeat_interleave(told.shape[1], dim=0)
        low, high = x.aminmax(dim=1, keepdim=True)
        x[:, :classes] = torch.where(F.one_hot(told.flatten(), classes) > 0, high, low)
        goodness = torch.zeros(told.shape, dtype=wide(x).dtype, device=x.device)
        return Batch(x.view(-1, *batch.x.shape[1:]), y, {"goodness": goodness}, training)

    def enter(self, x: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean square 1 in each row: the goodness of the block before says nothing here."""
        x = wide(x)
        square = x.square().mean(dim=tuple(range(1, x.dim())), keepdim=True)
        return x / (square.sqrt() + 1e-8)

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """Of the goodness of right and wrong labels."""
        right, wrong = self._goodness(h, batch).unbind(1)
        if self.objective == "symba":
            return F.softplus(-self.alpha * (right - wrong)).mean()
        return (F.softplus(self.threshold - right) + F.softplus(wrong - self.threshold)).mean()

    def leave(self, h: Tensor, batch: Batch) -> None:
        """In tests, the sum over all blocks but the first, whose goodness is that of its image."""
        if not batch.training:
            before = batch.carry["goodness"] if self.place.nth > 1 else 0
            batch.carry["goodness"] = before + self._goodness(h, batch)

    def scores(self, h: Tensor, batch: Batch) -> Tensor | None:
        """The goodness of each label up to here; of the first block, its own."""
        return None if batch.training else batch.carry["goodness"]

    def _goodness(self, h: Tensor, batch: Batch) -> Tensor:
        """The goodness of this block alone: (n, labels tried)."""
        total = wide(h).flatten(1).square().sum(1) / self.units
        return total.view(len(batch.y), -1)
