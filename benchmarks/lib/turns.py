"""Steps that are to be compared, one by one in turn: what slows a shared machine down falls on all.

    process A   step ........ step ........ step
    process B   .... step ........ step .........      a ratio is that of steps side by side

Each has a process of its own, since how a process manages memory or threads is part of its way.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Step: TypeAlias = Callable[[], object]

WARM_UP = 3
_steps: list[Step] = []
"""The one of this process, in a process that takes steps."""


def taken_in_turn(
    makers: Mapping[str, Callable[[], Step]], seconds: float
) -> dict[str, list[float]]:
    """Seconds of every step, by name; at least one round of them.

    Args:
        makers: can be pickled; called in the process that then takes the steps.
        seconds: how long all of it lasts, without what comes before.
    """
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), _get_ready, (make,))
            )
            for name, make in makers.items()
        }
        _round(processes)  # all are ready
        rounds, until = [_round(processes)], perf_counter() + seconds
        while perf_counter() < until:
            rounds.append(_round(processes))
    return {name: [took[name] for took in rounds] for name in makers}


def seconds_of(step: Step) -> float:
    """How long one step takes."""
    began = perf_counter()
    step()
    return perf_counter() - began


def times_as_fast(took: Mapping[str, Sequence[float]], than: str) -> dict[str, float]:
    """How often each goes into the one it is compared with: medians of the quotients in rounds."""
    return {
        name: median(other / own for other, own in zip(took[than], steps, strict=True))
        for name, steps in took.items()
    }


def _round(processes: Mapping[str, ProcessPoolExecutor]) -> dict[str, float]:
    return {name: process.submit(_take_step).result() for name, process in processes.items()}


def _get_ready(make: Callable[[], Step]) -> None:
    _steps.append(make())
    for _ in range(WARM_UP):
        _steps[0]()


def _take_step() -> float:
    return seconds_of(_steps[0])
