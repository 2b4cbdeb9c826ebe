"""Dropout whose masks belong to (seed, block, batch id), never to a process's history.

On the CPU numpy draws 16 random bits for each unit: PyTorch's Bernoulli numbers take three times
as long, and are others on processors of another make.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.seeding import Purpose, derived_seed, generator

_BITS = 16


@dataclass(slots=True)
class _Kept:
    mask: Tensor
    batch_id: int | None = None


class Dropout:
    """Of one block. With `keep` a mask has memory of its own, one for each size of a batch, and is
    drawn once for a batch, early: a recorded step (`graphs.py`) reads it there."""

    def __init__(self, rate: float, *, seed: int, block: int, device: torch.device) -> None:
        self.rate = rate
        self._seed, self._block = seed, block
        self._generator = torch.Generator(device)
        self._kept: dict[int, _Kept] | None = None

    def keep(self) -> None:
        """From now on masks stay where they are."""
        self._kept = {} if self._kept is None else self._kept

    def mask(self, h: Tensor, batch_id: int) -> Tensor:
        """Zeros and 1/(1 - rate), per unit of h (n, D) and per channel of (n, C, H, W)."""
        if self._kept is None:
            return self._drawn(_memory(h), batch_id)
        if len(h) not in self._kept:
            self._kept[len(h)] = _Kept(_memory(h))
        self.draw(len(h), batch_id)
        return self._kept[len(h)].mask

    def draw(self, examples: int, batch_id: int) -> None:
        """Ahead of `mask`, where there is memory for so many examples."""
        kept = (self._kept or {}).get(examples)
        if kept is not None and kept.batch_id != batch_id:
            self._drawn(kept.mask, batch_id)
            kept.batch_id = batch_id

    def _drawn(self, mask: Tensor, batch_id: int) -> Tensor:
        keep, position = 1.0 - self.rate, (self._block, batch_id)
        if mask.device.type == "cpu":
            numbers = generator(self._seed, Purpose.DROPOUT, *position)
            bits = numbers.integers(0, 1 << _BITS, mask.shape, dtype=np.uint16)
            kept = torch.from_numpy(bits >= round(self.rate * (1 << _BITS)))
            return mask.copy_(kept).div_(keep)
        self._generator.manual_seed(derived_seed(self._seed, Purpose.DROPOUT, *position))
        return mask.bernoulli_(keep, generator=self._generator).div_(keep)


def _memory(h: Tensor) -> Tensor:
    return torch.empty(h.shape[:2] + (1,) * (h.dim() - 2), dtype=h.dtype, device=h.device)
