"""Types of the numbers in examples, targets and what travels, by their names; without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {"uint8": 1, "int64": 8, "float32": 4, "float64": 8, "bfloat16": 2}
"""Bytes of one number."""


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")
