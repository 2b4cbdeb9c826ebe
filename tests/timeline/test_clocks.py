"""Times of two machines on one clock."""

from __future__ import annotations

import os
import subprocess
import sys
from time import monotonic, perf_counter

import pytest

from pipeline.schedule.reports import ClockReading
from pipeline.timeline.clocks import clock_reading, offset_s


def test_one_clock_needs_no_aligning_whatever_its_wall_clock_was_set_to_meanwhile() -> None:
    there, here = ClockReading("boot", 50.0, 1000.0), ClockReading("boot", 60.0, 7000.0)
    assert offset_s(there, here) == 0.0


@pytest.mark.parametrize("read_later_s", [0.0, 3.5])
def test_two_machines_are_aligned_by_their_wall_clocks(read_later_s: float) -> None:
    """One was booted at 900 by the wall clock, one at 250; when they are read makes no odds."""
    there = ClockReading("there", 100.0 + read_later_s, 1000.0 + read_later_s)
    here = ClockReading("here", 760.0, 1010.0)
    at_wall_s = 1005.0
    assert (at_wall_s - 900.0) + offset_s(there, here) == at_wall_s - 250.0
    assert offset_s(here, there) == -offset_s(there, here)


def test_spans_are_timed_by_the_clock_that_processes_share() -> None:
    before = monotonic()
    now = clock_reading()
    assert before <= now.monotonic_s <= perf_counter() <= monotonic()
    program = "from pipeline.timeline.clocks import clock_reading as r; print(r().monotonic_s)"
    program += "; print(r().identity)"
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    ).stdout.splitlines()
    assert now.monotonic_s < float(told[0]) < monotonic()
    assert told[1] == now.identity
