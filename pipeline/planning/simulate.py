"""How a pipeline runs, event by event: stages, devices, links and credits. Pure, no clock.

    feed ──▶ stage 0 ──▶ stage 1 ──▶ …        each: wait for a batch, forward, wait for a credit,
              dev a       dev b               send, learn, give the credit back

Processes that share a device share its speed evenly, and slow each other down on the cores of one
CPU, the more of them are at work. What is predicted is the steady state: the
second half of the simulated batches, while the feed goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class StageWork:
    """What one batch costs a stage, in seconds of its device.

    `forward_s`: until it can send; `send_s`: the copy; `learn_s`: after it has sent.
    `link_s`: what it sent keeps the link to the next stage busy for so long, one batch after the
    other; `latency_s`: then until it is there. No device is busy meanwhile.
    """

    device: int
    forward_s: float
    learn_s: float
    send_s: float = 0.0
    link_s: float = 0.0
    latency_s: float = 0.0

    @property
    def travel_s(self) -> float:
        """Seconds that a batch is under way to the next stage, where the link is free."""
        return self.link_s + self.latency_s

    @property
    def total_s(self) -> float:
        """Seconds that one batch keeps the device busy."""
        return self.forward_s + self.send_s + self.learn_s


@dataclass(frozen=True, slots=True)
class Crowd:
    """What stages on the cores of one CPU cost each other, beside their turns on these: while
    `at_work` stages are, or more, each has `speed` times the speed that it has alone. Of fewer,
    each other one at work costs as much."""

    speed: float = 1.0
    at_work: int = 2

    def slows(self, at_work: float) -> float:
        """How many times as long a batch takes among so many."""
        others = max(0.0, min(at_work, self.at_work) - 1.0)
        return 1.0 + (1.0 / self.speed - 1.0) * others / (self.at_work - 1)


NO_CROWD = Crowd()


@dataclass(frozen=True, slots=True)
class Forecast:
    """A simulated run. `ends_s`: when each batch was done; `device_busy`, `stage_busy`: shares of
    the steady state in which a device, or a stage, was working. `backlog`: how many batches more
    were under way at its end than at its beginning: of a steady state it is none, or few."""

    ends_s: tuple[float, ...]
    device_busy: tuple[float, ...]
    stage_busy: tuple[float, ...]
    backlog: int

    @property
    def batch_s(self) -> float:
        """Seconds between batches in the steady state."""
        half = len(self.ends_s) // 2
        return (self.ends_s[-1] - self.ends_s[half - 1]) / (len(self.ends_s) - half)


class _Doing(Enum):
    WAITING = auto()
    FORWARD = auto()
    BLOCKED = auto()
    SENDING = auto()
    LEARNING = auto()


class _Device:
    """Its processes all advance at the same speed, so one clock of what each has done is enough:
    it says when the next of them is through, however their number changes."""

    def __init__(self, capacity: float, crowd: Crowd) -> None:
        self.capacity, self._crowd = capacity, crowd
        self._now_s = self._clock_s = 0.0
        self._through: list[tuple[float, int]] = []
        self.share_s = 0.0
        """What each process that was at work all the time has had of the device so far."""
        self.changes = 0

    def advance(self, now_s: float) -> None:
        """Until then, nothing begins or ends."""
        share = min(1.0, self.capacity / max(1, len(self._through)))
        self.share_s += (now_s - self._now_s) * share
        self._clock_s += (now_s - self._now_s) * self._speed()
        self._now_s = now_s

    def begin(self, stage: int, seconds: float) -> None:
        """A process begins now with what takes a lone one so long."""
        heappush(self._through, (self._clock_s + seconds, stage))
        self.changes += 1

    def end(self) -> int:
        """The stage that is through now."""
        clock_s, stage = heappop(self._through)
        self._clock_s = max(self._clock_s, clock_s)
        self.changes += 1
        return stage

    def next_end_s(self) -> float:
        """When the next is through, if nothing begins before."""
        if not self._through:
            return inf
        return self._now_s + max(0.0, self._through[0][0] - self._clock_s) / self._speed()

    def _speed(self) -> float:
        n = max(1, len(self._through))
        crowded = self._crowd.slows(n) if self.capacity < inf else 1.0
        return min(1.0, self.capacity / n) / crowded


@dataclass(slots=True)
class _Worker:
    """A stage in the course of the simulation; `room`: credits of the next one; `link_free_s`: when
    the link to it has carried all that was sent so far."""

    work: StageWork
    device: _Device
    room: float
    arrived: float = 0
    doing: _Doing = _Doing.WAITING
    worked_s: float = 0.0
    begun_s: float = 0.0
    link_free_s: float = 0.0

    def so_far_s(self) -> float:
        """What it has had of its device."""
        at_work = self.doing not in (_Doing.WAITING, _Doing.BLOCKED)
        return self.worked_s + (self.device.share_s - self.begun_s if at_work else 0.0)


def simulate(
    stages: Sequence[StageWork],
    *,
    capacity: Sequence[float],
    max_in_flight: int,
    batches: int,
    feed_s: float = 0.0,
    feed_device: int | None = None,
    crowd: Crowd = NO_CROWD,
) -> Forecast:
    """Run a pipeline for some batches.

    Args:
        stages: in order; a batch takes some time in all of them together.
        capacity: of each device, how many stages it runs at once: 1 for a GPU, cores by threads of
            a stage for a CPU.
        max_in_flight: batches that may wait, or be worked on, behind each link.
        batches: at least 2.
        feed_s: seconds that the coordinator needs to prepare a batch.
        feed_device: where it does; None: on none of these.
        crowd: what stages cost each other on a device that runs several at once.
    """
    assert batches >= 2, "a steady state needs some batches"
    feed = StageWork(len(capacity) if feed_device is None else feed_device, feed_s, 0.0)
    devices = [_Device(room, crowd) for room in (*capacity, inf)]
    return _Simulation((feed, *stages), devices, max_in_flight, batches).run()


@dataclass(slots=True)
class _Window:
    """How far everything was when the steady state began."""

    begun_s: float = 0.0
    fed: int = 0
    worked_s: list[float] = field(default_factory=list)


class _Simulation:
    """The first of `works` is the feed's; the last of `devices` has no limit."""

    def __init__(
        self,
        works: Sequence[StageWork],
        devices: Sequence[_Device],
        max_in_flight: int,
        batches: int,
    ) -> None:
        self._devices = devices
        self._workers = [_Worker(work, devices[work.device], max_in_flight) for work in works]
        self._workers[0].arrived = inf  # what happens when the feed ends is no steady state
        self._workers[-1].room = inf
        self._batches, self._now_s, self._fed = batches, 0.0, 0
        self._events: list[tuple[float, int, int]] = []
        """When; and a device and its count of changes by then, or -1 and where a batch arrives."""
        self._ends_s: list[float] = []
        self._window = _Window(0.0, 0, [0.0] * len(works))

    def run(self) -> Forecast:
        self._go_on(0)
        while len(self._ends_s) < self._batches:
            at_s, device, number = heappop(self._events)
            if device < 0:
                self._now_s = at_s
                self._workers[number].arrived += 1
                self._go_on(number)
            elif self._devices[device].changes == number:
                self._now_s = at_s
                self._finish(device)
        return self._forecast()

    def _begin(self, stage: int, doing: _Doing, seconds: float) -> None:
        worker = self._workers[stage]
        worker.device.advance(self._now_s)
        worker.doing, worker.begun_s = doing, worker.device.share_s
        worker.device.begin(stage, seconds)
        self._expect(worker.work.device)

    def _expect(self, device: int) -> None:
        """Note when its next process is through; what was noted before is void."""
        at_s = self._devices[device].next_end_s()
        heappush(self._events, (at_s, device, self._devices[device].changes))

    def _finish(self, device: int) -> None:
        self._devices[device].advance(self._now_s)
        stage = self._devices[device].end()
        worker = self._workers[stage]
        worker.worked_s, doing = worker.so_far_s(), worker.doing
        worker.doing = _Doing.WAITING if doing is _Doing.LEARNING else _Doing.BLOCKED
        if doing is _Doing.LEARNING:
            self._end_batch(stage)
        elif doing is _Doing.SENDING:
            self._has_sent(stage)
        else:
            self._go_on(stage)
        self._expect(device)

    def _go_on(self, stage: int) -> None:
        """With the next thing to do, where what it waits for is there."""
        worker = self._workers[stage]
        if worker.doing is _Doing.WAITING and worker.arrived:
            worker.arrived -= 1
            self._begin(stage, _Doing.FORWARD, worker.work.forward_s)
        elif worker.doing is _Doing.BLOCKED and worker.room:
            worker.room -= 1
            if worker.work.send_s and stage < len(self._workers) - 1:
                self._begin(stage, _Doing.SENDING, worker.work.send_s)
            else:
                self._has_sent(stage)

    def _has_sent(self, stage: int) -> None:
        worker = self._workers[stage]
        self._fed += stage == 0
        if stage < len(self._workers) - 1:
            worker.link_free_s = max(self._now_s, worker.link_free_s) + worker.work.link_s
            arrives_s = worker.link_free_s + worker.work.latency_s
            heappush(self._events, (arrives_s, -1, stage + 1))
        self._begin(stage, _Doing.LEARNING, worker.work.learn_s)

    def _end_batch(self, stage: int) -> None:
        if stage:
            self._workers[stage - 1].room += 1
            self._go_on(stage - 1)
        if stage == len(self._workers) - 1:
            self._ends_s.append(self._now_s)
            if len(self._ends_s) == self._batches // 2:
                self._window = _Window(self._now_s, self._fed, self._worked_s())
        self._go_on(stage)

    def _worked_s(self) -> list[float]:
        for device in self._devices:
            device.advance(self._now_s)
        return [worker.so_far_s() for worker in self._workers]

    def _forecast(self) -> Forecast:
        length = self._now_s - self._window.begun_s
        pairs = zip(self._worked_s(), self._window.worked_s, strict=True)
        busy = [(worked - before) / length for worked, before in pairs]
        devices = [0.0] * len(self._devices)
        for worker, share in zip(self._workers, busy, strict=True):
            devices[worker.work.device] += share / worker.device.capacity
        backlog = self._fed - self._window.fed - (self._batches - self._batches // 2)
        return Forecast(tuple(self._ends_s), tuple(devices[:-1]), tuple(busy[1:]), backlog)
