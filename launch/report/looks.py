"""What a run's network does on examples: evaluated, asked how alike it finds them, its filters.

What can't be looked at is a sentence that says why, in place of what would be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from launch.read_run import examples_at, own_examples, read_run
from pipeline.errors import ConfigError, RunError
from pipeline.trained.evaluation import evaluate
from pipeline.trained.network import AnotherNetworkError
from pipeline.trained.similarity import similarities

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from launch.read_run import TrainedRun
    from pipeline.data.facts import DataFacts
    from pipeline.data.image_folder import Progress
    from pipeline.trained.evaluation import Evaluation
    from pipeline.trained.similarity import Similarities

_CLASSES, _OF_EACH = 10, 10
"""Of the batch whose similarities are shown."""
_WORST = 24


@dataclass(frozen=True, slots=True)
class Wrong:
    """An example that was taken for another class: (C, H, W) as in the data."""

    image: NDArray[np.generic]
    label: int
    taken_for: int
    probability: float
    """Of the wrong class."""
    of_label: float
    """Of the right one."""


@dataclass(frozen=True, slots=True)
class Looks:
    """At one run. `trained`, `blocks`: the network, and the names of its blocks."""

    trained: TrainedRun | str
    evaluation: Evaluation | str
    worst: tuple[Wrong, ...] | str
    similar: Similarities | str
    examples: str = ""
    """Which were looked at, in words."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """What they are called; none where the network can't be read."""
        if isinstance(self.trained, str):
            return ()
        return tuple(spec.name for spec in self.trained.network.specs)


def look(
    path: Path,
    checkpoint: str,
    data: Path | None,
    exit_at: float,
    most: int | None,
    show: Progress = lambda what, done, of: None,
) -> Looks:
    """Look at a run.

    Args:
        data: other examples than the run's own test set; exit_at: as for `evaluate`;
        most: so many examples at most; show: is told with how many of them is done what.

    Raises:
        ConfigError: where `data` can't be read, or the checkpoint is of another network.
        CheckpointError: where the checkpoint is damaged.
    """
    try:
        trained = read_run(path, checkpoint)
    except AnotherNetworkError:
        raise
    except ConfigError as error:
        why = f"The network can't be read here: {error}."
        return Looks(why, why, why, why)
    network, facts = trained.network, trained.network.facts
    one_class = bool(facts.classes) and not facts.target_shape
    worst, fixed = _Worst(facts), _FixedBatch()
    try:
        if data is None:
            where, given = own_examples(trained, show)
        else:
            where, given = str(data), examples_at(data, trained, show)
        batches = _at_most(most, given)
        found = evaluate(
            network,
            fixed.seen(batches) if one_class else batches,
            confusion=True,
            by_depth=True,
            exit_at=exit_at if one_class else None,
            watch=worst.see if one_class else None,
        )
    except (ConfigError, RunError) as error:
        if data is not None:
            raise
        why = f"The run's examples can't be had here: {error}."
        return Looks(trained, why, why, why)
    return Looks(trained, found, _worst(worst, facts, found), _similar(trained, fixed), where)


def _at_most(
    most: int | None, batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `most` examples; None: all."""
    for x, y in batches:
        if most is None:
            yield x, y
            continue
        yield x[:most], y[:most]
        most -= len(x)
        if most <= 0:
            return


def _similar(trained: TrainedRun, fixed: _FixedBatch) -> Similarities | str:
    if not trained.network.facts.classes:
        return "Targets are numbers here: which examples belong together is not known."
    if trained.network.facts.target_shape:
        return "Each example has several targets here: which belong together is not known."
    if fixed.n < 2:
        return "There are too few examples to compare."
    return similarities(trained.network, *fixed.batch)


def _worst(worst: _Worst, facts: DataFacts, found: Evaluation) -> tuple[Wrong, ...] | str:
    if not facts.classes:
        return "Targets are numbers here: there are no classes to confuse."
    if facts.target_shape:
        return "Each example has several targets here, and no picture of its own."
    if found.error_pct is None:
        return "This network predicts nothing by its last block."
    if not worst.are_images:
        shape = ", ".join(map(str, facts.shape))
        return f"Examples of shape ({shape}) are no images, and can't be shown."
    return tuple(worst.found)


class _FixedBatch:
    """The first examples of each of the first classes, in the order of classes."""

    def __init__(self) -> None:
        self._found: dict[int, list[Tensor]] = {}

    def seen(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, as they are; what is needed of them is kept."""
        for x, y in batches:
            for label in range(_CLASSES):
                kept = self._found.setdefault(label, [])
                if len(kept) < _OF_EACH:
                    kept += x[y == label][: _OF_EACH - len(kept)].unbind()
            yield x, y

    @property
    def n(self) -> int:
        """How many there are."""
        return sum(map(len, self._found.values()))

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        """(n, …) and their classes (n,)."""
        labels = [label for label, kept in self._found.items() for _ in kept]
        x = torch.stack([example for kept in self._found.values() for example in kept])
        return x, torch.tensor(labels)


class _Worst:
    """The examples that the last block that predicts is surest of and wrong about."""

    def __init__(self, facts: DataFacts) -> None:
        self.are_images = (
            len(facts.shape) == 3 and facts.shape[0] in (1, 3) and facts.dtype != "int64"
        )
        self.found: list[Wrong] = []

    def see(self, x: Tensor, y: Tensor, scores: Sequence[Tensor | None]) -> None:
        """Take a batch and what each block predicts of it."""
        last = next((found for found in reversed(scores) if found is not None), None)
        if last is None or not self.are_images:
            return
        p = last.float().softmax(dim=1)
        surest, taken_for = p.max(dim=1)
        margins = torch.where(taken_for != y, surest - p.gather(1, y[:, None])[:, 0], -1.0)
        for k in margins.argsort(descending=True, stable=True)[:_WORST].tolist():
            if margins[k] < 0:
                break
            label, other = int(y[k]), int(taken_for[k])
            image = x[k].numpy()
            self.found.append(Wrong(image, label, other, float(p[k, other]), float(p[k, label])))
        self.found.sort(key=lambda wrong: wrong.of_label - wrong.probability)
        del self.found[_WORST:]
