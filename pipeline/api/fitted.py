"""What `pipeline.fit` gives: a trained network, and how it was trained."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from pipeline.api.plain import built_in, trained_parts
from pipeline.learning.block_file import decode_block
from pipeline.learning.build import build_preprocess
from pipeline.network.user_network import made_network, parts_of
from pipeline.system.given import Given, objects_given

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from launch.job import Job
    from pipeline.data.facts import DataFacts
    from pipeline.storage.checkpoint import RunState

_AT_ONCE = 1024
"""Examples that go through a network together."""


class FittedRun:
    """A trained network.

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
        self._given, self._facts = given, facts
        self._files = {block: bytes(data) for block, data in state.files.items()}

    @cached_property
    def model(self) -> nn.Module:
        """The trained network as a plain module, without heads, in evaluation mode and on the CPU:
        a copy of the user's own, or one of torch's own layers. It takes what the network took in
        training: examples that are normalised, as `predict` does."""
        states = {block: decode_block(data) for block, data in self._files.items()}
        if self._config.model.factory is None:
            return built_in(self._specs, states)
        with objects_given(self._given):
            network = made_network(self._config.model, self._config.runtime.seed)
        trained_parts(parts_of(network, has_output=self._specs[-1].is_output), states)
        return network.train(False)

    @torch.no_grad()
    def logits(self, x: Any) -> Tensor:
        """(n, classes) float32: what the output layer gives for raw examples, which are normalised
        here as in the run."""
        return torch.cat([self.model(part) for part in self._prepared(x)])

    def predict(self, x: Any) -> NDArray[np.int64]:
        """(n,) the most likely class of each example, which is normalised here as in the run.

        Args:
            x: (n, …) an array or tensor, of examples as the training data have them.
        """
        found: NDArray[np.int64] = self.logits(x).argmax(1).numpy()
        return found

    def remove_with_it(self) -> None:
        """The folder goes when this object does."""
        weakref.finalize(self, _remove, str(self.path), os.getpid())

    def _prepared(self, x: Any) -> Iterator[Tensor]:
        preprocess = build_preprocess(self._config, self._facts, torch.device("cpu"))
        examples = torch.as_tensor(x)
        for first in range(0, len(examples), _AT_ONCE):
            yield preprocess.evaluate(examples[first : first + _AT_ONCE])


def _remove(path: str, process: int) -> None:
    """In the process that made it: one that it forked has the object, too."""
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)
