"""From options to an exit status: the one readable way through a command."""

from __future__ import annotations

import shlex
import sys
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launch.display.streams import settle_output, wait_for_no_reader
from launch.engines.interrupts import INTERRUPTED
from launch.plan.checks import check_engine, make_job
from launch.resume import look, nothing_left
from launch.run_directory import HeldRun, RunDirectory, hold, hold_new
from pipeline.errors import (
    ConfigError,
    CutShortError,
    InterruptedRunError,
    PipelineError,
    StageFailedError,
)
from pipeline.storage.checkpoint import RunState
from pipeline.system.limits import cure_of, with_cure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from launch.job import Job, Options
    from pipeline.coordinator.engine import Engine

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
        bug = cure_of(error) is None
        return _complain(with_cure(error), FAILED, traceback.format_exc() if bug else "")


def _launch(options: Options) -> int:
    if not options.dry_run:
        wait_for_no_reader()  # already where a user's own network is made, which may print
    check_engine(options)
    job = make_job(options)
    if options.resume and options.run_dir is None:
        raise ConfigError("--resume: which run? name its folder with --run-dir")
    if options.dry_run:
        if options.resume and options.run_dir is not None:
            look(options.run_dir, job)
        return _print_plan(job)
    with _held(options, job.name) as run:
        if not options.resume:
            run.refuse_to_overwrite()
            return _start(job, run, (RunState(), []), options)
        origin = run.start_state(job)
        finished = nothing_left(job, origin[0], run.path)
        if finished:
            print(finished, flush=True)
            return DONE
        return _start(job, run, origin, options)


def _held(options: Options, name: str) -> AbstractContextManager[HeldRun]:
    """The run's folder: from here on no other command changes it."""
    if options.run_dir is None:
        return hold_new(name)
    return hold(options.run_dir, make=not options.resume)


def _print_plan(job: Job) -> int:
    from rich.console import Console

    from launch.plan.dry_run import dry_run_report, say
    from launch.plan.foresight import cautions

    console = Console()
    dry_run_report(job.config, job.specs, job.costs, job.plan, console, single=job.single)
    if job.foresight:
        from launch.plan.forecast import print_forecast

        print_forecast(job, job.foresight, console)
    for caution in cautions(job):
        say(console, caution)
    return DONE


def _start(job: Job, run: HeldRun, origin: tuple[RunState, list[str]], options: Options) -> int:
    run.check_writable()
    trained = False
    try:
        with engine_for(options) as engine:
            from launch.training import train  # numpy, and much more: only now that it is needed

            train(job, run, origin, engine, view=options.view)
            trained = True
    except InterruptedRunError as error:
        return _complain(_how_to_resume(str(error), run, options), INTERRUPTED)
    except CutShortError as error:
        said = _how_to_resume(error.summary, run, options)
        return _complain(said, FAILED, error.remote_traceback)
    except KeyboardInterrupt:
        if not trained:  # else only the engine was still to be closed, and nothing is left to do
            return _complain(_how_to_resume(ended_at_once(run), run, options), INTERRUPTED)
    return DONE


@contextmanager
def engine_for(options: Options) -> Iterator[Engine | None]:
    """Workers on this machine, which begin to import torch; None is single mode."""
    if options.single:
        yield None
        return
    from launch.engines.local import LocalEngine

    engine = LocalEngine()
    try:
        engine.warm_up()  # imports torch in the background while this process reads the data
        yield engine
    finally:
        engine.close()


def ended_at_once(run: HeldRun) -> str:
    """What is said of a run that had no time to come to its end: what there is to go on from."""
    step = run.newest_step
    if step is None:
        return "interrupted: there is no complete checkpoint"
    return f"interrupted: the newest complete checkpoint is of step {step}"


def _how_to_resume(said: str, run: HeldRun, options: Options) -> str:
    """With the line to resume by, where there is a run, in whatever folder it is by now."""
    if not run.holds_run:
        return said
    command = ["pipeline-launch", "--resume", "--run-dir", str(run.path)]
    if options.single:
        command.append("--single")
    named = (("--stages", options.stages), ("--gpus", options.gpus), ("--plan", options.plan))
    for flag, value in named:
        command += [flag, str(value)] if value is not None else []
    for override in options.overrides:
        command += ["--set", override]
    if options.config is not None and not _is_the_runs_own(options):
        command.append(str(options.config))
    return f"{said}; to go on:\n  {shlex.join(command)}"


def _is_the_runs_own(options: Options) -> bool:
    """The config of a run that is resumed by it may have moved, with its folder."""
    return options.run_dir is not None and options.config == RunDirectory(options.run_dir).config


def _complain(text: str, status: int, remote_traceback: str = "") -> int:
    if status == INTERRUPTED:
        wait_for_no_reader()
    settle_output()
    print(f"error: {text}" if status != INTERRUPTED else text, file=sys.stderr)
    if remote_traceback:
        print(remote_traceback.rstrip(), file=sys.stderr)
    return status
