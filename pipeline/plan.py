"""Blocks -> stages -> devices, from what each block costs; and how fast that can be. Pure.

    blocks   0  1  2  3  4  5        a stage is consecutive blocks: the slowest made fastest
    stages   0  0  1  2  2  3
    devices  a  a  b  c  c  a        a stage goes on any device: the busiest made least busy

Nothing flows upstream and there is no bubble, so a pipeline is as fast as its busiest device
(section 8 of the design). Devices count as equally fast, and all of them are used. Every
choice is a function of the costs alone: the same run is planned the same way everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.specs import stage_units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.cost import BlockCost, StageCost
    from pipeline.specs import BlockSpec

_SEARCHED_STAGES = 40
"""With more stages than this the quick placements are used as they are."""
_NODE_LIMIT = 20_000
"""Steps of each search, some 50 ms; beyond it the best placement found so far is used."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: which blocks (by index, consecutive) on which device."""

    stage: int
    blocks: tuple[int, ...]
    device: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Where every block is trained."""

    stages: tuple[StagePlan, ...]

    @property
    def n_stages(self) -> int:
        """How many worker processes this plan needs."""
        return len(self.stages)

    def tree(self, costs: Sequence[BlockCost] = ()) -> dict[str, Any]:
        """Plain JSON values, for plan.json."""
        stages = [
            {"stage": plan.stage, "device": plan.device, "blocks": list(plan.blocks)}
            for plan in self.stages
        ]
        return {"stages": stages, "costs": [cost.tree() for cost in costs]}


def make_plan(
    specs: Sequence[BlockSpec],
    costs: Sequence[BlockCost],
    *,
    stages: int | None,
    devices: Sequence[str],
) -> Plan:
    """Divide the blocks into stages and place these on devices.

    Args:
        stages: how many; None means as many as there can be, one per hidden layer unless layers
            learn in groups or a shortcut spans them. The output block joins the last.
        devices: at least one; stage 0 gets the first.

    Raises:
        ConfigError: where there is no stage, or more stages than the network can be cut into.
    """
    assert devices, "no device to place stages on"
    units = stage_units(specs)
    n_stages = len(units) if stages is None else stages
    _check_stages(n_stages, specs, len(units))
    groups = _divide(units, costs, n_stages)
    loads = [sum(costs[block].train_macs for block in group) for group in groups]
    placement = place(loads, len(devices))
    return Plan(
        tuple(
            StagePlan(stage, group, devices[device])
            for stage, (group, device) in enumerate(zip(groups, placement, strict=True))
        )
    )


def speedup_bound_consecutive(costs: Sequence[BlockCost | StageCost], n_devices: int) -> float:
    """How many times faster than one device, where each device takes consecutive parts."""
    loads = [cost.train_macs for cost in costs]
    return sum(loads) / _smallest_peak(loads, n_devices)


def speedup_bound_free(costs: Sequence[BlockCost | StageCost], n_devices: int) -> float:
    """How many times faster than one device, where any device takes any part.

    Exact unless the search meets its limits; then what the best placement found gives.
    """
    loads = [cost.train_macs for cost in costs]
    return sum(loads) / busiest(loads, place(loads, n_devices))


def busiest(loads: Sequence[int], placement: Sequence[int]) -> int:
    """Load of the busiest device; `placement` holds a device number for each load."""
    return max(_device_loads(loads, placement))


def place(loads: Sequence[int], n_devices: int) -> tuple[int, ...]:
    """A device number for each stage, in the order of first use; `_merit` says what is best."""
    n_devices = min(n_devices, len(loads))
    placements = _placed_longest_first(loads, n_devices), _placed_consecutively(loads, n_devices)
    quick = min(placements, key=lambda placement: _merit(loads, placement))
    if n_devices == 1 or len(loads) > _SEARCHED_STAGES:
        return quick
    best = _PeakSearch(loads, n_devices, quick).run()
    return _NeighbourSearch(loads, n_devices, best).run()


def _check_stages(n_stages: int, specs: Sequence[BlockSpec], most: int) -> None:
    if n_stages < 1:
        raise ConfigError(f"--stages {n_stages}: at least 1 stage is needed; use 1 to {most}")
    if n_stages > most:
        raise ConfigError(
            f"--stages {n_stages}: {_why_so_few(specs, most)}; use --stages {most} or fewer"
        )


def _why_so_few(specs: Sequence[BlockSpec], most: int) -> str:
    hidden = sum(not spec.is_output for spec in specs)
    model = f"the model ({specs[0].name} … {specs[-1].name})"
    if hidden == most:
        return f"every stage needs a hidden layer, and {model} has {hidden}"
    return (
        f"{model} has {hidden} hidden layers in {most} parts that can't be divided, because "
        "layers learn in groups (model.group) or a residual connection spans them (model.residual)"
    )


def _divide(
    units: Sequence[tuple[BlockSpec, ...]], costs: Sequence[BlockCost], n_stages: int
) -> list[tuple[int, ...]]:
    """Block numbers of each stage."""
    loads = [sum(costs[spec.index].train_macs for spec in unit) for unit in units]
    cuts = _most_even_cuts(loads, n_stages)
    return [
        tuple(spec.index for unit in units[start:end] for spec in unit)
        for start, end in pairwise(cuts)
    ]


def _most_even_cuts(loads: Sequence[int], n_groups: int) -> tuple[int, ...]:
    """Where to cut: (0, …, len(loads)), the heaviest group as light as can be.

    Dynamic programming over the end of the last group. Among the divisions with the lightest
    heaviest group it takes the least sum of squares, then the earliest cuts.
    """
    limit = _smallest_peak(loads, n_groups)
    sums = [0, *accumulate(loads)]
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, (0,))}
    for _ in range(n_groups):
        longer: dict[int, tuple[int, tuple[int, ...]]] = {}
        for start, (squares, cuts) in best.items():
            for end in range(start + 1, len(sums)):
                group = sums[end] - sums[start]
                if group > limit:
                    break
                found = (squares + group**2, (*cuts, end))
                longer[end] = min(longer.get(end, found), found)
        best = longer
    return best[len(loads)][1]


def _smallest_peak(loads: Sequence[int], n_groups: int) -> int:
    """Least heaviest group of at most `n_groups` consecutive ones; exact, by bisection."""
    low, high = max(loads), sum(loads)
    while low < high:
        middle = (low + high) // 2
        if _groups_needed(loads, middle) <= n_groups:
            high = middle
        else:
            low = middle + 1
    return low


def _groups_needed(loads: Sequence[int], limit: int) -> int:
    groups, filled = 1, 0
    for load in loads:
        if filled + load > limit:
            groups, filled = groups + 1, 0
        filled += load
    return groups


def _device_loads(loads: Sequence[int], placement: Sequence[int]) -> list[int]:
    totals = [0] * (max(placement) + 1)
    for load, device in zip(loads, placement, strict=True):
        totals[device] += load
    return totals


def _merit(loads: Sequence[int], placement: Sequence[int]) -> tuple[int, int, int]:
    """What `place` makes small: the busiest device; then neighbours parted; then unevenness."""
    totals = _device_loads(loads, placement)
    parted = sum(before != after for before, after in pairwise(placement))
    return max(totals), parted, sum(total**2 for total in totals)


def _placed_consecutively(loads: Sequence[int], n_devices: int) -> tuple[int, ...]:
    cuts = _most_even_cuts(loads, n_devices)
    return tuple(
        device for device, (start, end) in enumerate(pairwise(cuts)) for _ in range(start, end)
    )


def _placed_longest_first(loads: Sequence[int], n_devices: int) -> tuple[int, ...]:
    """Graham's longest processing time: each stage goes where least waits, the longest first."""
    totals, devices = [0] * n_devices, [0] * len(loads)
    for stage in _longest_first(loads):
        devices[stage] = totals.index(min(totals))
        totals[devices[stage]] += loads[stage]
    return _renumbered(devices)


