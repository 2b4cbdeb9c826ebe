"""From options to an exit status: the one readable way through a run."""

from __future__ import annotations

import secrets
import shlex
import sys
import traceback
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launch.gpus import devices
from launch.rundir import RunDirectory
from pipeline.checkpoint import StartState
from pipeline.config import load_config
from pipeline.cost import block_costs
from pipeline.data import load_batches
from pipeline.errors import (
    ConfigError,
    InterruptedRunError,
    PipelineError,
    StageFailedError,
)
from pipeline.events import Note, RunStarted
from pipeline.feed import Feed, course_of
from pipeline.models import network_specs
from pipeline.plan import make_plan
from pipeline.recorder import METRICS_FILE, Recorder
from pipeline.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from launch.engine import Engine
    from pipeline.config import Config
    from pipeline.cost import BlockCost
    from pipeline.data import Batches
    from pipeline.events import Event, Observer
    from pipeline.feed import Course
    from pipeline.models import BlockSpec
    from pipeline.plan import Plan
    from pipeline.recorder import SnapshotStore

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
_PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    config: Path | None
    stages: int | None = None
    gpus: str | None = None
    single: bool = False
    overrides: tuple[str, ...] = ()
    run_dir: Path | None = None
    resume: bool = False
    dry_run: bool = False
    engine: Literal["local", "ray"] = "local"
    view: Literal["auto", "live", "plain", "quiet"] = "auto"


@dataclass(frozen=True, slots=True)
class Job:
    """A run that has been checked and can start."""

    name: str
    config: Config
    specs: tuple[BlockSpec, ...]
    costs: tuple[BlockCost, ...]
    plan: Plan


def launch(options: Options) -> int:
    """Carry out a command; returns its exit status."""
    return guarded(lambda: _launch(options))


def guarded(command: Callable[[], int]) -> int:
    """The exit status of `command`, having said on stderr what went wrong."""
    try:
        return command()
    except ConfigError as error:
        return _complain(str(error), WRONG_USAGE)
    except StageFailedError as error:
        return _complain(error.summary, FAILED, error.remote_traceback)
    except PipelineError as error:
        return _complain(str(error), FAILED)
    except OSError as error:
        return _complain(f"{type(error).__name__}: {error}", FAILED, traceback.format_exc())
    except KeyboardInterrupt:
        return _complain("interrupted; no checkpoint was written for it", INTERRUPTED)


def _launch(options: Options) -> int:
    if options.engine == "ray":
        raise ConfigError("--engine ray: not available yet; use --engine local (the default)")
    job = make_job(options)
    if options.dry_run:
        return _print_plan(job)
    directory = RunDirectory(options.run_dir or _default_run_dir(job.name))
    if not options.resume:
        directory.refuse_to_overwrite()
    engine = None if options.single else _local_engine()
    return _train(job, directory, options, engine)


