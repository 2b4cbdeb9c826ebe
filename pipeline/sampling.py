"""The order of a training set in an epoch whose batches hold only a few classes each.

Section 4.5 of the paper: with many classes, the similarities within a batch say more where each
class comes several times. So a batch begins with a few random examples and is filled up with
others of their classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ClassLimit:
    """About how many classes a batch holds, and until which epoch (None: in all of them)."""

    classes: int
    until_epoch: int | None = None

    def holds_in(self, epoch: int) -> bool:
        """Whether the batches of `epoch` (from 1) are limited."""
        return self.until_epoch is None or epoch <= self.until_epoch


def class_limited_order(
    labels: NDArray[np.int64], batch_size: int, classes: int, draws: Generator
) -> NDArray[np.int64]:
    """All examples in random order, each once, with few classes in each batch.

    A batch begins with `classes` random ones of the examples not yet used, which may share
    classes; unused examples of these classes, drawn at random, fill it. Where these run out, as
    they do in the last few batches, one more random example joins with others of its class, and
    so on: only such batches hold more classes than `classes`.

    Args:
        labels: (N,), from 0.
        batch_size: examples per batch; the last batch holds what is left.

    Returns:
        (N,) indices of the examples; batch b is `[b * batch_size : (b + 1) * batch_size]`.
    """
    order = np.empty(len(labels), dtype=np.int64)
    unused = _Unused(labels, draws)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        batch[:] = draws.permutation(_next_batch(unused, len(batch), classes, draws))
    return order


class _Unused:
    """The examples not yet used, by class; those of a class in random order."""

    def __init__(self, labels: NDArray[np.int64], draws: Generator) -> None:
        shuffled = draws.permutation(len(labels))
        self._examples = shuffled[np.argsort(labels[shuffled], kind="stable")]
        self.left = np.bincount(labels)
        """(classes,): how many examples of each class."""
        self._ends = np.cumsum(self.left)

    def take(self, counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Use `counts` (classes,) examples of each class."""
        (present,) = np.nonzero(counts)
        starts = (self._ends - self.left)[present]
        self.left -= counts
        spans = zip(starts, counts[present], strict=True)
        return [self._examples[start : start + count] for start, count in spans]


def _next_batch(unused: _Unused, places: int, first: int, draws: Generator) -> NDArray[np.int64]:
    taken: list[NDArray[np.int64]] = []
    while places > 0:
        counts = _counts(unused.left, places, first, draws)
        taken += unused.take(counts)
        places -= int(counts.sum())
        first = 1
    return np.concatenate(taken)


def _counts(
    left: NDArray[np.int64], places: int, first: int, draws: Generator
) -> NDArray[np.int64]:
    """How many examples of each class: `first` random ones, then others of their classes."""
    started = draws.multivariate_hypergeometric(left, min(first, places))
    others = np.where(started > 0, left - started, 0)
    filling = min(places - int(started.sum()), int(others.sum()))
    counts: NDArray[np.int64] = started + draws.multivariate_hypergeometric(others, filling)
    return counts
