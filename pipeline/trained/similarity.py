"""How alike a trained network finds examples, block by block: what similarity matching is about.

S(h) is the adjusted cosine similarity of the activations h of a batch, pair by pair (equation 5 of
Nøkland & Eidnes 2019); S(y) that of its labels: one within a class, about zero between classes. The
similarity loss of a block is the mean of (S(g(h)) - S(y))², with a map g of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from pipeline.learning.losses import similarity_matrix

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.learning.block import Block
    from pipeline.trained.network import TrainedNetwork


@dataclass(frozen=True, slots=True)
class Similar:
    """Of a block, for n examples: `of_h`, and `of_map` where it has a map g, (n, n) each, from -1
    to 1."""

    block: int
    of_h: Tensor
    of_map: Tensor | None


@dataclass(frozen=True, slots=True)
class Similarities:
    """Of n examples of classes `y` (n,): by these, by the examples as they are in the data, where
    they are no tokens, and by block. `copies`: of each example, where the rule makes some: the
    first is compared."""

    y: Tensor
    of_y: Tensor
    of_x: Tensor | None
    blocks: tuple[Similar, ...] = field(default=())
    copies: int = 1

    def within_and_between(self, found: Tensor) -> tuple[float, float]:
        """Means of a matrix over pairs of one class, itself left out, and of different classes."""
        same = self.y[:, None] == self.y
        others = same & ~torch.eye(len(self.y), dtype=torch.bool)
        return float(found[others].mean()), float(found[~same].mean())

    def mismatch(self, found: Tensor) -> float:
        """Mean of (S - S(y))²."""
        return float((found - self.of_y).square().mean())


@torch.no_grad()
def similarities(network: TrainedNetwork, x: Tensor, y: Tensor) -> Similarities:
    """Let examples (n, …) of classes y (n,), as they are in the data, through a network.

    Of blocks that rules have looked at several times, as for each class, the first time counts.
    """
    found: dict[int, Similar] = {}
    copies: dict[int, int] = {}

    def compare(block: Any, arrived: Any, h: Tensor) -> None:
        copies[block.spec.index] = rows = max(1, len(h) // len(y))
        if block.spec.index not in found:
            found[block.spec.index] = _compared(block, h[::rows])

    hooks = [block.register_forward_hook(compare) for block in network.stage.blocks]
    try:
        network.stage.scores(x, y)
    finally:
        for hook in hooks:
            hook.remove()
    of_x = None if x.dtype == torch.int64 else similarity_matrix(x.float())
    of_y = similarity_matrix(F.one_hot(y, network.facts.classes).float())
    blocks = tuple(found[block] for block in sorted(found))
    return Similarities(y, of_y, of_x, blocks, max(copies.values(), default=1))


def _compared(block: Block, h: Tensor) -> Similar:
    seen = block.seen(h)
    of_map = None
    if block.sim is not None:
        with block.autocast():
            of_map = similarity_matrix(block.sim(seen).float())
    return Similar(block.spec.index, similarity_matrix(seen.float()), of_map)