def make_job(options: Options) -> Job:
    """Check everything that can be checked without torch.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    path = _config_path(options)
    config = load_config(path, options.overrides)
    specs = network_specs(config)
    backprop = config.loss.name == "glob"
    if backprop and not options.single and not options.dry_run:
        raise ConfigError(
            f"{path}: loss.name glob is global backprop: its gradient flows through all blocks, "
            "so they can't be divided into stages; add --single"
        )
    costs = block_costs(
        specs,
        batch_size=config.data.batch_size,
        element_bytes=2 if config.runtime.precision == "bf16" else 4,
        optimizer_name=config.optimizer.name,
        backprop=backprop,
    )
    plan = make_plan(
        specs, costs, stages=1 if backprop else options.stages, devices=_devices(options)
    )
    return Job(path.stem, config, specs, costs, plan)


def _devices(options: Options) -> tuple[str, ...]:
    if options.dry_run and options.gpus:
        return devices(options.gpus, count=lambda: sys.maxsize)  # a plan for another machine
    found = devices(options.gpus)
    return found[:1] if options.single else found


def _config_path(options: Options) -> Path:
    if options.config is not None:
        return options.config
    if options.resume and options.run_dir is not None:
        return RunDirectory(options.run_dir).config
    raise ConfigError("which config? give CONFIG.yaml, or --resume with --run-dir DIR")


def _print_plan(job: Job) -> int:
    from rich.console import Console

    from launch.dry_run import dry_run_report

    dry_run_report(job.config, job.specs, job.costs, job.plan, Console())
    return DONE


def _local_engine() -> Engine:
    from launch.local import LocalEngine

    engine = LocalEngine()
    engine.warm_up()
    return engine


def _train(job: Job, directory: RunDirectory, options: Options, engine: Engine | None) -> int:
    from launch.interrupts import interrupts_noted
    from launch.run_log import open_log
    from launch.view import open_view

    start, notes = _start_state(job, directory, options)
    batches = load_batches(job.config.data, job.config.runtime.seed)
    course = course_of(job.config, batches.steps_per_epoch, batches.evaluation_batches)
    store = directory.prepare(job.config, job.plan, job.costs, start)
    with (
        open_log(directory.log) as log,
        open_view(options.view, _console()) as view,
        interrupts_noted() as interrupted,
    ):
        observer = _both(log, view)
        run = make_run(job, directory.path, start, batches, course, store, observer)
        run = replace(run, interrupted=interrupted, progress_interval_s=_progress_every_s(options))
        observer(_started(job, directory, run))
        for note in notes:
            observer(Note(note))
        try:
            carry_out(run, engine)
        except InterruptedRunError as error:
            log(Note(str(error)))
            where = error.step
        except PipelineError as error:
            log(Note(f"failed: {error}"))
            raise
        else:
            return DONE
    return _complain(_how_to_resume(where, directory, options), INTERRUPTED)


def _start_state(
    job: Job, directory: RunDirectory, options: Options
) -> tuple[StartState, list[str]]:
    return directory.start_state(job.config) if options.resume else (StartState(), [])


def make_run(
    job: Job,
    folder: Path,
    start: StartState,
    batches: Batches,
    course: Course,
    store: SnapshotStore,
    observer: Observer,
) -> Run:
    """A run of `job` that writes its metrics into `folder` and its snapshots into `store`."""
    recorder = Recorder(
        folder / METRICS_FILE,
        course,
        [stage.device for stage in job.plan.stages],
        store,
        observer,
        images_before=max((tally.images for tally in start.tallies), default=0),
    )
    return Run(
        id=secrets.token_hex(8),
        config=job.config,
        plan=job.plan,
        batches=batches,
        feed=Feed(course, start.position),
        start=start,
        recorder=recorder,
        observer=observer,
    )


def _progress_every_s(options: Options) -> float:
    return 0.0 if options.view == "quiet" else _PROGRESS_EVERY_S


def carry_out(run: Run, engine: Engine | None) -> None:
    """Train to the end, on `engine` or, without one, in this process.

    Raises:
        PipelineError: what ended the run, an interruption included.
    """
    if engine is None:
        from pipeline.single import SingleTrainer

        SingleTrainer(run).run()
    else:
        from launch.supervisor import run_pipeline

        run_pipeline(run, engine)


def _started(job: Job, directory: RunDirectory, run: Run) -> RunStarted:
    names = [spec.name for spec in job.specs]
    return RunStarted(
        config_name=job.name,
        run_dir=directory.path,
        stages=tuple(
            (stage.device, tuple(names[block] for block in stage.blocks))
            for stage in job.plan.stages
        ),
        epochs=run.feed.course.epochs,
        steps_per_epoch=run.feed.course.steps_per_epoch,
        step=run.start.position.step,
    )


def _how_to_resume(step: int, directory: RunDirectory, options: Options) -> str:
    command = ["pipeline-launch", "--resume", "--run-dir", str(directory.path)]
    if options.single:
        command.append("--single")
    for flag, value in (("--stages", options.stages), ("--gpus", options.gpus)):
        command += [flag, str(value)] if value is not None else []
    for override in options.overrides:
        command += ["--set", override]
    if options.config is not None:
        command.append(str(options.config))
    return (
        f"interrupted after step {step}; a checkpoint was written. To go on:\n"
        f"  {shlex.join(command)}"
    )


def _default_run_dir(name: str) -> Path:
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _console() -> Console:
    from rich.console import Console

    return Console()


def _both(*observers: Observer) -> Observer:
    def tell(event: Event) -> None:
        for observer in observers:
            observer(event)

    return tell


def _complain(text: str, status: int, remote_traceback: str = "") -> int:
    sys.stdout.flush()
    print(f"error: {text}" if status != INTERRUPTED else text, file=sys.stderr)
    if remote_traceback:
        print(remote_traceback.rstrip(), file=sys.stderr)
    return status
