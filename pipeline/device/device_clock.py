"""When a CUDA device did what it was given, by the clock of this process."""

from __future__ import annotations

from functools import partial
from time import perf_counter, sleep
from typing import TYPE_CHECKING

from pipeline.device.cuda_streams import LOOK_S, recorded_event

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from pipeline.device.meter import TimedMark


class EventClock:
    """Marks in the order of a device's work, and when it came to them.

    Events tell how long a device took from one to the next; when it came to the first one is seen
    by waiting for it, once, to within `LOOK_S`.
    """

    def __init__(
        self, mark: Callable[[], TimedMark], clock: Callable[[], float] = perf_counter
    ) -> None:
        """`mark` makes a mark at the end of what the device was given."""
        self._mark, self._clock = mark, clock
        self._first: tuple[TimedMark, float] | None = None
        self._marks: list[TimedMark] = []

    def mark(self) -> None:
        """At the end of what the device was given so far."""
        if self._first is None:
            first = self._mark()
            _wait_for(first)
            self._first = first, self._clock()
        self._marks.append(self._mark())

    def reached_s(self) -> tuple[float, ...]:
        """When the device came to each mark, in seconds of the clock; waits for the last one. Empty
        where there is none, or the device has failed."""
        if self._first is None:
            return ()
        before, at_s = self._first
        times: list[float] = []
        try:
            _wait_for(self._marks[-1])
            for mark in self._marks:  # step by step: a number of milliseconds has 24 bits
                at_s += before.elapsed_time(mark) / 1000.0
                before = mark
                times.append(at_s)
        except RuntimeError:  # of CUDA: whoever computes will hear of it, too
            return ()
        return tuple(times)


def event_clock(device: torch.device) -> EventClock | None:
    """That of a CUDA device; None on the CPU, which does everything at once."""
    if device.type != "cuda":
        return None
    return EventClock(partial(recorded_event, timed=True))


def _wait_for(mark: TimedMark) -> None:
    while not mark.query():  # a device that hangs is found by the watchdog: nothing moves
        sleep(LOOK_S)
