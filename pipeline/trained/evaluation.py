"""What a trained network gets right: loss and error, which classes it confuses; by depth, of
ensembles of depths, and of examples that leave at the first block that is sure enough.

Every block of a network that learns locally may predict by itself: a block whose classifier is sure
makes those after it unnecessary, and the blocks' predictions can be put together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F

from pipeline.errors import ConfigError
from pipeline.learning.counters import Confusion
from pipeline.schedule.reports import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from pipeline.trained.network import TrainedNetwork

Watch: TypeAlias = "Callable[[Tensor, Tensor, Sequence[Tensor | None]], None]"
_MOST_CLASSES = 1000
"""With more, confusions are not counted: a million numbers are nothing to look at."""


@dataclass(frozen=True, slots=True)
class Depth:
    """What one block predicts, in percent of all predictions: errors of its own; of the mean of
    log-probabilities up to it; and of exits, how many leave here, and how many of these (in percent
    of them; None: none leaves) are wrong."""

    block: int
    error_pct: float
    ensemble_error_pct: float
    exit_pct: float | None = None
    exit_error_pct: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Of so many examples: loss and error as the run's own tests have them, None where nothing is
    predicted. `confusion`: how many of each class (rows) were taken for each (columns), empty where
    it was not asked for, or for more than 1000 classes. `exits_error_pct`: of all exits together.
    """

    examples: int
    loss: float | None
    error_pct: float | None
    confusion: tuple[tuple[int, ...], ...] = ()
    depths: tuple[Depth, ...] = ()
    exits_error_pct: float | None = None

    @property
    def recall(self) -> list[float | None]:
        """Of each class: the share of its examples that were found; None where there is none."""
        return [_share(row[k], sum(row)) for k, row in enumerate(self.confusion)]

    @property
    def precision(self) -> list[float | None]:
        """Of each class: the share of what was taken for it that is; None where nothing was."""
        columns = zip(*self.confusion, strict=True)
        return [_share(column[k], sum(column)) for k, column in enumerate(columns)]


def evaluate(
    network: TrainedNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    confusion: bool = False,
    by_depth: bool = False,
    exit_at: float | None = None,
    watch: Watch | None = None,
) -> Evaluation:
    """Evaluate a network on batches of examples (n, …) and targets (n, …) as the run's data are.

    Args:
        by_depth: what each block predicts; exit_at: the probability, from 0 to 1, of its most
            likely class at which a block is sure enough, with `by_depth`; watch: is called
            with the examples and classes of each batch, and what each block predicts of them.

    Raises:
        ConfigError: for exits where an example has several targets, or none that is a class.
    """
    facts, stage = network.facts, network.stage
    if exit_at is not None and (facts.target_shape or not facts.classes):
        raise ConfigError("exits need one class for each example")
    counts = _Counts(facts.classes, exit_at)
    looks = (confusion or by_depth or watch is not None) and bool(facts.classes)
    examples = 0
    stage.evaluation.reset()
    for batch_id, (x, y) in enumerate(batches, 1):  # as in the run's tests
        examples += len(x)
        stage.evaluate(x, y, send=lambda *sent: None, batch_id=batch_id)
        if looks:
            scores = stage.scores(x, y, batch_id)
            counts.add(scores, y)
            if watch is not None:
                watch(x, y, scores)
    tally = stage.evaluation.read()[-1]
    return Evaluation(
        examples,
        tally.loss,
        tally.error_pct,
        counts.table() if confusion else (),
        counts.depths() if by_depth else (),
        counts.exits_error_pct if by_depth else None,
    )


class _Counts:
    """What is counted of the scores of all blocks, prediction by prediction."""

    def __init__(self, classes: int, exit_at: float | None) -> None:
        self._classes, self._exit_at = classes, exit_at
        self._n = 0
        self._confusion = Confusion(torch.device("cpu"))
        self._by_block: dict[int, list[int]] = {}
        """Wrong ones; of the ensemble; exits, and how many of these are wrong."""

    def add(self, scores: Sequence[Tensor | None], y: Tensor) -> None:
        """Take the scores (n, classes, …) of each block, and the classes (n, …)."""
        predicting = [block for block, found in enumerate(scores) if found is not None]
        together, here = torch.zeros(1), torch.ones_like(y, dtype=torch.bool)
        self._n += y.numel()
        for block in predicting:
            found = scores[block]
            assert found is not None
            log_p = F.log_softmax(found.float(), dim=1)
            together = together + log_p
            wrong = found.argmax(dim=1) != y
            counted = [wrong.sum(), (together.argmax(dim=1) != y).sum()]
            if self._exit_at is not None:
                sure = log_p.amax(dim=1).exp() >= self._exit_at
                leaves = here if block == predicting[-1] else here & sure
                counted += [leaves.sum(), (leaves & wrong).sum()]
                here = here & ~leaves
            before = self._by_block.setdefault(block, [0] * len(counted))
            self._by_block[block] = [
                old + int(new) for old, new in zip(before, counted, strict=True)
            ]
        if predicting and self._classes <= _MOST_CLASSES:
            last = scores[predicting[-1]]
            assert last is not None
            self._confusion.add(last.argmax(dim=1), y, self._classes)

    def table(self) -> tuple[tuple[int, ...], ...]:
        """Rows: classes; columns: what they were taken for."""
        return rows_of(self._confusion.read())

    def depths(self) -> tuple[Depth, ...]:
        """Of each block that predicts."""
        return tuple(self._depth(block, *counted) for block, counted in self._by_block.items())

    def _depth(
        self, block: int, wrong: int, together: int, leave: int | None = None, wrong_of: int = 0
    ) -> Depth:
        errors = 100 * wrong / self._n, 100 * together / self._n
        if leave is None:
            return Depth(block, *errors)
        return Depth(
            block, *errors, 100 * leave / self._n, 100 * wrong_of / leave if leave else None
        )

    @property
    def exits_error_pct(self) -> float | None:
        """Of all exits, in percent."""
        if self._exit_at is None or not self._n:
            return None
        return 100 * sum(counted[3] for counted in self._by_block.values()) / self._n


def _share(part: int, of: int) -> float | None:
    return part / of if of else None
