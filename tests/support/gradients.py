"""Gradients against finite differences, each from a graph of its own.

`torch.autograd.gradcheck` goes back through one graph twice; heads and non-linearities overwrite
what they need no more, and don't allow that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

STEP = 1e-6
DIRECTIONS = 5


def check_gradients(function: Callable[..., Tensor], *given: Tensor) -> None:
    """Of a scalar function of float64 tensors that require gradients, along random directions."""
    for place, gradient in enumerate(torch.autograd.grad(function(*given), given)):
        for seed in range(DIRECTIONS):
            generator = torch.Generator().manual_seed(seed)
            step = STEP * torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
            above, below = (
                function(*(x + sign * step if at == place else x for at, x in enumerate(given)))
                for sign in (1, -1)
            )
            along = (gradient * step).sum()
            torch.testing.assert_close((above - below) / 2, along, rtol=1e-5, atol=1e-14)
