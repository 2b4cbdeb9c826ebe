"""What the stages of a CPU cost each other: they share its caches, its memory and its clock.

alone      this process ▏▏▏▏▏          median seconds of a step
crowded    this process ▏ ▏ ▏ ▏ ▏      while others train the same, on the other cores
alone      this process ▏▏▏▏▏
"""

from __future__ import annotations

from contextlib import contextmanager
from multiprocessing import get_context
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from pipeline.assembly import prepare_process
from pipeline.config import build_config, config_tree
from pipeline.measure import WARM_UP, UnitTrainer
from pipeline.models import network_specs
from pipeline.specs import stage_units

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.synchronize import Event, Semaphore

    from pipeline.config import Config
    from pipeline.datasets import DataFacts

STEPS = 7
_PATIENCE_S = 120.0


def crowded_speed(config: Config, facts: DataFacts, block: int, others: int) -> float:
    """Speed of a stage while so many others work, as a share of what it is alone; at most 1.

    Args:
        block: which all of them train; the costliest says most.
    """
    trainer = _warm_trainer(config, facts, block)
    before = _step_s(trainer)
    with _company(config, facts, block, others):
        crowded = _step_s(trainer)
    alone = (before + _step_s(trainer)) / 2
    return min(1.0, alone / crowded)


def _warm_trainer(config: Config, facts: DataFacts, block: int) -> UnitTrainer:
    """Of the part that a block belongs to."""
    cpu = torch.device("cpu")
    prepare_process(cpu, config.runtime.threads_per_stage)
    units = stage_units(network_specs(config, facts))
    unit = next(unit for unit in units if block in [spec.index for spec in unit])
    trainer = UnitTrainer(config, facts, unit, cpu)
    for _ in range(WARM_UP):
        trainer.step()
    return trainer


def _step_s(trainer: UnitTrainer) -> float:
    laps = []
    for _ in range(STEPS):
        began = perf_counter()
        trainer.step()
        laps.append(perf_counter() - began)
    return median(laps)


@contextmanager
def _company(config: Config, facts: DataFacts, block: int, others: int) -> Iterator[None]:
    """Others at work; raises TimeoutError where they don't begin."""
    spawn = get_context("spawn")
    at_work, done = spawn.Semaphore(0), spawn.Event()
    arguments = (config_tree(config), facts, block, at_work, done)
    processes = [spawn.Process(target=_work, args=arguments, daemon=True) for _ in range(others)]
    for process in processes:
        process.start()
    try:
        for _ in processes:
            if not at_work.acquire(timeout=_PATIENCE_S):
                raise TimeoutError(f"another process has not begun within {_PATIENCE_S:g} s")
        yield
    finally:
        done.set()
        for process in processes:
            process.join(_PATIENCE_S)
            process.kill()


def _work(
    tree: dict[str, object], facts: DataFacts, block: int, at_work: Semaphore, done: Event
) -> None:
    trainer = _warm_trainer(build_config(tree, "the measured config"), facts, block)
    at_work.release()
    while not done.is_set():
        trainer.step()
