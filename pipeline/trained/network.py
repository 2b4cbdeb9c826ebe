"""A trained network with its heads: what `pipeline.fit` gives asks it, and so do commands."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.config.config_file import load_config
from pipeline.config.sections import build_config, differing_keys
from pipeline.config.yaml_text import word_for
from pipeline.errors import CheckpointError, ConfigError, Option, one_line
from pipeline.learning.block_file import decode_block
from pipeline.learning.build import build_stage
from pipeline.network.from_config import network_specs
from pipeline.storage.checkpoint_writer import CONFIG
from pipeline.system.given import is_given, objects_given
from pipeline.trained.run_folder import facts_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.learning.stage import Stage
    from pipeline.network.specs import BlockSpec
    from pipeline.storage.checkpoint import Checkpoint, Form
    from pipeline.storage.folder import Folder
    from pipeline.system.given import Given

_AT_ONCE = 1024
"""Examples that go through a network together, where it is only asked what it predicts."""
_CPU = torch.device("cpu")


class AnotherNetworkError(ConfigError):
    """A checkpoint in a run's folder is of another network than the run's."""


class TrainedNetwork:
    """Takes examples as they are in the data, and normalises them as the run did; on the CPU.

    Args:
        facts: of the run's data.
        files: the block files of a checkpoint.
        given: the user's objects that the configuration names, where it does.
        form: of the checkpoint; of one with weights only, blocks predict nothing by themselves, but
            for the last.

    Legend of shapes: n examples, each of the shape that the data have.
    """

    def __init__(
        self,
        config: Config,
        specs: Sequence[BlockSpec],
        facts: DataFacts,
        files: Mapping[int, bytes],
        given: Given | None = None,
        form: Form = "full",
    ) -> None:
        self.config, self.specs, self.facts = config, specs, facts
        self.files, self.given, self.form = files, given, form

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be made of the rest."""
        return {key: value for key, value in vars(self).items() if key != "stage"}

    @cached_property
    def stage(self) -> Stage:
        """The whole network with its heads, where the checkpoint has them."""
        plain = {"compile": False, "cuda_graphs": False}
        runtime = self.config.runtime.model_copy(update=plain)
        config = self.config.model_copy(update={"runtime": runtime})
        # frozen blocks have neither heads nor optimizers, as such a checkpoint has
        is_full = self.form == "full"
        specs = [spec if is_full else spec.as_frozen for spec in self.specs]
        with objects_given(self.given) if self.given else nullcontext():
            stage = build_stage(config, self.facts, range(len(specs)), _CPU, specs=specs)
        stage.load(self.states())
        return stage

    def states(self) -> dict[int, dict[str, Tensor]]:
        """The tensors of each block."""
        return {block: decode_block(data) for block, data in self.files.items()}

    def scores(self, x: Any) -> list[Tensor | None]:
        """What each block predicts, by its rule or its local classifier: (n, classes, …), or None
        where it predicts nothing.

        Raises:
            ConfigError: where x does not hold such examples.
        """
        return [
            None if part[0] is None else torch.cat(part)
            for part in zip(*self.scores_by_part(x), strict=True)
        ]

    def scores_by_part(self, x: Any) -> Iterator[list[Tensor | None]]:
        """As `scores`, of so many examples at once."""
        for given in self.parts(x, None):
            found = self.stage.scores(*given)
            yield [None if scores is None else scores.float() for scores in found]

    def inputs(self, x: Any) -> Tensor:
        """Examples (n, *shape), of the type that they have in the run's data.

        Raises:
            ConfigError: where x does not hold such examples.
        """
        return _tensor(x, self.facts.dtype, self.facts.shape, "X")

    def parts(self, x: Any, y: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Examples and targets, as many at once as in the run's tests, so that rules which draw
        in tests draw alike (but for those of a team, whose members draw for shares); without
        targets, zeros, of many at once.

        Raises:
            ConfigError: where these are not as the run's data.
        """
        facts, examples = self.facts, self.inputs(x)
        if y is None:
            kind = getattr(torch, facts.target_dtype)
            targets = torch.zeros((len(examples), *facts.target_shape), dtype=kind)
        else:
            targets = _tensor(y, facts.target_dtype, facts.target_shape, "y")
        if len(targets) != len(examples):
            raise ConfigError(f"{len(examples)} examples in X and {len(targets)} targets in y")
        at_once = _AT_ONCE if y is None else self.config.data.batch_size
        for first in range(0, len(examples), at_once):
            part = slice(first, first + at_once)
            yield examples[part], targets[part]


def _check_objects(run: Folder, config: Config, given: Given | None, instead: str) -> None:
    """Raises ConfigError where a run can't be read without objects that `pipeline.fit` was given,
    and these are not there. `instead`: the function that takes them."""
    for what, argument, named, there in (
        ("network", "network", config.model.factory, given and given.network),
        ("rule", "loss", config.loss.rule, given and given.rule),
    ):
        if not is_given(named) or there is not None:
            continue
        if given is not None:
            raise ConfigError(
                f"{argument}: which? the {what} of the run in {run.path} is a Python object: give "
                "the same"
            )
        raise ConfigError(
            f"{run.path}: the {what} of this run is a Python object, which no command has: use "
            f"{instead}(…) with it"
        )


@contextmanager
def fitting(run: Folder, checkpoint: Checkpoint) -> Iterator[None]:
    """Around what puts the tensors of a checkpoint into the network of its run.

    Raises:
        AnotherNetworkError: where they are of another.
    """
    try:
        yield
    except CheckpointError as error:
        what = f"than that of the data in {run.path}: {error}"
        raise _another_network(checkpoint, what) from None


def _check_network(run: Folder, checkpoint: Checkpoint, config: Config) -> None:
    """Raises AnotherNetworkError where a checkpoint's config has another network than the run's."""
    try:
        own = load_config(run.path / CONFIG)
    except ConfigError:  # of an earlier version, or gone
        return
    for key, (there, here) in differing_keys(config, own).items():
        if key.startswith("model.") and key != "model.init_from":
            values = f"{key} is {word_for(there)} there and {word_for(here)} here"
            raise _another_network(checkpoint, f"than that of {run.path / CONFIG}: {values}")


def _another_network(checkpoint: Checkpoint, what: str) -> AnotherNetworkError:
    return AnotherNetworkError(
        f"{checkpoint.path}: is of another network {what}; bring back the run's own, or name "
        "another by ",
        Option("at"),
    )


def trained_in(
    run: Folder,
    checkpoint: Checkpoint,
    given: Given | None = None,
    *,
    instead: str = "pipeline.load",
) -> TrainedNetwork:
    """The network of a run's checkpoint.

    Args:
        given: the user's objects, which are in use; None in a command, which has none.
        instead: the function that takes such objects, for the error.

    Raises:
        ConfigError: where it can't be made without objects that were given to `pipeline.fit`.
        AnotherNetworkError: where the checkpoint is not of the run's network.
        CheckpointError: where a block file is damaged.
    """
    config = build_config(checkpoint.config, str(checkpoint.path))
    _check_network(run, checkpoint, config)
    _check_objects(run, config, given, instead)
    files, facts = checkpoint.read(), facts_in(run, config)
    specs = network_specs(config, facts)
    return TrainedNetwork(config, specs, facts, files, given, checkpoint.form)


def _tensor(values: Any, dtype: str, shape: tuple[int, ...], what: str) -> Tensor:
    """Values as the run's data have them; (n, *shape). A copy: a network may compute in place."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    try:
        found = np.asarray(values)
    except ValueError as error:  # rows of unequal length
        raise ConfigError(f"{what} can't be read as an array: {one_line(error)}") from error
    if found.shape[1:] == shape and not len(found):
        raise ConfigError(f"{what} holds no example")
    if found.shape[1:] != shape:
        raise ConfigError(
            f"{what} has shape {found.shape}; (n, {', '.join(map(str, shape))}) is needed, as in "
            "the data that the network was trained on"
        )
    if not np.can_cast(found.dtype, dtype, "same_kind"):
        raise ConfigError(f"{what} is {found.dtype}; {dtype} is needed, as in training")
    with np.errstate(over="ignore"):
        copied = np.array(found, dtype, order="C")
    if copied.dtype.kind in "iu" and not np.array_equal(copied, found):  # it has wrapped around
        raise ConfigError(
            f"{what} is {found.dtype} with numbers beyond those of {dtype}, which it was in "
            "training: bring them into its range"
        )
    if not np.isfinite(copied).all():
        raise ConfigError(
            f"{what} has numbers that are NaN, infinite or too large for {dtype}: remove or "
            "replace them"
        )
    return torch.from_numpy(copied)
