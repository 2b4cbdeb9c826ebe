"""The local losses of Nøkland & Eidnes (2019), section 3: functions of activations and targets.

Shapes: n examples in the batch; an activation h is (n, C, H, W) after a convolution block and
(n, D) after a linear one, taken after batch norm and non-linearity, before dropout and pooling.
Labels y are (n,) int64. Losses are scalars, computed in at least float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.kernels.linear import product

if TYPE_CHECKING:
    from pipeline.learning.whole_batch import WholeBatch

_LEAST_LENGTH = 1e-8
"""Added to the length of a vector, so that none is divided by zero."""


class LossValue(NamedTuple):
    """A scalar loss, and the number of wrong predictions (None where nothing is predicted).

    `cross_entropy`, `similarity`: L_pred and L_sim of which the loss is made, not weighted, without
    a graph; None where it has no such part. `predicted`: the classes (n, …) that `errors` judges.
    """

    loss: Tensor
    errors: Tensor | None
    cross_entropy: Tensor | None = None
    similarity: Tensor | None = None
    predicted: Tensor | None = None

    def of(self, loss: Tensor) -> LossValue:
        """The same of another loss that is made of this one."""
        return LossValue(loss, self.errors, self.cross_entropy, self.similarity, self.predicted)


def counted_apart(part: Tensor) -> Tensor:
    """A part of a loss, without a graph."""
    part = part.detach()
    # where it is the whole loss, torch.compile (2.14) takes both for one that has no gradient
    return part.double() if torch.compiler.is_compiling() else part


def similarity_matrix(x: Tensor) -> Tensor:
    """S(x): adjusted cosine similarity of the examples in a batch, (n, n), within [-1, 1].

    Equation 5. Feature maps of more than 3 channels are first reduced to their standard
    deviation over space (section 3.1); anything else is flattened.
    """
    directions, _ = _directions(compared(x))
    return (directions @ directions.T).clamp(-1.0, 1.0)


def is_reduced(x: Tensor) -> bool:
    """Whether a similarity matrix sees x through its standard deviation over space."""
    return x.dim() == 4 and x.size(1) > 3 and x.size(2) > 1


def similarity_loss(features: Tensor, target: Tensor, whole: WholeBatch | None = None) -> Tensor:
    """L_sim: mean over the n×n entries of (S(features) - S(target))² (equation 4).

    Args:
        features: g(h) or its standard deviation over space, or for the bio form the pooled h.
        target: (n, k): labels one-hot, or for the bio form projected; it gets no gradient.
        whole: of a member that has a share of the batch: the mean is over the rows of its examples,
            each compared with all examples of the batch. None: n examples are all there are.
    """
    if torch.compiler.is_compiling():
        return F.mse_loss(similarity_matrix(features), similarity_matrix(target.detach()))
    loss: Tensor = _Matching.apply(compared(features), compared(target.detach()), whole)
    return loss


def compared(x: Tensor) -> Tensor:
    """What similarities are of, for each example: (n, D)."""
    return x.flatten(2).std(dim=2) if is_reduced(x) else x.flatten(1)


def _directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (n, D) centred and divided by its length (n, 1)."""
    x = x - x.mean(dim=1, keepdim=True)
    length = x.norm(dim=1, keepdim=True)
    return x / (length + _LEAST_LENGTH), length


class _Matching(torch.autograd.Function):
    """Mean of (S - wanted)², S and wanted symmetric: half the work of what autograd would do.

    Of a share, the rows that it has of both: what its examples owe to the other rows is in them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, whole: WholeBatch | None) -> Tensor:
        directions, length = _directions(x)
        wanted, _ = _directions(target)
        others, others_wanted = whole.rows(directions, wanted) if whole else (directions, wanted)
        cosines = product(directions, others)
        off = cosines.clamp(-1.0, 1.0).sub_((wanted @ others_wanted.T).clamp_(-1.0, 1.0))
        ctx.save_for_backward(directions, length, others, cosines, off)
        return off.square().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None, None]:
        directions, length, others, cosines, off = ctx.saved_tensors
        by_cosines = (off * (by_loss * (4 / off.numel()))).masked_fill_(cosines.abs() > 1, 0.0)
        by_x = product(by_cosines, others.T)
        along = (by_x * directions).sum(dim=1, keepdim=True)
        # finite where a length is infinite, as the loss is; the gradient of a length of 0 is 0
        along = (along * (1 + _LEAST_LENGTH / length)).masked_fill_(length == 0, 0.0)
        by_x.addcmul_(directions, along, value=-1.0).div_(length + _LEAST_LENGTH)
        return by_x.sub_(by_x.mean(dim=1, keepdim=True)), None, None


def output_loss(outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> LossValue:
    """Of the output layer: cross-entropy of logits (n, classes, …) with classes (n, …), or the mean
    squared error of numbers, which predicts no class. `smoothing`: as for `prediction_loss`."""
    if targets.is_floating_point():
        return LossValue(F.mse_loss(outputs.reshape(targets.shape), targets), None)
    return prediction_loss(outputs, targets, smoothing)


def prediction_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> LossValue:
    """L_pred: cross-entropy of logits (n, classes, …) with labels (n, …) (equation 6).

    Args:
        smoothing: share of each target that all classes have in common, in equal parts
            (Szegedy et al. 2016, section 7).
    """
    predicted = logits.detach().argmax(dim=1)
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    errors = (predicted != labels).sum()
    return LossValue(loss, errors, cross_entropy=counted_apart(loss), predicted=predicted)


def projected_prediction_loss(logits: Tensor, projected: Tensor) -> LossValue:
    """L_pred-bio: binary cross-entropy of logits with the signs of the projected label, mean
    over all entries; both (n, k). Section 3.3. It predicts no class."""
    target = (projected > 0).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, target)
    return LossValue(loss, None, cross_entropy=counted_apart(loss))
