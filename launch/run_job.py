"""Carries out a checked job in its folder: what the commands and `pipeline.fit` have in common.

run_folder    hold the run's folder, so that nobody else changes it
run_job       what to start from ─▶ an engine ─▶ train
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launch.machine.provenance import read_starts, start_of, write_starts
from launch.resume import nothing_left, start_state
from launch.run_directory import hold, hold_new
from pipeline.coordinator.watchdog import SILENCE_BETWEEN_HOSTS_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from launch.engines.ray_engine import RayEngine
    from launch.job import Job, Options
    from launch.run_directory import HeldRun
    from pipeline.coordinator.engine import Engine
    from pipeline.data.facts import DataFacts
    from pipeline.run.events import Watcher
    from pipeline.storage.checkpoint import RunState


@dataclass(frozen=True, slots=True)
class Finished:
    """The state that a run ended with. `facts`: of its data, with the mean and deviation that they
    were normalised by; None where nothing was read. `nothing_to_do`: why it was not trained, if so.
    """

    state: RunState
    facts: DataFacts | None = None
    nothing_to_do: str = ""


def run_folder(job: Job, options: Options) -> AbstractContextManager[HeldRun]:
    """The run's folder: from here on no other command changes it."""
    if options.run_dir is None:
        return hold_new(job.name)
    return hold(options.run_dir, make=not options.resume)


def run_job(
    job: Job,
    run: HeldRun,
    options: Options,
    *,
    cluster: RayEngine | None = None,
    watcher: Watcher | None = None,
    packed: bytes | memoryview = b"",
) -> Finished:
    """Train a job, from the beginning or from where its folder is; its provenance gets an entry.

    Args:
        cluster: that the job was planned for; None: this machine.
        watcher: is told what the view shows, by this thread, and may end the run.
        packed: a user's objects for the workers (`given.Given`).

    Raises:
        ConfigError: where there is nothing to resume, or a run that would be overwritten.
        PipelineError: what ended the run, an interruption included.
        KeyboardInterrupt: where it was interrupted twice.
    """
    if options.resume:
        origin = start_state(run.folder, job)
        if why := nothing_left(job, origin[0], run.path):
            return Finished(origin[0], nothing_to_do=why)
    else:
        run.refuse_to_overwrite()
        origin = (job.beginning, [])
    starts = read_starts(run.path) if options.resume else []
    run.check_writable()

    def note_start() -> None:
        step = origin[0].position.step
        with suppress(OSError):  # of a disk that refuses, what is written next will tell
            write_starts(run.folder, [*starts, start_of(options.command, step)])

    ended_with = None
    try:
        with engine_of(job, options, cluster, packed) as engine:
            from launch.training import train  # numpy, and much more: only now that it is needed

            ended_with = train(
                job,
                run,
                origin,
                engine,
                view=options.view,
                begun=note_start,
                watcher=watcher,
                trace=options.trace or 0,
            )
    except KeyboardInterrupt:
        if ended_with is None:
            raise
        # else only the engine was still to be closed, and nothing is left to do
    return Finished(*ended_with)


@contextmanager
def cluster_for(options: Options) -> Iterator[RayEngine | None]:
    """The cluster that `--engine ray` asks for; None: workers run on this machine.

    Raises:
        ConfigError: where there is none, or it is not to be used.
    """
    if options.engine == "local":
        yield None
        return
    from launch.engines.ray_engine import RayEngine

    cluster = RayEngine(options.ray_address, insecure=options.ray_insecure)
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def engine_of(
    job: Job, options: Options, cluster: RayEngine | None, packed: bytes | memoryview
) -> Iterator[Engine | None]:
    """What trains a job: workers, which begin to import torch; None is single mode."""
    if cluster is None:
        with engine_for(single=options.single, packed=packed) as engine:
            yield engine
    else:
        from launch.engines.users_code import users_code

        silence_s = job.config.runtime.heartbeat_timeout_s or SILENCE_BETWEEN_HOSTS_S
        cluster.reserve(job.plan, users_code(job.own_code, packed), silence_s)
        yield cluster


@contextmanager
def engine_for(*, single: bool, packed: bytes | memoryview = b"") -> Iterator[Engine | None]:
    """Workers on this machine, which begin to import torch; None is single mode."""
    if single:
        yield None
        return
    from launch.engines.local import LocalEngine

    engine = LocalEngine(packed)
    try:
        engine.warm_up()  # imports torch in the background while this process reads the data
        yield engine
    finally:
        engine.close()
