"""What a batch costs in seconds: measured on a device, or assumed of one; and what follows.

Block times are measured (`blocks.py`) or worked out from multiply-adds and an assumed device;
either way they become the work of stages, and these say how fast the pipeline is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from pipeline.network.specs import in_runs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.planning.cost import BlockCost
    from pipeline.planning.plan import Plan, StagePlan
    from pipeline.planning.plan_files import AssumedDevice

_ROUNDS = 50
"""In which the fixed point of contention is found, well below a per mille."""
_SHORTEST_S = 1e-9
"""No stage is free, whatever people write."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """What one batch costs a stage, or the coordinator that feeds the first one, in seconds of its
    device.

    `forward_s`: until it can send; `send_s`: the copy; `learn_s`: after it has sent.
    `link_s`: what it sent keeps the link to the next stage busy for so long, one batch after the
    other; `latency_s`: then until it is there; `credit_s`: until its slot's credit is back, between
    hosts. No device is busy meanwhile.
    """

    device: int
    forward_s: float
    learn_s: float
    send_s: float = 0.0
    link_s: float = 0.0
    latency_s: float = 0.0
    credit_s: float = 0.0

    @property
    def travel_s(self) -> float:
        """Seconds that a batch is under way to the next stage, where the link is free."""
        return self.link_s + self.latency_s

    @property
    def total_s(self) -> float:
        """Seconds that one batch keeps the device busy."""
        return self.forward_s + self.send_s + self.learn_s


NO_FEED = StageWork(-1, 0.0, 0.0)
"""Batches are there, on no device that counts."""


def batch_s(
    works: Sequence[StageWork],
    *,
    capacity: float,
    slots: int,
    feed: StageWork = NO_FEED,
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
        feed: the coordinator, which prepares batches and sends them to the first of the works.
    """
    loads = {work.device: feed.total_s * (work.device == feed.device) for work in works}
    for work in works:
        loads[work.device] += work.total_s
    floor = max(_SHORTEST_S, *(load / capacity for load in loads.values()))
    floor = max(floor, *(max(work.total_s, work.link_s) for work in (feed, *works)))
    taken = [work.total_s for work in works]
    for _ in range(_ROUNDS):
        # where one stage works at a time, the device's load says all of those that take turns on it
        circles = [
            (work.send_s + work.travel_s + after_s + work.credit_s) / slots
            for work, after, after_s in zip((feed, *works), works, taken, strict=False)
            if capacity > 1 or after.device != work.device
        ]
        stretched = taken if capacity > 1 else []
        period = max([floor, *circles, *stretched])
        shares = [min(1.0, took_s / period) for took_s in taken]
        at_work = {device: feed.total_s / period * (device == feed.device) for device in loads}
        for work, share in zip(works, shares, strict=True):
            at_work[work.device] += share
        taken = [
            # half of the way from the last round, so as not to overshoot
            (took_s + work.total_s * max(1.0, (1 + at_work[work.device] - share) / capacity)) / 2
            for work, share, took_s in zip(works, shares, taken, strict=True)
        ]
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
        """Seconds of its device that a batch takes altogether."""
        return self.forward_s + self.learn_s


