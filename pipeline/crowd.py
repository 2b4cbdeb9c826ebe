"""What the stages of a CPU cost each other: they share its caches, its memory and its clock.

alone      this process ▏▏▏▏▏      ▏▏▏▏▏         seconds of a step
crowded    this process      ▏ ▏ ▏      ▏ ▏ ▏    while others train the rest, on the other cores
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from itertools import cycle, takewhile
from multiprocessing import get_context, parent_process
from threading import BrokenBarrierError
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from pipeline.assembly import prepare_process
from pipeline.config import build_config, config_tree
from pipeline.errors import TimedOutError
from pipeline.measure import SECONDS, WARM_UP, UnitTrainer
from pipeline.models import network_specs
from pipeline.specs import stage_units

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.synchronize import Barrier, Event

    from pipeline.config import Config
    from pipeline.datasets import DataFacts

TURNS = 5
"""Each measures a step alone, then in company: what changes meanwhile meets both."""
_PATIENCE_S = 120.0
_STEPS_TAKE_S = 1200.0
"""At most: then the others take the measuring process for dead."""


def crowded_speed(config: Config, facts: DataFacts, others: int) -> float:
    """Speed of a stage while so many others work, as a share of what it is alone; at most 1.

    All together train one network, whose parts are dealt out among them.

    Raises:
        TimedOutError: where the others don't begin, or don't end.
    """
    share = _Share(config, facts, 0, others + 1)
    alone_s = crowded_s = 0.0
    with _company(config, facts, others) as company:
        for _ in range(TURNS):
            alone_s += share.step_s()
            with company.at_work():
                crowded_s += share.step_s()
    return min(1.0, alone_s / crowded_s)


class _Share:
    """Every so many parts of a network, which one process trains one after the other."""

    def __init__(self, config: Config, facts: DataFacts, first: int, every: int) -> None:
        cpu = torch.device("cpu")
        prepare_process(cpu, config.runtime.threads_per_stage)
        units = stage_units(network_specs(config, facts))[first::every]
        self.trainers = [UnitTrainer(config, facts, unit, cpu) for unit in units]
        for _ in range(WARM_UP):
            self._step()

    def _step(self) -> None:
        for trainer in self.trainers:
            trainer.step()

    def step_s(self) -> float:
        """Mean seconds of a step of all of them."""
        steps, began = 0, perf_counter()
        while (passed := perf_counter() - began) < SECONDS or not steps:
            self._step()
            steps += 1
        return passed / steps


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
def _company(config: Config, facts: DataFacts, others: int) -> Iterator[_Company]:
    spawn, company = get_context("spawn"), _Company(others)
    given = (config_tree(config), facts, others + 1, company.meeting, company.working)
    processes = [
        spawn.Process(target=_work, args=(number, *given), daemon=True)
        for number in range(1, others + 1)
    ]
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
    number: int,
    tree: dict[str, object],
    facts: DataFacts,
    every: int,
    meeting: Barrier,
    working: Event,
) -> None:
    """Until nobody comes to a meeting any more."""
    trainers = _Share(build_config(tree, "the measured config"), facts, number, every).trainers
    with suppress(BrokenBarrierError):
        while True:
            meeting.wait(_STEPS_TAKE_S)
            for trainer in takewhile(lambda _: _goes_on(working), cycle(trainers)):
                trainer.step()
            meeting.wait(_STEPS_TAKE_S)


def _goes_on(working: Event) -> bool:
    parent = parent_process()
    return working.is_set() and parent is not None and parent.is_alive()
