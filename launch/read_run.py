"""The trained network of a run's folder, as commands that only read a run name it: their common
argument and options, and what these mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import click

from launch.command import PathType
from pipeline.errors import ConfigError, Option, as_option, worded
from pipeline.system.paths import check_free, file_named

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from pipeline.data.batches import Batches
    from pipeline.data.image_folder import Progress
    from pipeline.data.record import DataRecord
    from pipeline.trained.network import TrainedNetwork

EVALUATING = "evaluating"
"""What is shown to be done."""

run_argument = click.argument("run", metavar="RUN", type=PathType())
checkpoint_option = click.option(
    "--checkpoint",
    metavar="last|best|STEP",
    default="last",
    show_default=True,
    help="The newest checkpoint, that of the lowest tested error, or that of a step.",
)
data_option = click.option(
    "--data",
    metavar="PATH",
    type=PathType(),
    help="Other examples: an .npz file (x_test and y_test, or X and y), or a folder with a folder "
    "of images for each class. [default: the run's own test set, or validation share]",
)

_OUT = Option("out")


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """`classes`: their names; `step`: that of the checkpoint; `data`: which examples it was trained
    and tested on, where its version kept that."""

    network: TrainedNetwork
    classes: tuple[str, ...]
    step: int
    data: DataRecord | None = None


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
        ConfigError: where there is no such run or checkpoint, it is of another network, or needs a
            user's objects.
        CheckpointError: where it is damaged.
    """
    import torch

    from pipeline.learning.build import prepare_process
    from pipeline.trained.network import fitting, trained_in
    from pipeline.trained.run_folder import checkpoint_at, class_names, open_run

    at = checkpoint_named(checkpoint)
    with worded(as_option_of_a_run), open_run(path) as folder:
        found = checkpoint_at(folder, at)
        network = trained_in(folder, found)
        names = class_names(folder, network.facts.classes)
        prepare_process(torch.device("cpu"), network.config.runtime.threads_per_stage)
        with fitting(folder, found):
            _ = network.stage  # made now, where what is wrong can be said of the checkpoint
    state = found.state
    return TrainedRun(network, tuple(names), state.position.step, state.data)


def own_examples(
    trained: TrainedRun, show: Progress = lambda what, done, of: None
) -> tuple[str, Iterator[tuple[Tensor, Tensor]]]:
    """The run's test set; where its data have none, the share of the training set that was kept for
    validation. Before it, which of the two it is, in words.

    Args:
        show: is told how much of it is read, and done with.

    Raises:
        ConfigError: where the data can't be read, are others than the run was tested on, or have
            nothing to test on.
    """
    from pipeline.data.batches import load_batches
    from pipeline.system.given import is_given

    network = trained.network
    config, seed = network.config.data, network.config.runtime.seed
    if is_given(config.factory):
        raise ConfigError(
            "the data of this run are Python objects, which no command has: name others with --data"
        )
    words = "its own test set"
    batches = load_batches(config.model_copy(update={"validation": None}), seed, show)
    # a run that validates was tested on that share, and knows nothing of its test set
    tested_on = trained.data if config.validation is None else None
    if not batches.evaluation_batches:
        words = "its own validation share"
        batches, tested_on = load_batches(config, seed, show), trained.data
    if not batches.evaluation_batches:
        raise ConfigError("this run has no test set: name examples with --data")
    _check_same(batches, network, tested_on)
    return words, _evaluated(batches, show)


def _check_same(batches: Batches, network: TrainedNetwork, tested_on: DataRecord | None) -> None:
    """Raises ConfigError where these are not the examples that a run was tested on, or no longer
    such as its network takes."""
    from pipeline.data.record import differences

    what, noun, now, then = list[str](), "examples", batches.facts, network.facts
    if tested_on is not None:
        # of the training set nothing is asked: not even its digest, which takes a look at all of it
        there = replace(tested_on, classes=batches.classes, test=batches.part_record(batches.test))
        what, noun = differences(tested_on, there), tested_on.noun
    elif (now.shape, now.classes) != (then.shape, then.classes):
        what = [f"{now.classes} classes of shape {now.shape}, not {then.classes} of {then.shape}"]
    if what:
        raise ConfigError(
            f"this run's {noun} are others than it was tested on ({'; '.join(what)}): bring them "
            "back, or name these with --data"
        )


def _evaluated(batches: Batches, show: Progress) -> Iterator[tuple[Tensor, Tensor]]:
    import torch

    done = 0
    for index in range(batches.evaluation_batches):
        x, y = batches.evaluation(index)
        yield torch.from_numpy(x), torch.from_numpy(y)
        done += len(x)
        show(EVALUATING, done, len(batches.test))


def examples_at(
    path: Path, trained: TrainedRun, show: Progress = lambda what, done, of: None
) -> Iterator[tuple[Tensor, Tensor]]:
    """What `--data` leads to. `show`: is told how much of it is done with.

    Raises:
        ConfigError: where it can't be read, or the network can't be evaluated on it.
    """
    from pipeline.data.beside import labelled_parts
    from pipeline.system.named_object import naming

    network = trained.network
    with naming(f"--data {path}"):
        n, found = labelled_parts(path, network.config.data, network.facts, trained.classes)
        done = 0
        for x, y in chain.from_iterable(network.parts(*given) for given in found):
            yield x, y
            done += len(x)
            show(EVALUATING, done, n)


def existing(option: str, path: Path) -> Path:
    """The path.

    Raises:
        ConfigError: where nothing is there.
    """
    if not path.exists():
        raise ConfigError(f"{option} {path}: there is no such file or folder")
    return path


def to_write(out: str | Path, *, overwrite: bool) -> Path:
    """The file that `--out` names, or that is written where it is not given.

    Raises:
        ConfigError: as `file_named`, and where it is there and is not to be written over.
    """
    path = file_named(_OUT, out)
    check_free(_OUT, path, overwrite=overwrite)
    return path
