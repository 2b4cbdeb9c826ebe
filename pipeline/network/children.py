"""What the children of a network are for in its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def learns(module: nn.Module) -> bool:
    """Whether it has parameters to learn."""
    return any(parameter.requires_grad for parameter in module.parameters())


def passes_on(module: nn.Module) -> bool:
    """Whether it only brings an activation to the next block: dropout, pooling, flattening."""
    name = type(module).__name__
    return "Dropout" in name or "Pool" in name or name in ("Flatten", "Unflatten")
