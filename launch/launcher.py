"""A training command from its options to its exit status: check, hold the folder, train."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from launch.command import DONE, FAILED, complain
from launch.display.streams import wait_for_no_reader
from launch.engines.interrupts import INTERRUPTED
from launch.last_lines import last_lines
from launch.plan.checks import check_engine, make_job
from launch.resume import look
from launch.run_job import cluster_for, engine_for, run_folder, run_job
from pipeline.errors import (
    ConfigError,
    CutShortError,
    EngineLostError,
    InterruptedRunError,
    PipelineError,
)
from pipeline.storage.checkpoint_writer import CONFIG
from pipeline.system.limits import cure_of, with_cure

if TYPE_CHECKING:
    from launch.engines.ray_engine import RayEngine
    from launch.job import Job, Options
    from launch.run_directory import HeldRun


def launch(options: Options) -> int:
    """Carry out what the options ask for; returns the exit status.

    Raises:
        ConfigError: for wrong usage or configuration, before anything is started.
        PipelineError: what ended the run; not where it can be resumed, which is told with the line
            to do so, and has its exit status.
    """
    if not options.dry_run:
        wait_for_no_reader()  # already where a user's own network is made, which may print
    check_engine(options)
    with cluster_for(options) as cluster:
        job = make_job(options, cluster)
        if options.resume and options.run_dir is None:
            raise ConfigError("--resume: which run? name its folder with --run-dir")
        if options.dry_run:
            if options.resume and options.run_dir is not None:
                look(options.run_dir, job)
            return _print_plan(job, options)
        if said := _tried(job, options):
            print(said, file=sys.stderr)
        with run_folder(job, options) as run:
            return _train(job, run, options, cluster)


def _print_plan(job: Job, options: Options) -> int:
    from rich.console import Console

    from launch.plan.dry_run import dry_run_report, say
    from launch.plan.known_speed import cautions
    from launch.plan.links import print_links

    console = Console()
    dry_run_report(
        job.config, job.facts, job.specs, job.costs, job.plan, console, single=job.single
    )
    print_links(job, console)
    if job.known_speed:
        from launch.plan.predicted_speed import print_prediction

        print_prediction(job, job.known_speed, console)
    if said := _tried(job, options):
        say(console, said)
    for caution in cautions(job):
        say(console, caution)
    return DONE


def _tried(job: Job, options: Options) -> str:
    """With `--measure`, what a trial run of the plan reaches; its failure ends nothing. Empty where
    the memory holds no run, and in greedy training, where stages never work all at once."""
    if not options.measure or job.too_large or job.config.schedule.greedy:
        return ""
    from launch.trial_run import trial_run  # numpy, and much more

    print("measuring the planned pipeline", file=sys.stderr)
    try:
        with engine_for(single=job.in_one_process) as engine:
            trial = trial_run(job, engine)
            speed = f"{trial.images_per_s:,.0f} images/s"
            return f"Measured in a trial run: {speed}. {trial.not_kept}".rstrip()
    except Exception as error:
        if not isinstance(error, PipelineError) and cure_of(error) is None:
            raise  # a bug
        return f"The trial run failed, so no speed was measured: {with_cure(error)}"


def _train(job: Job, run: HeldRun, options: Options, cluster: RayEngine | None) -> int:
    try:
        finished = run_job(job, run, options, cluster=cluster)
    except InterruptedRunError as error:
        return complain(_how_to_resume(str(error), run, options), INTERRUPTED)
    except EngineLostError as error:
        return complain(_how_to_resume(str(error), run, options), FAILED)
    except CutShortError as error:
        said = _how_to_resume(error.summary, run, options)
        return complain(said, FAILED, error.remote_traceback)
    except KeyboardInterrupt:
        return complain(_how_to_resume(ended_at_once(run), run, options), INTERRUPTED)
    if finished.nothing_to_do:
        print(finished.nothing_to_do, flush=True)
    elif options.view != "quiet":
        print(*last_lines(run.folder, finished.state), sep="\n", flush=True)
    return DONE


def ended_at_once(run: HeldRun) -> str:
    """What to say of a run that had no time to write a checkpoint: the newest one there is."""
    step = run.newest_step
    if step is None:
        return "interrupted: there is no complete checkpoint"
    return f"interrupted: the newest complete checkpoint is of step {step}"


def _how_to_resume(said: str, run: HeldRun, options: Options) -> str:
    """`said`, and the command that resumes the run, if there is one, in its folder as named now."""
    if not run.holds_run:
        return said
    command = ["pipeline-launch", "--resume", "--run-dir", str(run.path), *placement(options)]
    for override in options.overrides:
        command += ["--set", override]
    # the run's own config may have moved, with its folder
    own = None if options.run_dir is None else options.run_dir / CONFIG
    if options.config not in (None, own):
        command.append(str(options.config))
    return f"{said}; to go on:\n  {shlex.join(command)}"


def placement(options: Options) -> list[str]:
    """The words of a command that say in which processes, on which devices, it trains."""
    words = ["--single"] if options.single else []
    engine = None if options.engine == "local" else options.engine
    words += [word for text in options.replicas for word in ("--replicas", text)]
    named = (
        *(("--stages", options.stages), ("--gpus", options.gpus), ("--plan", options.plan)),
        *(("--engine", engine), ("--ray-address", options.ray_address)),
        ("--data-parallel", options.data_parallel),
    )
    for flag, value in named:
        words += [flag, str(value)] if value is not None else []
    return words + ["--ray-insecure"] * options.ray_insecure
