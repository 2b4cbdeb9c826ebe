"""What `pipeline.fit` gives: a trained network, and how it was trained."""

from __future__ import annotations

import copy
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.api.arguments import as_argument
from pipeline.api.caller import settings_kept
from pipeline.api.plain import plain_network
from pipeline.data.own_data import examples_to_test
from pipeline.errors import ConfigError, worded
from pipeline.learning.block_file import decode_block
from pipeline.system.given import Given, objects_given
from pipeline.trained.evaluation import evaluate
from pipeline.trained.network import TrainedNetwork
from pipeline.trained.run_folder import checkpoint_at, open_run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from launch.job import Job
    from pipeline.data.facts import DataFacts
    from pipeline.storage.checkpoint import RunState


class FittedRun:
    """A trained network, and how it was trained.

    What takes examples takes them as they are in the data, and normalises them as the run did.

    Legend of shapes: n examples, each of the shape that the data have.
    """

    path: Path
    """The run's folder. Where `fit` was given none, it is removed with this object."""
    history: list[dict[str, Any]]
    """A row for each epoch, that of `metrics.jsonl`, and, under `runtime.eval_before_training`, one
    of epoch 0 before: `epoch`, `step`, `lr`; `train` and `test`
    with `loss`, `error_pct`, `cross_entropy` and `similarity` of the output, and `depths` under
    `runtime.eval_depths`; `blocks` with these of each block in training; `time`, `images_per_s`,
    `seconds`, `stages` (docs/running.md)."""

    def __init__(
        self, job: Job, state: RunState, facts: DataFacts, path: Path, lines: bytes, given: Given
    ) -> None:
        self.path = path
        self.history = [json.loads(line) for line in lines.splitlines()]
        # of the user's objects only what makes the network again, as it is now
        given = Given(copy.deepcopy(given.network), given.rule)
        files = {block: bytes(data) for block, data in state.files.items()}
        self._trained = TrainedNetwork(job.config, job.specs, facts, files, given)

    def __repr__(self) -> str:
        epochs = sum(row["epoch"] > 0 for row in self.history)
        return f"<FittedRun: {epochs} epoch{'s' * (epochs != 1)}, in {self.path}>"

    @cached_property
    def model(self) -> nn.Module:
        """The trained network as a plain module, without heads, in evaluation mode and on the CPU:
        a copy of the user's own, or one of torch's own layers. It takes what the first block took:
        normalised examples."""
        return self._plain(self._trained.states())

    @property
    def best(self) -> nn.Module:
        """As `model`, with the weights that had the lowest tested error, or loss where nothing is
        predicted; read from the run's folder.

        Raises:
            ConfigError: where the run has kept none, or its folder is gone.
            CheckpointError: where it is damaged.
        """
        with worded(as_argument), open_run(self.path) as folder:
            files = checkpoint_at(folder, "best").read()
        return self._plain({block: decode_block(data) for block, data in files.items()})

    def _plain(self, states: Mapping[int, Mapping[str, Tensor]]) -> nn.Module:
        trained = self._trained
        assert trained.given is not None
        with settings_kept(), objects_given(trained.given):
            return plain_network(trained.config, trained.specs, states)

    def predict(self, x: Any) -> NDArray[Any]:
        """(n,) the most likely class of each example, by the last block; (n, …) where there are
        several targets for each; where targets are numbers, these: (n, …) float32.

        Raises:
            ConfigError: where x does not hold such examples, or nothing is predicted.
        """
        scores = self.scores_by_depth(x)[-1]
        if scores is None:
            raise ConfigError(
                f"predict: by loss.rule {self._trained.config.loss.rule} the last block has no "
                "scores"
            )
        facts = self._trained.facts
        if not facts.classes:
            return scores.reshape(len(scores), *facts.target_shape)
        return np.asarray(scores.argmax(axis=1), np.int64)

    def scores_by_depth(self, x: Any) -> list[NDArray[np.float32] | None]:
        """What each block predicts, by its rule or its local classifier; the last one is what the
        network predicts. (n, classes) for each, None for blocks that predict nothing.

        Raises:
            ConfigError: where x does not hold such examples.
        """
        with settings_kept():
            found = self._trained.scores(x)
        return [None if scores is None else scores.numpy() for scores in found]

    def evaluate(self, data: Any) -> dict[str, float | None]:
        """`loss` and `error_pct` of the last block, as the run's own tests have them (under
        `data_parallel` a rule that draws in tests draws otherwise there); `error_pct` is None where
        nothing is predicted.

        Args:
            data: (X, y) of arrays or tensors, or a map-style Dataset.

        Raises:
            ConfigError: where these are no such examples.
        """
        trained = self._trained
        given = examples_to_test(data, trained.facts.classes)
        with settings_kept():
            found = evaluate(trained, trained.parts(given.x, given.y))
        return {"loss": found.loss, "error_pct": found.error_pct}

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be made of the rest."""
        return {key: value for key, value in vars(self).items() if key != "model"}
