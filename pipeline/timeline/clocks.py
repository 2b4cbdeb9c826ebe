"""Times of several processes on one clock."""

from __future__ import annotations

from time import perf_counter, time

from pipeline.schedule.reports import ClockReading
from pipeline.system.machine import clock_identity


def clock_reading() -> ClockReading:
    """The clocks of this process, now. Spans are in seconds of `perf_counter`, on Linux the
    system's monotonic clock, which all processes of a machine share."""
    return ClockReading(clock_identity(), perf_counter(), time())


def offset_s(there: ClockReading, here: ClockReading) -> float:
    """What to add to a monotonic time of `there` to have it on the monotonic clock of `here`.

    Nothing where it is the same clock; else both are compared by their wall clocks, and are as well
    aligned as these.
    """
    if there.identity == here.identity:
        return 0.0
    return (there.wall_s - there.monotonic_s) - (here.wall_s - here.monotonic_s)
