"""The trained network of a run's folder, as commands that only read a run name it: their common
argument and option, and what these mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.errors import ConfigError, as_option, worded

if TYPE_CHECKING:
    from pipeline.errors import Option
    from pipeline.trained.network import TrainedNetwork


run_argument = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
checkpoint_option = click.option(
    "--checkpoint",
    metavar="last|best|STEP",
    default="last",
    show_default=True,
    help="The newest checkpoint, that of the lowest tested error, or that of a step.",
)


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """`classes`: their names; `step`: that of the checkpoint."""

    network: TrainedNetwork
    classes: tuple[str, ...]
    step: int


def as_option_of_a_run(option: Option) -> str:
    """What commands that only read a run call their argument and options."""
    return {"run_dir": "RUN", "at": "--checkpoint"}.get(option.name) or as_option(option)


def checkpoint_named(word: str) -> str | int:
    """What a word of the option means: a step as a number."""
    return int(word) if word.isdecimal() else word


def read_run(path: Path, checkpoint: str) -> TrainedRun:
    """Read a run's network, for this process to compute with as the run's workers do.

    Args:
        checkpoint: "last", "best", or a step.

    Raises:
        ConfigError: where there is no such run or checkpoint, or it needs a user's objects.
        CheckpointError: where it is damaged.
    """
    import torch

    from pipeline.learning.build import prepare_process
    from pipeline.trained.network import trained_in
    from pipeline.trained.run_folder import checkpoint_at, class_names, open_run

    at = checkpoint_named(checkpoint)
    with worded(as_option_of_a_run), open_run(path) as folder:
        found = checkpoint_at(folder, at)
        network = trained_in(folder, found)
        names = class_names(folder, network.facts.classes)
    prepare_process(torch.device("cpu"), network.config.runtime.threads_per_stage)
    return TrainedRun(network, tuple(names), found.state.position.step)


def existing(option: str, path: Path) -> Path:
    """The path.

    Raises:
        ConfigError: where nothing is there.
    """
    if not path.exists():
        raise ConfigError(f"{option} {path}: there is no such file or folder")
    return path
