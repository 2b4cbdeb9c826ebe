"""What lies in a run's folder, for who only reads it: its checkpoints, the facts of its data."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.data.facts import data_facts, facts_of_tree
from pipeline.errors import RUN_DIR, CheckpointError, ConfigError, Option
from pipeline.storage.checkpoint import best_name, checkpoint_in, complete_names, step_of
from pipeline.storage.checkpoint_writer import CHECKPOINTS, CONFIG, DATA, checkpoints_of
from pipeline.storage.folder import Folder
from pipeline.system.paths import expanded

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.storage.checkpoint import Checkpoint

_WHICH = "name the folder of a run, as pipeline-launch said at its end"


class NoCheckpointError(ConfigError):
    """A run's folder holds no complete checkpoint, not yet or no more."""


def open_run(run_dir: str | Path) -> Folder:
    """The folder of a run.

    Raises:
        ConfigError: where there is no such folder, or it is no path.
    """
    path = expanded(RUN_DIR, run_dir)
    if not path.is_dir():
        what = "is no folder" if path.exists() else "there is no such folder"
        raise ConfigError(RUN_DIR, f" {path}: {what}: {_WHICH}")
    return Folder.open(path)


def checkpoint_at(run: Folder, at: str | int) -> Checkpoint:
    """A checkpoint of a run: "last", the newest; "best", that of the lowest tested error; or that
    of a step.

    Raises:
        ConfigError: where it is not there; NoCheckpointError where none is.
        CheckpointError: where its manifest is damaged.
    """
    try:
        checkpoints = checkpoints_of(run)
    except (OSError, CheckpointError):
        raise _without(run) from None
    names: dict[str | int, str] = {step_of(name): name for name in complete_names(checkpoints)}
    best = best_name(checkpoints)
    if not (names or best):
        raise _without(run)
    there = ", ".join(map(str, names))
    if names:
        names["last"] = list(names.values())[-1]
    elif at != "best":
        raise ConfigError(
            Option("at"),
            f" {at!r}: of the checkpoints of {run.path} only 'best' is there: use that",
        )
    if best:
        names["best"] = best
    elif at == "best":
        raise ConfigError(
            Option("at"),
            " 'best': this run has kept no best checkpoint, as it does under runtime.keep_best "
            "from the first test on that brings a lower error: use 'last'",
        )
    if at not in names:
        words = "'last' or 'best'" if best else "or 'last'"
        raise ConfigError(
            Option("at"), f" {at!r}: there are checkpoints of steps {there}: use one, {words}"
        )
    return checkpoint_in(checkpoints, names[at])


def _without(run: Folder) -> ConfigError:
    """What is wrong with a folder without a complete checkpoint, and what to do."""
    if not run.has_file(CONFIG):
        return ConfigError(RUN_DIR, f" {run.path}: holds no run: {_WHICH}")
    resumed = shlex.join(["pipeline-launch", "--resume", "--run-dir", str(run.path)])
    why = f"this run has no complete checkpoint yet; to go on with it: {resumed}"
    if not run.has(CHECKPOINTS):  # it was removed, or the run has only just begun
        why = (
            f"this run has no folder {CHECKPOINTS}, and so no network: bring it back, or, where "
            f"nothing was trained yet, go on with it: {resumed}"
        )
    return NoCheckpointError(RUN_DIR, f" {run.path}: {why}")


def class_names(run: Folder, classes: int) -> list[str]:
    """Of the run's data, where they have names; else their numbers."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        names = [str(name) for name in json.loads(run.read(DATA))["classes"]]
        if len(names) == classes:
            return names
    return [str(number) for number in range(classes)]


def facts_in(run: Folder, config: Config) -> DataFacts:
    """Of the run's data, as it has noted them; early versions did not, and knew only data sets of
    which facts are known."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return facts_of_tree(json.loads(run.read(DATA))["facts"])
    return data_facts(config.data)
