"""From options to an exit status: the one readable way through a command."""

from __future__ import annotations

import shlex
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from launch.interrupts import INTERRUPTED
from launch.job import check_engine, make_job
from launch.rundir import RunDirectory
from pipeline.checkpoint import StartState, complete_checkpoints
from pipeline.errors import (
    ConfigError,
    InterruptedRunError,
    PipelineError,
    StageFailedError,
    one_line,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from launch.engine import Engine
    from launch.job import Job, Options

DONE, FAILED, WRONG_USAGE = 0, 1, 2


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
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except Exception as error:  # the process boundary: a full disk, no memory, a bug
        return _complain(one_line(error), FAILED, traceback.format_exc())


def _launch(options: Options) -> int:
    check_engine(options)
    job = make_job(options)
    if options.resume and options.run_dir is None:
        raise ConfigError("--resume: which run? name its folder with --run-dir")
    directory = RunDirectory(options.run_dir or _default_run_dir(job.name))
    origin = directory.start_state(job) if options.resume else (StartState(), [])
    if options.dry_run:
        return _print_plan(job)
    if not options.resume:
        directory.refuse_to_overwrite()
    return _start(job, directory, origin, options)


def _print_plan(job: Job) -> int:
    from rich.console import Console

    from launch.dry_run import dry_run_report, say
    from launch.foresight import cautions

    console = Console()
    dry_run_report(job.config, job.specs, job.costs, job.plan, console, single=job.single)
    if job.foresight:
        from launch.forecast import print_forecast

        print_forecast(job, job.foresight, console)
    for caution in cautions(job):
        say(console, caution)
    return DONE


def _start(
    job: Job, directory: RunDirectory, origin: tuple[StartState, list[str]], options: Options
) -> int:
    try:
        engine = None if options.single else local_engine()
        from launch.training import train  # numpy, and much more: only now that it will be needed

        train(job, directory, origin, engine, view=options.view)
    except InterruptedRunError as error:
        return _complain(_how_to_resume(str(error), directory, options), INTERRUPTED)
    except KeyboardInterrupt:
        said = ended_at_once(directory)
        advised = _how_to_resume(said, directory, options) if directory.held else said
        return _complain(advised, INTERRUPTED)
    return DONE


def local_engine() -> Engine:
    """Workers on this machine; they begin to import torch."""
    from launch.local import LocalEngine

    engine = LocalEngine()
    engine.warm_up()  # imports torch in the background while this process reads the data
    return engine


def ended_at_once(directory: RunDirectory) -> str:
    """What is said of a run that had no time to come to its end: what there is to go on from."""
    complete = complete_checkpoints(directory.checkpoints)
    if not complete:
        return "interrupted: there is no complete checkpoint"
    step = int(complete[-1].name.rpartition("-")[2])
    return f"interrupted: the newest complete checkpoint is of step {step}"


def _how_to_resume(said: str, directory: RunDirectory, options: Options) -> str:
    command = ["pipeline-launch", "--resume", "--run-dir", str(directory.path)]
    if options.single:
        command.append("--single")
    named = (("--stages", options.stages), ("--gpus", options.gpus), ("--plan", options.plan))
    for flag, value in named:
        command += [flag, str(value)] if value is not None else []
    for override in options.overrides:
        command += ["--set", override]
    if options.config is not None:
        command.append(str(options.config))
    return f"{said}; to go on:\n  {shlex.join(command)}"


def _default_run_dir(name: str) -> Path:
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _complain(text: str, status: int, remote_traceback: str = "") -> int:
    print(end="", flush=True)  # in order; there may be no stdout at all
    print(f"error: {text}" if status != INTERRUPTED else text, file=sys.stderr)
    if remote_traceback:
        print(remote_traceback.rstrip(), file=sys.stderr)
    return status
