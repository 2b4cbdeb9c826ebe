"""What `pipeline.fit` gives: a trained network, and how it was trained."""

from __future__ import annotations

import copy
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.api.caller import settings_kept
from pipeline.api.plain import plain_network
from pipeline.api.run_folder import checkpoint_at, open_run
from pipeline.data.own_data import own_data
from pipeline.errors import ConfigError
from pipeline.learning.block_file import decode_block
from pipeline.learning.build import build_stage
from pipeline.system.given import Given, objects_given

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from launch.job import Job
    from pipeline.data.facts import DataFacts
    from pipeline.learning.stage import Stage
    from pipeline.storage.checkpoint import RunState

_AT_ONCE = 1024
"""Examples that go through a network together."""
_CPU = torch.device("cpu")


class FittedRun:
    """A trained network, and how it was trained.

    What takes examples takes them as they are in the data, and normalises them as the run did.

    Legend of shapes: n examples, each of the shape that the data have.
    """

    path: Path
    """The run's folder. Where `fit` was given none, it is removed with this object."""
    history: list[dict[str, Any]]
    """A row for each epoch, that of `metrics.jsonl`: `epoch`, `step`, `lr`; `train` and `test`
    with `loss` and `error_pct` of the output; `blocks` with both of each block in training;
    `images_per_s`, `seconds`, `stages`."""

    def __init__(
        self, job: Job, state: RunState, facts: DataFacts, path: Path, lines: bytes, given: Given
    ) -> None:
        self.path = path
        self.history = [json.loads(line) for line in lines.splitlines()]
        self._config, self._specs = job.config, job.specs
        self._facts = facts
        # of the user's objects only what makes the network again, as it is now
        self._given = Given(copy.deepcopy(given.network), given.rule)
        self._files = {block: bytes(data) for block, data in state.files.items()}

    def __repr__(self) -> str:
        return f"<FittedRun: {len(self.history)} epochs, in {self.path}>"

    @cached_property
    def model(self) -> nn.Module:
        """The trained network as a plain module, without heads, in evaluation mode and on the CPU:
        a copy of the user's own, or one of torch's own layers. It takes what the first block took:
        normalised examples."""
        with settings_kept(), objects_given(self._given):
            return plain_network(self._config, self._specs, self._states())

    @property
    def best(self) -> nn.Module:
        """As `model`, with the weights that had the lowest tested error, or loss where nothing is
        predicted; read from the run's folder.

        Raises:
            ConfigError: where the run has kept none, or its folder is gone.
            CheckpointError: where it is damaged.
        """
        with open_run(self.path) as folder, objects_given(self._given):
            files = checkpoint_at(folder, "best").read()
            states = {block: decode_block(data) for block, data in files.items()}
            return plain_network(self._config, self._specs, states)

    def predict(self, x: Any) -> NDArray[Any]:
        """(n,) the most likely class of each example, by the last block; (n, …) where there are
        several targets for each; where targets are numbers, these: (n, …) float32.

        Raises:
            ConfigError: where x does not hold such examples, or nothing is predicted.
        """
        scores = self.scores_by_depth(x)[-1]
        if scores is None:
            raise ConfigError(
                f"predict: by loss.rule {self._config.loss.rule} the last block has no scores"
            )
        if not self._facts.classes:
            return scores.reshape(len(scores), *self._facts.target_shape)
        return np.asarray(scores.argmax(axis=1), np.int64)

    def scores_by_depth(self, x: Any) -> list[NDArray[np.float32] | None]:
        """What each block predicts, by its rule or its local classifier; the last one is what the
        network predicts. (n, classes) for each, None for blocks that predict nothing.

        Raises:
            ConfigError: where x does not hold such examples.
        """
        with settings_kept():
            parts = [self._stage.scores(*given) for given in self._batches(x, None)]
        return [
            None if part[0] is None else torch.cat(part).float().numpy()
            for part in zip(*parts, strict=True)
        ]

    def evaluate(self, data: Any) -> dict[str, float | None]:
        """`loss` and `error_pct` of the last block, as the run's own tests have them; `error_pct`
        is None where nothing is predicted.

        Args:
            data: (X, y) of arrays or tensors, or a map-style Dataset.

        Raises:
            ConfigError: where these are no such examples.
        """
        given = own_data({"train": data, "classes": self._facts.classes or None}).training
        x, y = given.x, given.y
        with settings_kept():
            self._stage.evaluation.reset()
            for examples, targets in self._batches(x, y):
                self._stage.evaluate(examples, targets, send=lambda *sent: None)
            tally = self._stage.evaluation.read()[-1]
        return {"loss": tally.loss, "error_pct": tally.error_pct}

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be made of the rest."""
        made = ("model", "_stage")
        return {key: value for key, value in vars(self).items() if key not in made}

    @cached_property
    def _stage(self) -> Stage:
        """The whole network with its heads."""
        plain = {"compile": False, "cuda_graphs": False}
        runtime = self._config.runtime.model_copy(update=plain)
        config = self._config.model_copy(update={"runtime": runtime})
        with objects_given(self._given):
            stage = build_stage(config, self._facts, range(len(self._specs)), _CPU)
        stage.load(self._states())
        return stage

    def _states(self) -> dict[int, dict[str, Tensor]]:
        return {block: decode_block(data) for block, data in self._files.items()}

    def _batches(self, x: Any, y: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Examples and targets, so many at once; targets of zero where there are none."""
        facts = self._facts
        examples = _tensor(x, facts.dtype, facts.shape, "X")
        if y is None:
            kind = getattr(torch, facts.target_dtype)
            targets = torch.zeros((len(examples), *facts.target_shape), dtype=kind)
        else:
            targets = _tensor(y, facts.target_dtype, facts.target_shape, "y")
        if len(targets) != len(examples):
            raise ConfigError(f"{len(examples)} examples in X and {len(targets)} targets in y")
        for first in range(0, len(examples), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            yield examples[part], targets[part]


def _tensor(values: Any, dtype: str, shape: tuple[int, ...], what: str) -> Tensor:
    """Values as the run's data have them; (n, *shape)."""
    found = np.asarray(values)
    if found.shape[1:] != shape or not len(found):
        raise ConfigError(
            f"{what} has shape {found.shape}; (n, {', '.join(map(str, shape))}) is needed, as in "
            "the data that the network was trained on"
        )
    if not np.can_cast(found.dtype, dtype, "same_kind"):
        raise ConfigError(f"{what} is {found.dtype}; {dtype} is needed, as in training")
    return torch.from_numpy(np.ascontiguousarray(found, dtype))
