"""The built-in local losses as rules, behind the same door as all others: `pred`, `sim`, `predsim`
with their bio, fixed and unsupervised forms, and the cross-entropy of the output layer.

They are called by `value`, which may overwrite the activation and knows of hand-written backward
passes; `loss` is the same for whoever calls them as any other rule. Their heads are modules of the
block, which checkpoints know by the names `pred.*`, `sim.*` and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.dtypes import wide
from pipeline.kernels.nonlinearity import activate
from pipeline.kernels.recompute import Activation
from pipeline.learning.heads import heads_of
from pipeline.learning.losses import (
    LossValue,
    compared,
    counted_apart,
    output_loss,
    prediction_loss,
    projected_prediction_loss,
    similarity_loss,
)
from pipeline.learning.precision import autocast
from pipeline.rules.rule import LocalRule, Place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from pipeline.learning.heads import PredHead
    from pipeline.learning.whole_batch import WholeBatch
    from pipeline.network.specs import BlockSpec
    from pipeline.rules.rule import Batch


class BuiltIn(LocalRule):
    """A rule of this project's own, which the engine calls by `value`."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__(
            Place(spec.index, 0, spec.in_shape, spec.shape, spec.classes, (), spec.target_shape)
        )
        self.spec = spec

    @property
    def smoothing(self) -> float:
        """Of labels: none in tests, whose losses so can be compared."""
        return self.spec.label_smoothing if self.training else 0.0

    def value(
        self, activation: Activation, targets: Tensor, x: Tensor, *, by_similarity: bool = True
    ) -> LossValue:
        """The loss of an activation for its targets and the block's input.

        Args:
            by_similarity: whether the batch has this part, if the block has it.
        """
        raise NotImplementedError

    def loss(
        self, h: Tensor, x: Tensor, batch: Batch, generator: torch.Generator
    ) -> Tensor | tuple[Tensor, Tensor] | None:
        return self.value(Activation(h), batch.y, x).loss


class OutputLoss(BuiltIn):
    """Cross-entropy of the output layer, whose activations are the logits."""

    def value(
        self, activation: Activation, targets: Tensor, x: Tensor, *, by_similarity: bool = True
    ) -> LossValue:
        value = output_loss(wide(activation.h), targets, self.smoothing)
        return value.of((self.spec.output_weight or 0.0) * value.loss)

    def scores(self, h: Tensor, batch: Batch) -> Tensor | None:
        return h


class Heads(NamedTuple):
    """Modules of a block that its losses read by; None where there is no such head."""

    pred: PredHead | None
    sim: nn.Module | None
    projection: nn.Module | None
    recon: nn.Module | None


class HeadLosses(BuiltIn):
    """Section 3 of the paper: a local classifier, similarity matching, or both (equations 4, 6, 7,
    8), and parts that need no labels."""

    def __init__(
        self,
        spec: BlockSpec,
        heads: Heads,
        *,
        device: torch.device,
        dtype: torch.dtype,
        bf16: bool,
    ) -> None:
        super().__init__(spec)
        self._heads, self._device, self._dtype, self._bf16 = heads, device, dtype, bf16
        self._whole: WholeBatch | None = None

    def see_whole_batches(self, whole: WholeBatch) -> None:
        """From now on similarities are those of whole batches."""
        self._whole = whole

    @torch.no_grad()
    def similarity_sizes(self, rows: int) -> Iterator[list[int]]:
        """Bytes of each tensor that a member gives at once of a share of so many examples."""
        if self._heads.sim is None or self._whole is None:
            return
        h, x = (
            torch.zeros(1, *shape, dtype=self._dtype, device=self._device)
            for shape in (self.spec.shape, self.spec.in_shape)
        )
        with self._autocast():
            _, mapped = heads_of(Activation(h), None, self._heads.sim, self.spec.sim)
        assert mapped is not None, "of the map that is there"
        label = torch.zeros(1, dtype=torch.int64, device=self._device)
        for target in (self._target(label), self._input(x)):
            yield [4 * rows * compared(wide(each)).size(1) for each in (mapped, target)]

    def scores(self, h: Tensor, batch: Batch) -> Tensor | None:
        """(n, classes) of the local classifier; None where there is none that predicts classes."""
        return (
            None
            if self._heads.pred is None or self._heads.projection is not None
            else self._heads.pred(h)
        )

    def value(
        self, activation: Activation, targets: Tensor, x: Tensor, *, by_similarity: bool = True
    ) -> LossValue:
        sim = self._heads.sim if by_similarity else None
        with self._autocast():
            logits, mapped = heads_of(activation, self._heads.pred, sim, self.spec.sim)
        value = self._supervised(logits, mapped, targets)
        if self.spec.unsupervised == "none":
            return value
        unsupervised = self._unsupervised(activation.h, mapped, x)
        alpha = self.spec.alpha
        return value.of(alpha * unsupervised + (1 - alpha) * value.loss)

    def _autocast(self) -> torch.autocast:
        return autocast(self._device, bf16=self._bf16)

    @property
    def _seen(self) -> WholeBatch | None:
        return self._whole if self._whole is not None and self._whole.is_open else None

    def _input(self, x: Tensor) -> Tensor:
        """Of a block, as its similarities are taken: that of a linear one is flat."""
        return x.flatten(1) if self.spec.layer.kind == "linear" else x

    def _target(self, labels: Tensor) -> Tensor:
        """Labels one-hot, or projected for the bio forms: (n, k)."""
        one_hot = F.one_hot(labels, self.spec.classes).to(self._dtype)
        if self._heads.projection is None:
            return one_hot
        projected: Tensor = self._heads.projection(one_hot)
        return projected

    def _supervised(
        self, logits: Tensor | None, mapped: Tensor | None, labels: Tensor
    ) -> LossValue:
        needed = mapped is not None or self._heads.projection is not None
        target = self._target(labels) if needed else labels
        terms: list[Tensor] = []
        errors = cross_entropy = similarity = predicted = None
        if logits is not None and self.spec.pred is not None:
            value = (
                projected_prediction_loss(wide(logits), target)
                if self._heads.projection is not None
                else prediction_loss(wide(logits), labels, self.smoothing)
            )
            terms.append(self.spec.pred.weight * value.loss)
            _, errors, cross_entropy, _, predicted = value
        if mapped is not None and self.spec.sim is not None:
            matching = similarity_loss(wide(mapped), target, self._seen)
            terms.append(self.spec.sim.weight * matching)
            similarity = counted_apart(matching)
        elif self.spec.sim is not None:  # left out of this batch, and counted all the same
            similarity = torch.zeros((), dtype=terms[0].dtype, device=terms[0].device)
        loss = sum(terms[1:], start=terms[0])
        return LossValue(loss, errors, cross_entropy, similarity, predicted)

    def _unsupervised(self, h: Tensor, mapped: Tensor | None, x: Tensor) -> Tensor:
        """Mean squared difference of similarities, or of the rebuilt input; 0 for neither."""
        x = wide(x.detach())
        if self.spec.unsupervised == "sim" and mapped is not None:
            return similarity_loss(wide(mapped), self._input(x), self._seen)
        if self._heads.recon is None:
            return torch.zeros((), dtype=x.dtype, device=x.device)
        with self._autocast():
            rebuilt = activate(self._heads.recon(h), self.spec.nonlinearity)
        return F.mse_loss(wide(rebuilt), x.reshape(rebuilt.shape))
