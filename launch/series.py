"""One of several runs: what commands that train many, one after another, do alike.

hold its folder ─▶ train_one: begin, or go on from where it is ─▶ the next
"""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from launch.launcher import ended_at_once
from launch.resume import what_differs
from launch.run_job import run_job
from pipeline.config.config_file import load_config
from pipeline.errors import ConfigError
from pipeline.storage.checkpoint_writer import CONFIG

if TYPE_CHECKING:
    from pathlib import Path

    from launch.job import Job, Options
    from launch.run_directory import HeldRun
    from pipeline.config.sections import Config


def options_for(options: Options, *, backprop: bool) -> Options:
    """How one of several runs is trained: global backprop in one process, whatever the others have.

    Args:
        backprop: whether the run needs a global gradient.
    """
    single = options.single or backprop
    return replace(options, single=single, stages=None if backprop else options.stages)


def check_tested(config: Config) -> None:
    """Raises ConfigError where a run gives no result to compare."""
    if config.runtime.eval_every_epochs == 0:
        raise ConfigError(
            "runtime.eval_every_epochs 0: a result needs the test of the last epoch; use 1, or "
            "as many epochs as the run has for that test alone"
        )


def check_same(folder: Path, what: str, before: Config, config: Config, option: str) -> None:
    """Check that what a folder holds is what is asked for.

    Args:
        what: it holds, as "run", with `before`; option: by which another folder is chosen.

    Raises:
        ConfigError: naming the first key that differs, and both values.
    """
    for key, (old, new) in what_differs(before, config).items():
        raise ConfigError(
            f"{folder}: holds a {what} with {key} {old}, but {new} is asked for: "
            f"choose another folder with {option}, or move that {what} away"
        )


def check_same_run(run_dir: Path, config: Config, option: str) -> None:
    """As `check_same`, of the run in a folder."""
    check_same(run_dir, "run", load_config(run_dir / CONFIG), config, option)


def train_one(job: Job, run: HeldRun, options: Options, option: str) -> None:
    """Train one run to its end in its folder, which another command may have used before it was
    held.

    Args:
        option: as for `check_same`.

    Raises:
        ConfigError: where the folder holds another run.
        PipelineError: what ended the run, an interruption included.
        KeyboardInterrupt: where it was interrupted twice.
    """
    if run.holds_run:
        check_same_run(run.path, job.config, option)
    try:
        run_job(job, run, replace(options, resume=run.holds_run))
    finally:
        torch = sys.modules.get("torch")
        if torch is not None:
            # single mode trained in this process: the next run may need its device memory
            gc.collect()
            torch.cuda.empty_cache()


def how_to_go_on(error: BaseException, run: HeldRun, what: str, command: str) -> str:
    """What to say where an interruption ends them all.

    Args:
        what: they are called, as "entries"; command: that goes on.
    """
    said = str(error) or ended_at_once(run)
    return f"{said}; to go on, with the remaining {what}:\n  {command}"
