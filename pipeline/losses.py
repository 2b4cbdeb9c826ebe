"""The local losses of Nøkland & Eidnes (2019), section 3: functions of activations and targets.

Shapes: n examples in the batch; an activation h is (n, C, H, W) after a convolution block and
(n, D) after a linear one, taken after batch norm and non-linearity, before dropout and pooling.
Labels y are (n,) int64. Losses are scalars, computed in at least float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class LossValue(NamedTuple):
    """A scalar loss, and the number of wrong predictions (None where nothing is predicted)."""

    loss: Tensor
    errors: Tensor | None


def similarity_matrix(x: Tensor) -> Tensor:
    """S(x): adjusted cosine similarity of the examples in a batch, (n, n), within [-1, 1].

    Equation 5. Feature maps of more than 3 channels are first reduced to their standard
    deviation over space (section 3.1); anything else is flattened.
    """
    x = x.flatten(2).std(dim=2) if is_reduced(x) else x.flatten(1)
    x = x - x.mean(dim=1, keepdim=True)
    x = x / (1e-8 + x.norm(dim=1, keepdim=True))
    return (x @ x.T).clamp(-1.0, 1.0)


def is_reduced(x: Tensor) -> bool:
    """Whether a similarity matrix sees x through its standard deviation over space."""
    return x.dim() == 4 and x.size(1) > 3 and x.size(2) > 1


def similarity_loss(features: Tensor, target: Tensor) -> Tensor:
    """L_sim: mean over the n×n entries of (S(features) - S(target))² (equation 4).

    Args:
        features: g(h) or its spread, or for the bio form the pooled h.
        target: (n, k): labels one-hot, or for the bio form projected.
    """
    return F.mse_loss(similarity_matrix(features), similarity_matrix(target))


def prediction_loss(logits: Tensor, labels: Tensor) -> LossValue:
    """L_pred: cross-entropy of logits (n, classes) with the labels (equation 6)."""
    wrong = (logits.detach().argmax(dim=1) != labels).sum()
    return LossValue(F.cross_entropy(logits, labels), wrong)


def projected_prediction_loss(logits: Tensor, projected: Tensor) -> LossValue:
    """L_pred-bio: binary cross-entropy of logits with the signs of the projected label, mean
    over all entries; both (n, k). Section 3.3. It predicts no class."""
    target = (projected > 0).to(logits.dtype)
    return LossValue(F.binary_cross_entropy_with_logits(logits, target), None)


def wide(x: Tensor) -> Tensor:
    """At least float32: losses and similarities are never computed in bfloat16."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
