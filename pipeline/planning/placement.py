"""Consecutive groups of stages, and stages on devices: searches over loads. Pure.

A placement holds a device number for each stage, in the order of first use. Quick ones are made
better move by move: a stage goes to another device, or two change places.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SEARCHED_STAGES = 40
"""With more stages than this the best quick placement is only improved move by move."""
_NODE_LIMIT = 20_000
"""Steps of each search, some 50 ms; beyond it the best placement found so far is used."""
_LOOKS = 100_000
"""Moves and exchanges that each search looks at, some tenths of a second; with some hundred stages
it ends with the best placement found by then."""


def busiest(loads: Sequence[int], placement: Sequence[int]) -> int:
    """Load of the busiest device; `placement` holds a device number for each load."""
    return max(_device_loads(loads, placement))


def place(
    loads: Sequence[int], n_devices: int, traffic: Sequence[int] | None = None
) -> tuple[int, ...]:
    """A device number for each stage, in the order of first use; `_merit` says what is best.

    The best of all where the searches end before their limits: with ten stages, as a rule. Beyond,
    no single move or exchange makes it better.

    Args:
        traffic: what each stage but the last sends to the next; None: all the same.
    """
    n_devices = min(n_devices, len(loads))
    traffic = [1] * (len(loads) - 1) if traffic is None else traffic
    placements = _placed_longest_first(loads, n_devices), _placed_consecutively(loads, n_devices)
    improved = [relieved(loads, placement) for placement in placements]
    best = min((*placements, *improved), key=lambda placement: _merit(loads, placement, traffic))
    if n_devices == 1:
        return best
    if len(loads) > _SEARCHED_STAGES:
        return drawn_together(loads, best, traffic)
    best = _PeakSearch(loads, n_devices, best).run()
    best = _TrafficSearch(loads, n_devices, traffic, best).run()
    return drawn_together(loads, best, traffic)


def most_even_cuts(loads: Sequence[int], n_groups: int) -> tuple[int, ...]:
    """Where to cut: (0, …, len(loads)), the heaviest group as light as can be.

    Among the divisions with the lightest heaviest group it takes the least sum of squares, then
    the earliest cuts. Dynamic programming from the end, over where the last groups begin: only
    where those before it fit into what is left of the limit.
    """
    limit, last = smallest_peak(loads, n_groups), len(loads)
    sums = [0, *accumulate(loads)]
    squares = [{last: 0}]
    """Least sum of squares of the last 0, 1, 2, … groups, by where they begin."""
    for before in reversed(range(n_groups)):
        most = min(bisect_right(sums, before * limit), last - n_groups + before + 1)
        least = (
            (start, _least_squares(sums, start, limit, squares[-1]))
            for start in range(before, most)
        )
        squares.append({start: found for start, found in least if found is not None})
    cuts = [0]
    for ours, rest in pairwise(reversed(squares)):
        start = cuts[-1]
        cuts.append(
            next(
                end
                for end in range(start + 1, last + 1)
                if end in rest and (sums[end] - sums[start]) ** 2 + rest[end] == ours[start]
            )
        )
    return tuple(cuts)


def _least_squares(
    sums: Sequence[int], start: int, limit: int, rest: Mapping[int, int]
) -> int | None:
    """Of a group that begins at `start` and the best groups after it; None where none fits."""
    ends = range(start + 1, bisect_right(sums, sums[start] + limit))
    found = [(sums[end] - sums[start]) ** 2 + rest[end] for end in ends if end in rest]
    return min(found, default=None)


def smallest_peak(loads: Sequence[int], n_groups: int) -> int:
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


def _merit(
    loads: Sequence[int], placement: Sequence[int], traffic: Sequence[int]
) -> tuple[int, int, int]:
    """What `place` makes small: the busiest device; then traffic between devices; then
    unevenness."""
    totals = _device_loads(loads, placement)
    parted = (before != after for before, after in pairwise(placement))
    crossing = sum(sent for sent, apart in zip(traffic, parted, strict=True) if apart)
    return max(totals), crossing, sum(total**2 for total in totals)


def _placed_consecutively(loads: Sequence[int], n_devices: int) -> tuple[int, ...]:
    cuts = most_even_cuts(loads, n_devices)
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


class _TrafficSearch:
    """Branch and bound, in pipeline order, for little traffic between devices, and even ones.

    No device gets busier than the busiest of `start`, and none stays idle.
    """

    def __init__(
        self,
        loads: Sequence[int],
        n_devices: int,
        traffic: Sequence[int],
        start: tuple[int, ...],
    ) -> None:
        self._loads, self._n_devices, self._best = loads, n_devices, start
        self._limit, *merit = _merit(loads, start, traffic)
        self._merit = tuple(merit)
        self._sent = [0, *traffic]
        self._least = [
            [0, *accumulate(sorted(self._sent[max(1, stage) :]))] for stage in range(len(loads) + 1)
        ]
        """From each stage on, the sum of the 0, 1, 2, … smallest."""
        self._totals: list[int] = []
        self._devices: list[int] = []
        self._nodes = 0

    def run(self) -> tuple[int, ...]:
        self._descend(0, 0)
        return self._best

    def _descend(self, crossing: int, squares: int) -> None:
        self._nodes += 1
        stage, idle = len(self._devices), self._n_devices - len(self._totals)
        if idle > len(self._loads) - stage or self._nodes > _NODE_LIMIT:
            return
        parted = idle - (stage == 0)  # at least: each idle device is yet to part two neighbours
        if (crossing + self._least[stage][parted], squares) >= self._merit:
            return
        if stage == len(self._loads):
            self._merit, self._best = (crossing, squares), tuple(self._devices)
            return
        load, sent = self._loads[stage], self._sent[stage]
        before, used = self._devices[-1] if self._devices else 0, len(self._totals)
        for device in sorted(range(used + (used < self._n_devices)), key=lambda d: d != before):
            total = self._totals[device] if device < used else 0
            if total + load > self._limit:
                continue
            self._totals[device : device + 1] = [total + load]
            self._devices.append(device)
            more = squares + (total + load) ** 2 - total**2
            self._descend(crossing + sent * (device != before), more)
            self._devices.pop()
            self._totals[device : device + 1] = [total] if device < used else []


def relieved(loads: Sequence[int], placement: Sequence[int]) -> tuple[int, ...]:
    """Take stages off the busiest device, by moving or exchanging one, for as long as it helps."""
    devices, looks = list(placement), iter(range(_LOOKS))
    while (better := _relief(loads, devices, looks)) is not None:
        devices = better
    return _renumbered(devices)


def _relief(loads: Sequence[int], devices: Sequence[int], looks: Iterator[int]) -> list[int] | None:
    """One move, or exchange, after which fewer devices are as busy as the busiest is now; None
    where there is none, or nothing left of `looks`."""
    totals = _device_loads(loads, devices)
    peak = max(totals)
    full = totals.index(peak)
    ours = [stage for stage, device in enumerate(devices) if device == full]
    # to each other device, alone or for a stage of its own in exchange
    exchanges = [(device, stage) for stage, device in enumerate(devices) if device != full]
    places = [*((device, None) for device in sorted(set(devices) - {full})), *exchanges]
    moves = product(ours, places)
    for (stage, (other, theirs)), _ in zip(moves, looks, strict=False):
        less = loads[stage] - (loads[theirs] if theirs is not None else 0)
        if less > 0 and totals[other] + less < peak:
            changed = list(devices)
            changed[stage] = other
            if theirs is not None:
                changed[theirs] = full
            return changed
    return None


def drawn_together(
    loads: Sequence[int], placement: Sequence[int], traffic: Sequence[int]
) -> tuple[int, ...]:
    """Move or exchange stages, for as long as less crosses and no device gets busier than the
    busiest is, or idle."""
    sent, devices, totals = [0, *traffic], list(placement), _device_loads(loads, placement)
    limit, looks = max(totals), iter(range(_LOOKS))
    while (change := _less_parted(loads, devices, totals, sent, limit, looks)) is not None:
        for stage, device in change.items():
            totals[devices[stage]] -= loads[stage]
            totals[device] += loads[stage]
            devices[stage] = device
    return _renumbered(devices)


def _less_parted(
    loads: Sequence[int],
    devices: Sequence[int],
    totals: Sequence[int],
    sent: Sequence[int],
    limit: int,
    looks: Iterator[int],
) -> dict[int, int] | None:
    """One stage that joins a neighbour, moving there or exchanged with another; None where that
    brings nothing, or nothing is left of `looks`."""
    pairs = list(pairwise(range(len(devices))))
    for stage, neighbour in (*pairs, *((after, before) for before, after in pairs)):
        here, there = devices[stage], devices[neighbour]
        if here == there:
            continue
        gives = [None, *(other for other, device in enumerate(devices) if device == there)]
        for given, _ in zip(gives, looks, strict=False):
            more = loads[stage] - (0 if given is None else loads[given])
            fits = totals[there] + more <= limit and totals[here] - more <= limit
            idle = given is None and devices.count(here) == 1
            change = {stage: there} if given is None else {stage: there, given: here}
            if fits and not idle and _crossing_changes(devices, change, sent) < 0:
                return change
    return None


def _crossing_changes(
    devices: Sequence[int], change: Mapping[int, int], sent: Sequence[int]
) -> int:
    """By how much what crosses between devices grows; `sent` to each stage by the one before."""
    links = {link for stage in change for link in (stage, stage + 1) if 0 < link < len(devices)}
    grown = 0
    for link in links:
        before, after = change.get(link - 1, devices[link - 1]), change.get(link, devices[link])
        grown += sent[link] * ((before != after) - (devices[link - 1] != devices[link]))
    return grown


def _device_loads(loads: Sequence[int], placement: Sequence[int]) -> list[int]:
    """Of each device, by its number."""
    totals = [0] * (max(placement) + 1)
    for load, device in zip(loads, placement, strict=True):
        totals[device] += load
    return totals


def _renumbered(devices: Sequence[int]) -> tuple[int, ...]:
    """Devices numbered in the order of first use."""
    names = {device: number for number, device in enumerate(dict.fromkeys(devices))}
    return tuple(names[device] for device in devices)
