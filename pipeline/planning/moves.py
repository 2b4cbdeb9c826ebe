"""Placements made better move by move: a stage goes to another device, or two change places. Pure.

A placement holds a device number for each stage, in the order of first use.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


_LOOKS = 100_000
"""Moves and exchanges that each search looks at, some tenths of a second; with some hundred stages
it ends with the best placement found by then."""


def relieved(loads: Sequence[int], placement: Sequence[int]) -> tuple[int, ...]:
    """Take stages off the busiest device, by moving or exchanging one, for as long as it helps."""
    devices, looks = list(placement), iter(range(_LOOKS))
    while (better := _relief(loads, devices, looks)) is not None:
        devices = better
    return renumbered(devices)


def _relief(loads: Sequence[int], devices: Sequence[int], looks: Iterator[int]) -> list[int] | None:
    """One move, or exchange, after which fewer devices are as busy as the busiest is now; None
    where there is none, or nothing left of `looks`."""
    totals = device_loads(loads, devices)
    peak = max(totals)
    full = totals.index(peak)
    ours = [stage for stage, device in enumerate(devices) if device == full]
    moves = product(ours, _places(devices, full))
    for (stage, (other, theirs)), _ in zip(moves, looks, strict=False):
        less = loads[stage] - (loads[theirs] if theirs is not None else 0)
        if less > 0 and totals[other] + less < peak:
            changed = list(devices)
            changed[stage] = other
            if theirs is not None:
                changed[theirs] = full
            return changed
    return None


def _places(devices: Sequence[int], full: int) -> list[tuple[int, int | None]]:
    """Other devices, each alone and with a stage of its own to give in exchange."""
    others = sorted(set(devices) - {full})
    exchanges = [(device, stage) for stage, device in enumerate(devices) if device != full]
    return [*((device, None) for device in others), *exchanges]


def drawn_together(
    loads: Sequence[int], placement: Sequence[int], traffic: Sequence[int]
) -> tuple[int, ...]:
    """Move or exchange stages, for as long as less crosses and no device gets busier than the
    busiest is, or idle."""
    sent, devices, totals = [0, *traffic], list(placement), device_loads(loads, placement)
    limit, looks = max(totals), iter(range(_LOOKS))
    while (change := _less_parted(loads, devices, totals, sent, limit, looks)) is not None:
        for stage, device in change.items():
            totals[devices[stage]] -= loads[stage]
            totals[device] += loads[stage]
            devices[stage] = device
    return renumbered(devices)


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
    for stage, neighbour in _parted(devices):
        here, there = devices[stage], devices[neighbour]
        gives = [None, *(other for other, device in enumerate(devices) if device == there)]
        for given, _ in zip(gives, looks, strict=False):
            more = loads[stage] - (0 if given is None else loads[given])
            fits = totals[there] + more <= limit and totals[here] - more <= limit
            idle = given is None and devices.count(here) == 1
            change = {stage: there} if given is None else {stage: there, given: here}
            if fits and not idle and _crossing_changes(devices, change, sent) < 0:
                return change
    return None


def _parted(devices: Sequence[int]) -> list[tuple[int, int]]:
    """Each stage with a neighbour on another device."""
    pairs = [pair for pair in pairwise(range(len(devices))) if devices[pair[0]] != devices[pair[1]]]
    return [*pairs, *((after, before) for before, after in pairs)]


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


def device_loads(loads: Sequence[int], placement: Sequence[int]) -> list[int]:
    """Of each device, by its number."""
    totals = [0] * (max(placement) + 1)
    for load, device in zip(loads, placement, strict=True):
        totals[device] += load
    return totals


def renumbered(devices: Sequence[int]) -> tuple[int, ...]:
    """Devices numbered in the order of first use."""
    names = {device: number for number, device in enumerate(dict.fromkeys(devices))}
    return tuple(names[device] for device in devices)
