"""What a batch costs in seconds: measured on a device, or assumed of one; and what follows.

Block times are measured (`blocks.py`) or worked out from multiply-adds and an assumed device;
either way they become the work of stages, and the simulation says how fast the pipeline is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from pipeline.network.specs import in_runs
from pipeline.planning.simulate import NO_CROWD, Crowd, simulate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.planning.cost import BlockCost
    from pipeline.planning.plan import Plan
    from pipeline.planning.plan_files import AssumedDevice
    from pipeline.planning.simulate import Forecast

_BATCHES_PER_STAGE = 4
"""Simulated at first, half of them before the steady state; twice as many until it is one."""
_LONGEST = 1 << 13
"""Batches simulated at most: some seconds. The slots of a pipeline are far fewer."""
_MOST_STEPS = 1 << 16
"""Of a batch through a stage: some seconds, with however many stages."""
SIMULATED_STAGES = 40
"""With more, to fill the pipeline alone takes too many steps: its speed is bound, not simulated."""
_STEADY = 0.003
"""Difference in speed, and share of the batches that pile up, of which nobody takes notice."""
_ROUNDS = 50
"""In which the fixed point of contention is found, well below a per mille."""
_SHORTEST_S = 1e-9
"""No stage is free, whatever people write."""


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


def batch_s(
    works: Sequence[StageWork],
    *,
    capacity: float,
    slots: int,
    feed_s: float = 0.0,
    feed_device: int | None = None,
) -> float:
    """Seconds from one batch to the next in the steady state of a pipeline.

    Something is always at work: the busiest device, the slowest stage, the feed or a link; or,
    with few slots, a batch's way through a link and the stage behind it, whose slots come back
    only then. For stages on devices of their own that is exact. Where a device is shared, stages
    stretch each other's work: each counts the others that are at work meanwhile, by the shares of
    time that they are, as if these fell together by chance.

    Args:
        works: in order; the last sends nothing.
        capacity: of each device, how many stages it runs at once: 1 for a GPU, cores by threads of
            a stage for a CPU. Beyond it they share it evenly.
        slots: batches that may wait, or be worked on, behind each link.
        feed_s: seconds that the coordinator needs to prepare a batch.
        feed_device: where it does; None: on none of these.
    """
    loads = {work.device: feed_s if work.device == feed_device else 0.0 for work in works}
    for work in works:
        loads[work.device] += work.total_s
    floor = max(feed_s, _SHORTEST_S, *(load / capacity for load in loads.values()))
    floor = max(floor, *(max(work.total_s, work.link_s) for work in works))
    taken = [work.total_s for work in works]
    for _ in range(_ROUNDS):
        circles = [
            (work.send_s + work.travel_s + after) / slots
            for work, after in zip(works, taken[1:], strict=False)
        ]
        # where one works at a time, the device's load says more than how long each of them takes
        period = max([floor, *circles, *(taken if capacity > 1 else ())])
        at_work = {device: feed_s / period * (device == feed_device) for device in loads}
        for work, took_s in zip(works, taken, strict=True):
            at_work[work.device] += min(1.0, took_s / period)
        for stage, (work, took_s) in enumerate(zip(works, taken, strict=True)):
            others = at_work[work.device] - min(1.0, took_s / period)
            stretched_s = work.total_s * max(1.0, (1 + others) / capacity)
            taken[stage] = (took_s + stretched_s) / 2  # half of the way, so as not to overshoot
    return period


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """Seconds of its device that one batch takes: until the block can send, and after.

    Blocks that were measured together, because no stage boundary can part them, have their
    times at the last of them.
    """

    block: int
    forward_s: float
    learn_s: float

    @property
    def total_s(self) -> float:
        """Both together."""
        return self.forward_s + self.learn_s


@dataclass(frozen=True, slots=True)
class Links:
    """How tensors cross: copied by the sender's device, or sent to another while it works on. Each
    two neighbouring stages on different devices have a link of their own.

    `hop_s`: what a batch takes their devices beside the copy, each of both ends half of it.
    """

    copied_per_s: float = inf
    sent_per_s: float = inf
    latency_s: float = 0.0
    hop_s: float = 0.0

    @property
    def end_s(self) -> float:
        """What a batch takes either end."""
        return self.hop_s / 2


@dataclass(frozen=True, slots=True)
class Prospect:
    """What to expect of a plan. `device_busy`, `stage_busy`: shares of the time; a device that
    runs two stages is busy for both."""

    images_per_s: float
    device_busy: Mapping[str, float]
    stage_busy: tuple[float, ...]
    simulated: bool = True
    """False: what its busiest device, link or feed allows at most."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of every block, for batches of `batch_size` on devices of one kind.

    `capacity`: how many stages a device runs at once; `crowd`: what they cost each other.
    `feed_s`: what the coordinator needs to prepare a batch, on the CPU.
    """

    times: tuple[BlockTimes, ...]
    costs: tuple[BlockCost, ...]
    batch_size: int
    links: Links = Links()
    capacity: float = 1.0
    feed_s: float = 0.0
    crowd: Crowd = NO_CROWD

    @property
    def loads(self) -> list[int]:
        """As the planner wants them, in nanoseconds; none is free."""
        return [max(1, round(block.total_s * 1e9)) for block in self.times]

    @property
    def fed_s(self) -> float:
        """What a batch takes the coordinator, until it is on its way."""
        return self.feed_s + self.links.end_s

    def in_one_process(self) -> Timing:
        """In single mode on a CPU, where the process that trains prepares each batch itself, and
        no other is at work."""
        first, *others = self.times
        first = replace(first, forward_s=first.forward_s + self.feed_s)
        times, links = (first, *others), replace(self.links, hop_s=0.0)
        return replace(self, times=times, links=links, feed_s=0.0, crowd=NO_CROWD)

    def works(self, plan: Plan) -> list[StageWork]:
        """What a batch costs each stage."""
        devices = _devices(plan)
        stages = plan.stages
        following = [*(devices.index(stage.device) for stage in stages[1:]), None]
        return [
            self._work(stage.blocks, devices.index(stage.device), after)
            for stage, after in zip(stages, following, strict=True)
        ]

    def prospect(self, plan: Plan, max_in_flight: int) -> Prospect:
        """Simulate a plan, until its speed is steady; bound that of many stages."""
        works = self.works(plan)
        if len(works) > SIMULATED_STAGES:
            return self._bound(plan, works)
        batches = _BATCHES_PER_STAGE * max(4, len(works))
        found = self._simulated(plan, works, max_in_flight, batches)
        while batches < min(_LONGEST, _MOST_STEPS // (2 * len(works))):
            batches, before = 2 * batches, found
            found = self._simulated(plan, works, max_in_flight, batches)
            if _is_steady(before, found, batches):
                break
        busy = dict(zip(_devices(plan), found.device_busy, strict=True))
        return Prospect(self.batch_size / found.batch_s, busy, found.stage_busy)

    def _bound(self, plan: Plan, works: Sequence[StageWork]) -> Prospect:
        names = _devices(plan)
        loads = [0.0] * len(names)
        for work in works:
            loads[work.device] += work.total_s / self.capacity
        slowest = max(max(work.total_s, work.link_s) for work in works)
        batch_s = max(*loads, slowest, self.fed_s)
        busy = {name: load / batch_s for name, load in zip(names, loads, strict=True)}
        stages = tuple(work.total_s / batch_s for work in works)
        return Prospect(self.batch_size / batch_s, busy, stages, simulated=False)

    def _simulated(
        self, plan: Plan, works: Sequence[StageWork], max_in_flight: int, batches: int
    ) -> Forecast:
        devices = _devices(plan)
        return simulate(
            works,
            capacity=[self.capacity] * len(devices),
            max_in_flight=max_in_flight,
            batches=batches,
            feed_s=self.fed_s,
            feed_device=devices.index("cpu") if "cpu" in devices else None,
            crowd=self.crowd,
        )

    def _work(self, blocks: Sequence[int], device: int, after: int | None) -> StageWork:
        """A stage can send once its last group has gone forward; those before have learned."""
        groups = in_runs(blocks, lambda block: self.costs[block].same_group)
        earlier = sum(self.times[block].total_s for group in groups[:-1] for block in group)
        last = [self.times[block] for block in groups[-1]]
        forward, learn = sum(b.forward_s for b in last), sum(b.learn_s for b in last)
        begin = self.links.end_s + earlier + forward
        if after is None:
            return StageWork(device, begin, max(learn, _SHORTEST_S))
        nbytes, here = self.costs[blocks[-1]].sent_bytes * self.batch_size, after == device
        return StageWork(
            device,
            begin,
            max(learn, _SHORTEST_S),
            send_s=self.links.end_s + nbytes / self.links.copied_per_s,
            link_s=0.0 if here else nbytes / self.links.sent_per_s,
            latency_s=0.0 if here else self.links.latency_s,
        )


def _is_steady(before: Forecast, found: Forecast, batches: int) -> bool:
    """Whether a longer simulation found the same speed, and what is fed comes out."""
    alike = abs(found.batch_s - before.batch_s) <= _STEADY * found.batch_s
    return alike and found.backlog <= max(1, _STEADY * batches)


def assumed(
    costs: Sequence[BlockCost], device: AssumedDevice, macs_per_s: float, batch_size: int
) -> Timing:
    """On devices that are only described; `macs_per_s` is their speed in the run's precision."""
    seconds = batch_size / macs_per_s
    times = tuple(
        BlockTimes(
            cost.block,
            cost.forward_macs * seconds + device.overhead_s,
            (cost.train_macs - cost.forward_macs) * seconds,
        )
        for cost in costs
    )
    links = Links(sent_per_s=device.link_bytes_per_s, latency_s=device.link_latency_s)
    return Timing(times, tuple(costs), batch_size, links)


def _devices(plan: Plan) -> list[str]:
    return list(dict.fromkeys(stage.device for stage in plan.stages))
