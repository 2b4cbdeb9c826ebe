"""What the stages of a CPU cost each other: they share its caches, its memory and its clock.

alone      this process ▏▏▏▏▏      ▏▏▏▏▏         seconds of a step
crowded    this process      ▏ ▏ ▏      ▏ ▏ ▏    while others train the rest of the network
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from threading import BrokenBarrierError
from time import perf_counter, process_time
from typing import TYPE_CHECKING

import torch

from pipeline.assembly import prepare_process
from pipeline.config import build_config, config_tree
from pipeline.errors import TimedOutError
from pipeline.measure import WARM_UP, UnitTrainer
from pipeline.models import network_specs
from pipeline.specs import stage_units

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.synchronize import Barrier, Event

    from pipeline.config import Config
    from pipeline.datasets import DataFacts

TURNS, SECONDS = 4, 8.0
"""How long it goes on, at least."""
_TURN_S = 0.1
"""Short, so that what changes meanwhile meets both alike."""
_PATIENCE_S = 120.0
_STEPS_TAKE_S = 1200.0
"""At most: then the others take the measuring process for dead."""


def crowded_speed(config: Config, facts: DataFacts, units: Sequence[int]) -> float:
    """Speed of a stage while others work, as a share of what it is alone; at most 1.

    It is processor time that is compared: how cores are shared, if there are fewer of them than
    stages, is another matter.

    Args:
        units: the parts of the network that are trained, each by a process, by their numbers in
            `stage_units`. The first one is timed.

    Raises:
        TimedOutError: where the others don't begin, or don't end.
    """
    first, *others = units
    trainer, began = _warm_trainer(config, facts, first), perf_counter()
    turns, alone_s, crowded_s = 0, 0.0, 0.0
    with _company(config, facts, others) as company:
        while turns < TURNS or perf_counter() - began < SECONDS:
            alone_s += _step_s(trainer)
            with company.at_work():
                crowded_s += _step_s(trainer)
            turns += 1
    return min(1.0, alone_s / crowded_s)


def _warm_trainer(config: Config, facts: DataFacts, unit: int) -> UnitTrainer:
    cpu = torch.device("cpu")
    prepare_process(cpu, config.runtime.threads_per_stage)
    trainer = UnitTrainer(config, facts, stage_units(network_specs(config, facts))[unit], cpu)
    for _ in range(WARM_UP):
        trainer.step()
    return trainer


def _step_s(trainer: UnitTrainer) -> float:
    """Mean seconds of processor time."""
    steps, ends, began = 0, perf_counter() + _TURN_S, process_time()
    while perf_counter() < ends or not steps:
        trainer.step()
        steps += 1
    return (process_time() - began) / steps


class _Company:
    """Other processes, which work or rest together; `meeting` begins and ends their work."""

    def __init__(self, others: int) -> None:
        spawn = get_context("spawn")
        self.meeting, self.working = spawn.Barrier(others + 1), spawn.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self.working.set()
        self._meet("begun")
        yield
        self.working.clear()
        self._meet("ended")

    def _meet(self, what: str) -> None:
        try:
            self.meeting.wait(_PATIENCE_S)
        except BrokenBarrierError:
            raise TimedOutError(
                f"--measure: another process has not {what} training within {_PATIENCE_S:g} s, of "
                f"{self.meeting.parties - 1} that were to show how stages slow each other down; is "
                "there memory enough?"
            ) from None


@contextmanager
def _company(config: Config, facts: DataFacts, units: Sequence[int]) -> Iterator[_Company]:
    spawn, company = get_context("spawn"), _Company(len(units))
    given = (config_tree(config), facts, company.meeting, company.working)
    processes = [spawn.Process(target=_work, args=(unit, *given), daemon=True) for unit in units]
    for process in processes:
        process.start()
    try:
        yield company
    finally:
        company.meeting.abort()
        for process in processes:
            process.join(_PATIENCE_S)
            process.kill()


def _work(
    unit: int, tree: dict[str, object], facts: DataFacts, meeting: Barrier, working: Event
) -> None:
    """Until nobody comes to a meeting any more."""
    trainer = _warm_trainer(build_config(tree, "the measured config"), facts, unit)
    with suppress(BrokenBarrierError):
        while True:
            meeting.wait(_STEPS_TAKE_S)
            while _goes_on(working):
                trainer.step()
            meeting.wait(_STEPS_TAKE_S)


def _goes_on(working: Event) -> bool:
    parent = parent_process()
    return working.is_set() and parent is not None and parent.is_alive()