@dataclass(frozen=True, slots=True)
class Links:
    """How tensors cross: copied by the sender's device, or sent to another while it works on, or by
    the network to another host. Each two neighbouring stages on different devices have a link of
    their own. What is not known takes no time."""

    copied_per_s: float = inf
    sent_per_s: float = inf
    latency_s: float = 0.0
    network_per_s: float = inf
    network_latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Prospect:
    """What to expect of a plan. `device_busy`: shares of the time, of all cores of a CPU."""

    images_per_s: float
    device_busy: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of every block, for batches of `batch_size` on devices of one kind.

    `capacity`: how many stages a device runs at once.
    `feed_s`: what the coordinator needs to prepare a batch, on the CPU of its host.
    `crowded_speed`: of several processes that share a CPU's caches, memory and clock, hops
    between them included, over what each reaches alone.
    `example_bytes`: of an example and its target, which the coordinator sends to the first stage.
    """

    times: tuple[BlockTimes, ...]
    costs: tuple[BlockCost, ...]
    batch_size: int
    links: Links = Links()
    capacity: float = 1.0
    feed_s: float = 0.0
    crowded_speed: float = 1.0
    example_bytes: int = 0

    @property
    def loads(self) -> list[int]:
        """As the planner wants them, in nanoseconds; none is free."""
        return [max(1, round(block.total_s * 1e9)) for block in self.times]

    def in_one_process(self) -> Timing:
        """In single mode on a CPU, where the process that trains prepares each batch itself."""
        first, *others = self.times
        first = replace(first, forward_s=first.forward_s + self.feed_s)
        return replace(self, times=(first, *others), feed_s=0.0)

    def works(self, plan: Plan) -> list[StageWork]:
        """What a batch costs each stage."""
        devices = _devices(plan)
        stages = plan.stages
        works = [
            self._work(stage, after, devices.index(stage.device))
            for stage, after in zip(stages, [*stages[1:], None], strict=True)
        ]
        # a replica learns from one batch of a round, and sends all on
        return [
            replace(
                work,
                forward_s=work.forward_s / stage.members,
                learn_s=work.learn_s / stage.members,
            )
            for work, stage in zip(works, stages, strict=True)
        ]

    def prospect(self, plan: Plan, max_in_flight: int) -> Prospect:
        """Its steady state: see `batch_s`."""
        works, names = self.works(plan), _devices(plan)
        plain_s = batch_s(
            works, capacity=self.capacity, slots=max_in_flight, feed=self._feed(plan, names)
        )
        loads = dict.fromkeys(names, 0.0)
        for work in works:
            loads[names[work.device]] += work.total_s
        busy = {name: load / self.capacity / plain_s for name, load in loads.items()}
        crowded_speed = self.crowded_speed if plan.n_stages > 1 else 1.0
        return Prospect(self.batch_size / plain_s * crowded_speed, busy)

    def _work(self, stage: StagePlan, after: StagePlan | None, device: int) -> StageWork:
        """A stage can send once its last group has gone forward; those before have learned."""
        blocks, links = stage.blocks, self.links
        groups = in_runs(blocks, lambda block: self.costs[block].same_group)
        earlier = sum(self.times[block].total_s for group in groups[:-1] for block in group)
        last = [self.times[block] for block in groups[-1]]
        forward, learn = sum(b.forward_s for b in last), sum(b.learn_s for b in last)
        begin = earlier + forward
        if after is None:
            return StageWork(device, begin, learn)
        nbytes = self.costs[blocks[-1]].sent_bytes * self.batch_size
        send_s = nbytes / links.copied_per_s
        work = StageWork(device, begin, learn, send_s)
        if after.host != stage.host:
            return self._over_the_network(work, nbytes)
        if after.device == stage.device:
            return work
        return replace(work, link_s=nbytes / links.sent_per_s, latency_s=links.latency_s)

    def _feed(self, plan: Plan, devices: Sequence[str]) -> StageWork:
        """The coordinator; examples that stay on its host take no time on their way."""
        cpu = f"{plan.fed_from}/cpu" if plan.fed_from else "cpu"
        work = StageWork(devices.index(cpu) if cpu in devices else -1, self.feed_s, 0.0)
        if plan.stages[0].host == plan.fed_from:
            return work
        return self._over_the_network(work, self.example_bytes * self.batch_size)

    def _over_the_network(self, work: StageWork, nbytes: int) -> StageWork:
        """What it sends goes to another host."""
        latency_s = self.links.network_latency_s
        link_s = nbytes / self.links.network_per_s
        return replace(work, link_s=link_s, latency_s=latency_s, credit_s=latency_s)


def assumed(
    costs: Sequence[BlockCost],
    device: AssumedDevice,
    macs_per_s: float,
    batch_size: int,
    example_bytes: int,
) -> Timing:
    """On devices that are only described; `macs_per_s` is their speed in the run's precision;
    `example_bytes` as `Timing`'s."""
    seconds = batch_size / macs_per_s
    times = tuple(
        BlockTimes(
            cost.block,
            cost.forward_macs * seconds + device.overhead_s,
            (cost.train_macs - cost.forward_macs) * seconds,
        )
        for cost in costs
    )
    network_per_s, network_latency_s = device.network_bytes_per_s, device.network_latency_s
    links = Links(
        sent_per_s=device.link_bytes_per_s,
        latency_s=device.link_latency_s,
        network_per_s=device.link_bytes_per_s if network_per_s is None else network_per_s,
        network_latency_s=(
            device.link_latency_s if network_latency_s is None else network_latency_s
        ),
    )
    return Timing(times, tuple(costs), batch_size, links, example_bytes=example_bytes)


def _devices(plan: Plan) -> list[str]:
    return list(dict.fromkeys(stage.device for stage in plan.stages))
