"""What several rules do with an activation."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(h: Tensor) -> Tensor:
    """At least float32: sums of squares, softmax and losses are never computed in bfloat16."""
    return h.to(torch.promote_types(h.dtype, torch.float32))
