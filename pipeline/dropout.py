"""Dropout whose masks belong to (seed, block, batch id), never to a process's history.

On the CPU numpy draws 16 random bits for each unit: PyTorch's Bernoulli numbers take three times
as long, and are others on processors of another make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.seeding import Purpose, derived_seed, generator

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_BITS = 16
_PER_WORD = 64 // _BITS


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
            kept = _bits(numbers, mask.numel()) >= round(self.rate * (1 << _BITS))
            # as bytes: PyTorch takes seven times as long to make numbers of bool
            return mask.copy_(torch.from_numpy(kept.view(np.uint8)).view_as(mask)).div_(keep)
        self._generator.manual_seed(derived_seed(self._seed, Purpose.DROPOUT, *position))
        return mask.bernoulli_(keep, generator=self._generator).div_(keep)


def _bits(numbers: Generator, count: int) -> NDArray[np.uint16]:
    """Uniform; what `numbers.integers` gives, which takes twice as long."""
    words = numbers.bit_generator.random_raw(-(-count // _PER_WORD))
    return words.astype("<u8", copy=False).view("<u2")[:count]


def _memory(h: Tensor) -> Tensor:
    return torch.empty(h.shape[:2] + (1,) * (h.dim() - 2), dtype=h.dtype, device=h.device)
