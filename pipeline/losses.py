"""The local losses of Nøkland & Eidnes (2019), section 3, and the heads that compute them.

Shapes: n examples in the batch; an activation h is (n, C, H, W) after a convolution block and
(n, D) after a linear one, taken after batch norm and non-linearity, before dropout and pooling.
Labels y are (n,) int64. Losses are scalars, computed in at least float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from pipeline.models import PoolSpec, PredSpec, SimSpec


class LossValue(NamedTuple):
    """A scalar loss, and the number of wrong predictions (None where nothing is predicted)."""

    loss: Tensor
    errors: Tensor | None


def similarity_matrix(x: Tensor) -> Tensor:
    """S(x): adjusted cosine similarity of the examples in a batch, (n, n), within [-1, 1].

    Equation 5. Feature maps of more than 3 channels are first reduced to their standard
    deviation over space (section 3.1); anything else is flattened.
    """
    if x.dim() == 4 and x.size(1) > 3 and x.size(2) > 1:
        x = x.flatten(2).std(dim=2)
    else:
        x = x.flatten(1)
    x = x - x.mean(dim=1, keepdim=True)
    x = x / (1e-8 + x.norm(dim=1, keepdim=True))
    return (x @ x.T).clamp(-1.0, 1.0)


def similarity_loss(mapped: Tensor, labels: Tensor, classes: int) -> Tensor:
    """L_sim: mean over the n×n entries of (S(g(h)) - S(Y))², Y one-hot (equation 4)."""
    target = F.one_hot(labels, classes).to(mapped.dtype)
    return F.mse_loss(similarity_matrix(mapped), similarity_matrix(target))


def prediction_loss(logits: Tensor, labels: Tensor) -> LossValue:
    """L_pred: cross-entropy of logits (n, classes) with the labels (equation 6)."""
    wrong = (logits.detach().argmax(dim=1) != labels).sum()
    return LossValue(F.cross_entropy(logits, labels), wrong)


def pool(x: Tensor, spec: PoolSpec | None) -> Tensor:
    """Pooling of (n, C, H, W) over space as `spec` says; unchanged for None."""
    if spec is None:
        return x
    apply = F.max_pool2d if spec.kind == "max" else F.avg_pool2d
    return apply(x, spec.kernel, spec.stride, spec.padding)


class PredHead(nn.Linear):
    """The local classifier D(pool(h)): (n, classes) logits. Its weight starts at zero."""

    def __init__(self, spec: PredSpec, classes: int) -> None:
        super().__init__(spec.features, classes)
        self.spec = spec
        nn.init.zeros_(self.weight)

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(pool(h, self.spec.pool).flatten(1))


def similarity_map(spec: SimSpec) -> nn.Module:
    """g of the similarity loss: the activation mapped onto its own shape, without bias."""
    if spec.kind == "conv":
        return nn.Conv2d(spec.features, spec.features, 3, padding=1, bias=False)
    return nn.Linear(spec.features, spec.features, bias=False)


def wide(x: Tensor) -> Tensor:
    """At least float32: losses and similarities are never computed in bfloat16."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
