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

_DONE_S = 1e-12


@dataclass(frozen=True, slots=True)
class StageWork:
    """What one batch costs a stage, in seconds of its device.

    `forward_s`: until it can send; `send_s`: the copy; `learn_s`: after it has sent.
    `travel_s`: until what it sent has arrived, in which no device is busy.
    """

    device: int
    forward_s: float
    learn_s: float
    send_s: float = 0.0
    travel_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Seconds that one batch keeps the device busy."""
        return self.forward_s + self.send_s + self.learn_s


@dataclass(frozen=True, slots=True)
class Forecast:
    """A simulated run. `ends_s`: when each batch was done; `device_busy`, `stage_busy`: shares of
    the steady state in which a device, or a stage, was working."""

    ends_s: tuple[float, ...]
    device_busy: tuple[float, ...]
    stage_busy: tuple[float, ...]

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


_WORKING = (_Doing.FORWARD, _Doing.SENDING, _Doing.LEARNING)


@dataclass(slots=True)
class _Worker:
    """A stage in the course of the simulation; `room`: credits of the next one."""

    work: StageWork
    room: float
    arrived: float = 0
    doing: _Doing = _Doing.WAITING
    left_s: float = 0.0
    worked_s: float = 0.0

    def begin(self, doing: _Doing, seconds: float) -> None:
        self.doing, self.left_s = doing, seconds

    def start_if_possible(self) -> None:
        """Go on where what it waited for is there."""
        if self.doing is _Doing.WAITING and self.arrived:
            self.arrived -= 1
            self.begin(_Doing.FORWARD, self.work.forward_s)
        elif self.doing is _Doing.BLOCKED and self.room:
            self.room -= 1
            self.begin(_Doing.SENDING, self.work.send_s)


def simulate(
    stages: Sequence[StageWork],
    *,
    capacity: Sequence[float],
    max_in_flight: int,
    batches: int,
    feed_s: float = 0.0,
    feed_device: int | None = None,
    crowded_speed: float = 1.0,
) -> Forecast:
    """Run a pipeline for some batches.

    Args:
        stages: in order.
        capacity: of each device, how many stages it runs at once: 1 for a GPU, cores by threads of
            a stage for a CPU.
        max_in_flight: batches that may wait, or be worked on, behind each link.
        batches: at least 2.
        feed_s: seconds that the coordinator needs to prepare a batch.
        feed_device: where it does; None: on none of these.
        crowded_speed: of a stage, as a share of what it is alone, where its device runs as many
            as it can.
    """
    assert batches >= 2, "a steady state needs some batches"
    feed = StageWork(len(capacity) if feed_device is None else feed_device, feed_s, 0.0)
    simulation = _Simulation((feed, *stages), capacity, max_in_flight, batches, crowded_speed)
    return simulation.run()


@dataclass(slots=True)
class _Window:
    """What stages had worked when the steady state began."""

    begun_s: float = 0.0
    worked_s: list[float] = field(default_factory=list)


class _Simulation:
    """The first of `works` is the feed's; one device more than in `capacity` has no limit."""

    def __init__(
        self,
        works: Sequence[StageWork],
        capacity: Sequence[float],
        max_in_flight: int,
        batches: int,
        crowded_speed: float,
    ) -> None:
        self._slower = 1.0 - crowded_speed
        self._workers = [_Worker(work, max_in_flight) for work in works]
        self._workers[0].arrived = inf  # what happens when the feed ends is no steady state
        self._workers[-1].room = inf
        self._capacity = [*capacity, inf]
        self._batches, self._now = batches, 0.0
        self._travelling: list[tuple[float, int]] = []
        self._ends: list[float] = []
        self._window = _Window(0.0, [0.0] * len(self._workers))

    def run(self) -> Forecast:
        while len(self._ends) < self._batches:
            for worker in self._workers:
                worker.start_if_possible()
            self._advance(self._to_the_next_event())
        return self._forecast()

    def _shares(self) -> list[tuple[float, float]]:
        """Of each device, for each of the processes at work on it: its share of the time, and the
        speed that this amounts to, a lone one's being 1."""
        working = [0] * len(self._capacity)
        for worker in self._workers:
            working[worker.work.device] += worker.doing in _WORKING
        pairs = zip(self._capacity, working, strict=True)
        return [self._share(room, max(1, n)) for room, n in pairs]

    def _share(self, room: float, n: int) -> tuple[float, float]:
        share = min(1.0, room / n)
        crowd = (min(room, n) - 1) / (room - 1) if 1 < room < inf else 0.0
        return share, share * (1.0 - self._slower * crowd)

    def _to_the_next_event(self) -> float:
        shares = self._shares()
        ends = [
            worker.left_s / shares[worker.work.device][1]
            for worker in self._workers
            if worker.doing in _WORKING
        ]
        arrivals = [self._travelling[0][0] - self._now] if self._travelling else []
        return min([*ends, *arrivals])

    def _advance(self, seconds: float) -> None:
        shares = self._shares()
        self._now += seconds
        for worker in self._workers:
            if worker.doing in _WORKING:
                share, speed = shares[worker.work.device]
                worker.left_s -= seconds * speed
                worker.worked_s += seconds * share
        while self._travelling and self._travelling[0][0] <= self._now + _DONE_S:
            self._workers[heappop(self._travelling)[1]].arrived += 1
        for stage, worker in enumerate(self._workers):
            if worker.doing in _WORKING and worker.left_s <= _DONE_S:
                self._finish(stage, worker)

    def _finish(self, stage: int, worker: _Worker) -> None:
        last = stage == len(self._workers) - 1
        if worker.doing is _Doing.FORWARD and not last:
            worker.doing = _Doing.BLOCKED
        elif worker.doing is _Doing.LEARNING:
            self._end_batch(stage, worker, last=last)
        else:
            if not last:
                heappush(self._travelling, (self._now + worker.work.travel_s, stage + 1))
            worker.begin(_Doing.LEARNING, worker.work.learn_s)

    def _end_batch(self, stage: int, worker: _Worker, *, last: bool) -> None:
        worker.doing = _Doing.WAITING
        if stage:
            self._workers[stage - 1].room += 1
        if last:
            self._ends.append(self._now)
            if len(self._ends) == self._batches // 2:
                worked = [worker.worked_s for worker in self._workers]
                self._window = _Window(self._now, worked)

    def _forecast(self) -> Forecast:
        length = self._now - self._window.begun_s
        pairs = zip(self._workers, self._window.worked_s, strict=True)
        busy = [(worker.worked_s - before) / length for worker, before in pairs]
        devices = [0.0] * len(self._capacity)
        for worker, share in zip(self._workers, busy, strict=True):
            devices[worker.work.device] += share / self._capacity[worker.work.device]
        return Forecast(tuple(self._ends), tuple(devices[:-1]), tuple(busy[1:]))
