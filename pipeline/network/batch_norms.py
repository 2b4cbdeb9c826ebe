"""Batch norms among a user's own modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Iterable

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Those that are known to normalise as torch has it: a class made of one may do anything."""


def normalise(modules: Iterable[nn.Module]) -> bool:
    """Whether there is any."""
    return any(isinstance(module, _BatchNorm) for module in modules)


def unusual_norms(modules: Iterable[nn.Module]) -> tuple[str, ...]:
    """The kinds of those that are not known, by name."""
    kinds = {type(module) for module in modules if isinstance(module, _BatchNorm)}
    return tuple(sorted(kind.__qualname__ for kind in kinds.difference(PLAIN)))
