"""What the stages of a CPU cost each other: they share its caches, its memory and its clock.

All stages that a network can be made into are trained at once, each by a process of its own, and
each says what a step takes it.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from multiprocessing import Pipe, get_context, parent_process
from multiprocessing.connection import Connection, wait
from tempfile import TemporaryDirectory
from threading import BrokenBarrierError
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any

import torch

from pipeline.config.sections import build_config, config_tree
from pipeline.errors import TimedOutError
from pipeline.learning.build import prepare_process
from pipeline.network.from_config import network_specs
from pipeline.network.specs import stage_units
from pipeline.profiling.blocks import WARM_UP, UnitTrainer
from pipeline.signals import signals_held
from pipeline.system.interpreter import current_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.synchronize import Barrier

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts

SECONDS, STEPS = 4.0, 3
"""What each of them measures at least. Long: the clock of a processor with much to do sinks."""
_PATIENCE_S = 600.0


def crowded_seconds(config: Config, facts: DataFacts, units: Sequence[int]) -> Mapping[int, float]:
    """What a step takes each of some parts of a network while all of them are trained.

    It is processor time of the thread that trains: how cores are shared, where there are fewer of
    them than stages, is another matter.

    Args:
        units: their numbers in `stage_units`.

    Returns:
        Seconds of each of `units`.

    Raises:
        TimedOutError: where a process ends, or none says anything for long.
    """
    seconds: dict[int, float] = {}
    with _crowd(config, facts, units) as crowd:
        while crowd:
            if not (heard := wait(list(crowd), _PATIENCE_S)):
                raise _lost(min(crowd.values()), f"has said nothing for {_PATIENCE_S:g} s")
            for one in [one for one in crowd if one in heard]:
                unit = crowd.pop(one)
                seconds[unit] = _told(unit, one)
    return seconds


@contextmanager
def _crowd(
    config: Config, facts: DataFacts, units: Sequence[int]
) -> Iterator[dict[Connection, int]]:
    """Processes at work, heard through these connections."""
    spawn, tree, here = get_context("spawn"), config_tree(config), current_folder()
    with TemporaryDirectory(prefix="pipeline-") as empty:
        with _working_in(empty):
            begin, pairs = spawn.Barrier(len(units)), [Pipe(duplex=False) for _ in units]
        given = [(unit, SECONDS, tree, facts, begin, pairs[k][1]) for k, unit in enumerate(units)]
        processes = [
            spawn.Process(target=_begin, args=(here, _work, *one), daemon=True) for one in given
        ]
        try:
            # Ctrl-C is for who measures, and ends them
            with signals_held(signal.SIGINT), _working_in(empty):
                for process, (_, theirs) in zip(processes, pairs, strict=True):
                    process.start()
                    theirs.close()  # so that its end is heard of
            yield dict(zip((ours for ours, _ in pairs), units, strict=True))
        finally:
            for process in filter(lambda process: process.pid, processes):
                process.kill()
                process.join()


@contextmanager
def _working_in(empty: str) -> Iterator[None]:
    """A process that is spawned in here looks for modules in the current folder first, even for
    Python's own: there are none."""
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(empty)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def _begin(here: str | None, work: Callable[..., None], *given: Any) -> None:
    """In the process, back in the folder of who measures."""
    if here is not None:
        os.chdir(here)
    work(*given)


def _told(unit: int, one: Connection) -> float:
    try:
        return float(one.recv())
    except EOFError:
        raise _lost(unit, "has ended") from None


def _lost(unit: int, what: str) -> TimedOutError:
    return TimedOutError(
        f"--measure: the process that trains part {unit} of the network beside the others, to show "
        f"how stages slow each other down, {what}; is there memory enough?"
    )


def _work(
    unit: int,
    seconds: float,
    tree: dict[str, object],
    facts: DataFacts,
    begin: Barrier,
    told: Connection,
) -> None:
    """Until it is killed: the others are to measure how it is beside this one."""
    config, cpu = build_config(tree, "the measured config"), torch.device("cpu")
    prepare_process(cpu, config.runtime.threads_per_stage)
    trainer = UnitTrainer(config, facts, stage_units(network_specs(config, facts))[unit], cpu)
    for _ in range(WARM_UP):
        trainer.step()
    with suppress(BrokenBarrierError, BrokenPipeError):  # nobody is there any more
        begin.wait(_PATIENCE_S)
        told.send(_step_s(trainer, seconds))
    parent = parent_process()
    while parent is not None and parent.is_alive():
        trainer.step()


def _step_s(trainer: UnitTrainer, seconds: float) -> float:
    steps, ends, began = 0, perf_counter() + seconds, thread_time()
    while perf_counter() < ends or steps < STEPS:
        trainer.step()
        steps += 1
    return (thread_time() - began) / steps
