"""Dropout whose masks belong to (seed, block, batch id), never to a process's history.

On the CPU numpy draws 16 random bits for each unit: PyTorch's Bernoulli numbers take three times
as long, and are others on processors of another make. Elsewhere the device works 64 bits for each
unit out of the batch id that lies in its memory (`StepScalars`), by SplitMix64 (Steele, Lea & Flood
2014): so a captured step (`cuda_graphs.py`) draws anew whenever it is replayed, and no mask
outlives its step.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from pipeline.device.compiler import run_plainly
from pipeline.seeding import Purpose, derived_seed, generator

if TYPE_CHECKING:
    from numpy.random import PCG64, Generator
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.device.compiler import FunctionCaller

HOST_DEVICES = frozenset({"cpu"})
"""Devices whose masks numpy draws."""

_BITS = 16
_PER_WORD = 64 // _BITS
_SPAN = 1 << 64


class Dropout:
    """Dropout of one block. `scale`: what is kept is multiplied by 1 / (1 - rate), in float32: in a
    mask of bfloat16 it would be rounded once, and be wrong the same way for every unit."""

    def __init__(self, rate: float, *, seed: int, block: int, of_units: bool = False) -> None:
        self.rate = rate
        self._of_units = of_units
        self.scale = float(np.float32(1.0) / np.float32(1.0 - rate))
        self._seed, self._block = seed, block
        self._key = _signed(derived_seed(seed, Purpose.DROPOUT, block))
        self._batch_id: Tensor | None = None
        self._share: tuple[int, int] | None = None
        self.run: FunctionCaller = run_plainly
        """Calls what a device works out."""

    def follow(self, batch_id: Tensor) -> None:
        """From now on a device reads the id of the batch there, when it comes to its mask."""
        self._batch_id = batch_id

    def take(self, first: int, examples: int) -> None:
        """From now on h is of so many examples of a batch, from `first` on: their masks are those
        that they have in the whole batch."""
        self._share = first, examples

    def mask(self, h: Tensor, batch_id: int) -> Tensor:
        """Zeros and ones, of h's dtype, per unit of h (n, D) and per channel of (n, C, H, W), or
        there, too, per unit (`of_units`)."""
        shape = h.shape if self._of_units else h.shape[:2] + (1,) * (h.dim() - 2)
        before = 0
        if self._share is not None:
            first, examples = self._share
            before = first * (prod(shape) // examples)
        if h.device.type in HOST_DEVICES:
            kept = self._drawn(prod(shape), batch_id, before)
        else:
            at_work = self._batch_id
            if at_work is None:  # a block outside a stage
                at_work = torch.full((), batch_id, device=h.device)
            numbers = self.run(uniform, at_work, self._key, prod(shape), before)
            kept = numbers >= _least_kept(self.rate)
        return kept.view(shape).to(h.dtype)

    def _drawn(self, count: int, batch_id: int, before: int) -> Tensor:
        numbers = generator(self._seed, Purpose.DROPOUT, self._block, batch_id)
        kept = _bits(numbers, count, before) >= round(self.rate * (1 << _BITS))
        # as bytes: PyTorch takes seven times as long to make numbers of bool
        return torch.from_numpy(kept.view(np.uint8))


def uniform(batch_id: Tensor, key: int, count: int, before: int = 0) -> Tensor:
    """So many uniform int64 for a batch, after so many others, all but their lowest bits of use:
    (count,), where the batch id (int64, a scalar) lies. The last step of SplitMix64, which mixes
    those bits, is left out.

    Args:
        key: where the sequence of batch 0 begins; int64.
    """
    # the batch is added first: compilers take `arange * constant` for an index, of 32 bits
    places = torch.arange(before, before + count, device=batch_id.device)
    numbers = places + batch_id * _BATCHES_APART
    numbers.mul_(_STEP).add_(key)
    for by, factor in _MIXING:
        bits = (numbers >> by).bitwise_and_((1 << (64 - by)) - 1)  # as of unsigned numbers
        numbers.bitwise_xor_(bits).mul_(factor)
    return numbers


def _signed(number: int) -> int:
    """The int64 of the same bits."""
    return (number + _SPAN // 2) % _SPAN - _SPAN // 2


def _least_kept(rate: float) -> int:
    """Of uniform int64 the share `rate` is less."""
    return min(round(rate * _SPAN), _SPAN - 1) - _SPAN // 2


def _bits(numbers: Generator, count: int, before: int = 0) -> NDArray[np.uint16]:
    """Uniform, after so many others; what `numbers.integers` gives, which takes twice as long."""
    words, within = divmod(before, _PER_WORD)
    if words:
        cast("PCG64", numbers.bit_generator).advance(words)
    drawn = numbers.bit_generator.random_raw(-(-(within + count) // _PER_WORD))
    return drawn.astype("<u8", copy=False).view("<u2")[within : within + count]


_STEP = _signed(0x9E3779B97F4A7C15)
_BATCHES_APART = _signed(0xD1B54A32D192ED03 * pow(_STEP, -1, _SPAN))
"""Batches begin so many steps from each other, which is far: 0xD1B54A32D192ED03 in numbers."""
_MIXING = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))