def _longest_first(loads: Sequence[int]) -> list[int]:
    return sorted(range(len(loads)), key=lambda stage: (-loads[stage], stage))


def _renumbered(devices: Sequence[int]) -> tuple[int, ...]:
    names = {device: number for number, device in enumerate(dict.fromkeys(devices))}
    return tuple(names[device] for device in devices)


class _PeakSearch:
    """Branch and bound for the least busy busiest device, longest stages first."""

    def __init__(self, loads: Sequence[int], n_devices: int, start: tuple[int, ...]) -> None:
        self._loads, self._best = loads, start
        self._peak = busiest(loads, start)
        self._floor = max(*loads, -(-sum(loads) // n_devices))
        self._order = _longest_first(loads)
        self._totals, self._devices = [0] * n_devices, [0] * len(loads)
        self._nodes = 0

    def run(self) -> tuple[int, ...]:
        self._descend(0)
        return self._best

    def _descend(self, depth: int) -> None:
        self._nodes += 1
        if depth == len(self._order):
            self._peak, self._best = max(self._totals), _renumbered(self._devices)
            return
        stage = self._order[depth]
        for total in sorted(set(self._totals)):  # equally busy devices are interchangeable
            done = self._peak == self._floor or self._nodes > _NODE_LIMIT
            if done or total + self._loads[stage] >= self._peak:
                return
            device = self._totals.index(total)
            self._devices[stage] = device
            self._totals[device] += self._loads[stage]
            self._descend(depth + 1)
            self._totals[device] -= self._loads[stage]


class _NeighbourSearch:
    """Branch and bound, in pipeline order, for few parted neighbours and even devices.

    No device gets busier than the busiest of `start`, and none stays idle.
    """

    def __init__(self, loads: Sequence[int], n_devices: int, start: tuple[int, ...]) -> None:
        self._loads, self._n_devices, self._best = loads, n_devices, start
        self._limit, *merit = _merit(loads, start)
        self._merit = tuple(merit)
        self._totals: list[int] = []
        self._devices: list[int] = []
        self._nodes = 0

    def run(self) -> tuple[int, ...]:
        self._descend(0, 0)
        return self._best

    def _descend(self, parted: int, squares: int) -> None:
        self._nodes += 1
        stage, idle = len(self._devices), self._n_devices - len(self._totals)
        if idle > len(self._loads) - stage or self._nodes > _NODE_LIMIT:
            return
        if (parted + idle - (stage == 0), squares) >= self._merit:  # each idle one parts two
            return
        if stage == len(self._loads):
            self._merit, self._best = (parted, squares), tuple(self._devices)
            return
        self._branch(parted, squares, self._loads[stage])

    def _branch(self, parted: int, squares: int, load: int) -> None:
        before = self._devices[-1] if self._devices else 0
        used = len(self._totals)
        for device in sorted(range(used + (used < self._n_devices)), key=lambda d: d != before):
            total = self._totals[device] if device < used else 0
            if total + load > self._limit:
                continue
            self._totals[device : device + 1] = [total + load]
            self._devices.append(device)
            more = squares + (total + load) ** 2 - total**2
            self._descend(parted + (device != before), more)
            self._devices.pop()
            self._totals[device : device + 1] = [total] if device < used else []
