"""Where a stage's time goes: working, or waiting for a neighbour."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from pipeline.records import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def process_peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_reader(device: torch.device) -> Callable[[], int]:
    """Reads the peak memory: the allocator's on a CUDA device, the process's on the CPU."""
    if device.type == "cuda":
        return lambda: torch.cuda.max_memory_allocated(device)
    return process_peak_bytes


class Meter:
    """Adds up working time; waiting inside work (for a credit) is taken off it."""

    def __init__(
        self,
        clock: Callable[[], float] = perf_counter,
        peak_bytes: Callable[[], int] = process_peak_bytes,
    ) -> None:
        self._clock, self._peak_bytes = clock, peak_bytes
        self._began = self._looked = clock()
        self._busy_s = self._busy_at_look_s = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time spent inside counts as busy."""
        began = self._clock()
        try:
            yield
        finally:
            self._busy_s += self._clock() - began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside, within `working`, does not count as busy."""
        began = self._clock()
        try:
            yield
        finally:
            self._busy_s -= self._clock() - began

    def take(self) -> Usage:
        """The pass so far; the next one starts now."""
        now = self._clock()
        usage = Usage(now - self._began, max(0.0, self._busy_s), self._peak_bytes())
        self._began = self._looked = now
        self._busy_s = self._busy_at_look_s = 0.0
        return usage

    def look(self) -> float:
        """Busy share since the last look."""
        now = self._clock()
        wall_s, busy_s = now - self._looked, self._busy_s - self._busy_at_look_s
        self._looked, self._busy_at_look_s = now, self._busy_s
        return min(1.0, max(0.0, busy_s / wall_s)) if wall_s > 0 else 0.0
