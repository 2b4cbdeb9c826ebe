"""Where a stage's time goes: working, or waiting for a neighbour."""

from __future__ import annotations

import resource
from collections import deque
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pipeline.device.cuda_streams import Mark, recorded_event
from pipeline.schedule.reports import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def process_peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_reader(device: torch.device) -> Callable[[], int]:
    """Reads the peak memory: the process's on the CPU; on a CUDA device what PyTorch's allocator
    had given out, without what it or a captured step keeps for the next time."""
    if device.type == "cuda":
        return lambda: torch.cuda.max_memory_allocated(device)
    return process_peak_bytes


class Stopwatch(Protocol):
    """Adds up the time between starts and stops."""

    def start(self) -> None:
        """Count from here on."""

    def stop(self) -> None:
        """Count up to here."""

    def seconds(self) -> float:
        """The sum so far, of all that has been stopped."""


class HostStopwatch:
    """The time that this process takes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = self._sum = 0.0

    def start(self) -> None:
        self._began = self._clock()

    def stop(self) -> None:
        self._sum += self._clock() - self._began

    def seconds(self) -> float:
        return self._sum


class TimedMark(Mark, Protocol):
    """A point in a device's work that knows when it was reached."""

    def elapsed_time(self, later: Any) -> float:
        """Milliseconds from here to there."""


class DeviceStopwatch:
    """The time that a CUDA device takes for what it is given between a start and a stop: the
    process only hands work over, and is done long before. Reading it waits for nothing."""

    def __init__(self, mark: Callable[[], TimedMark]) -> None:
        """`mark` makes a mark at the end of what the device was given."""
        self._mark = mark
        self._began: TimedMark | None = None
        self._laps: deque[tuple[TimedMark, TimedMark]] = deque()
        self._sum = 0.0

    def start(self) -> None:
        """When the device has done what it was given before."""
        self._began = self._mark()

    def stop(self) -> None:
        """When the device has done what it was given since."""
        assert self._began is not None, "started before it is stopped"
        self._laps.append((self._began, self._mark()))
        self.seconds()

    def seconds(self) -> float:
        """So far, as far as the device has come."""
        while self._laps and self._laps[0][1].query():
            began, ended = self._laps.popleft()
            self._sum += began.elapsed_time(ended) / 1000.0
        return self._sum


def meter_of(device: torch.device) -> Meter:
    """Measures what a stage on this device does."""
    if device.type != "cuda":
        return Meter()
    return Meter(
        peak_bytes=peak_reader(device),
        stopwatch=DeviceStopwatch(partial(recorded_event, timed=True)),
    )


class Meter:
    """Adds up working time; waiting inside work (for a credit) is taken off it."""

    def __init__(
        self,
        clock: Callable[[], float] = perf_counter,
        peak_bytes: Callable[[], int] = process_peak_bytes,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self._clock, self._peak_bytes = clock, peak_bytes
        self._stopwatch = stopwatch or HostStopwatch(clock)
        self._began = self._looked = clock()
        self._busy_at_take_s = self._busy_at_look_s = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time spent inside counts as busy."""
        self._stopwatch.start()
        try:
            yield
        finally:
            self._stopwatch.stop()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside, within `working`, does not count as busy."""
        self._stopwatch.stop()
        try:
            yield
        finally:
            self._stopwatch.start()

    def take(self) -> Usage:
        """The pass so far; the next one starts now."""
        now, busy_s = self._clock(), self._stopwatch.seconds()
        usage = Usage(now - self._began, busy_s - self._busy_at_take_s, self._peak_bytes())
        self._began = self._looked = now
        self._busy_at_take_s = self._busy_at_look_s = busy_s
        return usage

    def look(self) -> float:
        """Busy share since the last look."""
        now, total_s = self._clock(), self._stopwatch.seconds()
        wall_s, busy_s = now - self._looked, total_s - self._busy_at_look_s
        self._looked, self._busy_at_look_s = now, total_s
        return min(1.0, max(0.0, busy_s / wall_s)) if wall_s > 0 else 0.0
