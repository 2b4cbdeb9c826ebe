"""Busy time: of this process, and of a device that is only handed its work."""

from __future__ import annotations

import pytest
import torch
from support.clocks import Clock, Device

from pipeline.device.meter import DeviceStopwatch, Meter, meter_of
from pipeline.learning.build import prepare_process


def test_waiting_within_work_is_not_busy() -> None:
    clock = Clock()
    meter = Meter(clock, peak_bytes=lambda: 7)
    with meter.working():
        clock.now += 3
        with meter.waiting():
            clock.now += 10
        clock.now += 1
    clock.now += 6
    usage = meter.take()
    assert (usage.wall_s, usage.busy_s, usage.peak_memory_bytes) == (20, 4, 7)


def test_a_look_sees_what_came_since_the_last_and_takes_nothing_away() -> None:
    clock = Clock()
    meter = Meter(clock)
    for busy, idle in ((1, 3), (3, 1), (0, 5)):
        with meter.working():
            clock.now += busy
        clock.now += idle
        assert meter.look() == busy / (busy + idle)
    assert meter.take().busy_s == 4


def test_what_goes_on_when_a_pass_is_reported_belongs_to_the_next() -> None:
    clock = Clock()
    meter = Meter(clock)
    with meter.working():
        clock.now += 2
        assert meter.take().busy_s == 0
    clock.now += 1
    usage = meter.take()
    assert (usage.wall_s, usage.busy_s) == (1, 2)


def test_a_device_is_busy_for_as_long_as_it_takes_not_for_as_long_as_it_is_told() -> None:
    device = Device()
    stopwatch = DeviceStopwatch(device.mark)
    for seconds in (2, 3):
        stopwatch.start()
        device.given += seconds
        stopwatch.stop()
        device.given += 1  # of others
    assert stopwatch.seconds() == 0
    device.reached = 2
    assert stopwatch.seconds() == 2
    device.reached = 6
    assert stopwatch.seconds() == stopwatch.seconds() == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("torch_settings")
def test_a_gpu_says_how_long_it_was_busy() -> None:
    device = torch.device("cuda", 0)
    prepare_process(device, 1)
    meter = meter_of(device)
    x = torch.rand(4096, 4096, device=device)
    with meter.working():
        for _ in range(50):
            x = (x @ x).clamp_(0, 1)
    torch.cuda.synchronize()
    usage = meter.take()
    assert 0 < usage.busy_s <= usage.wall_s
