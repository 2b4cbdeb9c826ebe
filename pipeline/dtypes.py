"""Types of the numbers in examples, targets and what travels; without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ITEM_BYTES = {"uint8": 1, "int64": 8, "float32": 4, "float64": 8, "bfloat16": 2}
"""Bytes of one number."""


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def wide(x: Tensor) -> Tensor:
    """At least float32: sums of squares, softmax and losses are never computed in bfloat16."""
    return x.float() if x.element_size() < 4 or not x.is_floating_point() else x
