"""Which examples, and in which order, where classes matter: batches of few classes, and shares.

Section 4.5 of the paper: with many classes, the similarities within a batch say more where each
class comes several times. So a batch begins with a few random examples and is filled up with
others of their classes. Which others, and where the examples it begins with come from, differs:

    drawn   both at random from all that are unused: batches are alike throughout the epoch
    scan    as the authors' code has it: one shuffled list, from whose head each batch takes its
            first examples, then the next of their classes. What is passed over waits at the head
            and begins the next batch: fewer classes come together, and hardly one of them again
            in the next batch
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config.data import LEAST_SCANNED
from pipeline.seeding import Purpose, generator

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from pipeline.config.data import ClassOrder

_LOOKED_AT = 10
"""Examples that it passes over for that at most, as a multiple of those it begins with."""
_SIGHT = 16
"""Examples looked at first for each that is wanted: about what 13 of 100 classes take."""


@dataclass(frozen=True, slots=True)
class ClassLimit:
    """About how many classes a batch holds, until which epoch (None: in all of them), and how
    such batches are put together."""

    classes: int
    until_epoch: int | None = None
    order: ClassOrder = "drawn"

    def holds_in(self, epoch: int) -> bool:
        """Whether the batches of `epoch` (from 1) are limited."""
        return self.until_epoch is None or epoch <= self.until_epoch

    def ordered(
        self, labels: NDArray[np.int64], batch_size: int, draws: Generator
    ) -> NDArray[np.int64]:
        """All examples, each once, batch after batch: (N,) indices for labels (N,)."""
        put_together = scanned_order if self.order == "scan" else class_limited_order
        return put_together(labels, batch_size, self.classes, draws)


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
        taken: list[NDArray[np.int64]] = []
        places, first = len(batch), classes
        while places > 0:
            counts = _counts(unused.left, places, first, draws)
            taken += unused.take(counts)
            places, first = places - int(counts.sum()), 1
        batch[:] = draws.permutation(np.concatenate(taken))
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


def _counts(
    left: NDArray[np.int64], places: int, first: int, draws: Generator
) -> NDArray[np.int64]:
    """How many examples of each class: `first` random ones, then others of their classes."""
    started = draws.multivariate_hypergeometric(left, min(first, places))
    others = np.where(started > 0, left - started, 0)
    filling = min(places - int(started.sum()), int(others.sum()))
    counts: NDArray[np.int64] = started + draws.multivariate_hypergeometric(others, filling)
    return counts


def scanned_order(
    labels: NDArray[np.int64], batch_size: int, classes: int, draws: Generator
) -> NDArray[np.int64]:
    """The order of the authors' code: batches taken from a shuffled list by scanning its head.

    A batch takes the first `classes` examples of the list and, while they are of fewer than
    `LEAST_SCANNED` classes, the first of other classes near the head; then the next ones of its
    classes. Where these run out, at the end of an epoch, the head fills it.

    Args and returns: as `class_limited_order`.
    """
    line = draws.permutation(len(labels)).astype(np.int64)
    for start in range(0, len(line), batch_size):
        waiting = line[start:]
        chosen = _scanned(labels, waiting, min(batch_size, len(waiting)), classes)
        reach = chosen[-1] + 1  # beyond it nothing moves
        passed_over = np.delete(waiting[:reach], chosen)
        waiting[:reach] = np.concatenate([waiting[chosen], passed_over])
    return line


def _scanned(
    labels: NDArray[np.int64], waiting: NDArray[np.int64], places: int, first: int
) -> NDArray[np.int64]:
    """Places in the list of the examples of the next batch, in order: (places,)."""
    wanted = np.zeros(labels.max() + 1, dtype=np.bool_)
    wanted[labels[waiting[:first]]] = True
    others = _of_other_classes(labels[waiting[: places + _LOOKED_AT * first]], wanted, first)
    others = others[: max(0, places - first)]
    wanted[labels[waiting[others]]] = True
    alike = _alike(labels, waiting, wanted, places + len(others))
    chosen = np.union1d(others, np.setdiff1d(alike, others)[: places - len(others)])
    head = np.arange(min(len(waiting), 2 * places))
    filling = np.setdiff1d(head, chosen)[: places - len(chosen)]
    return np.union1d(chosen, filling)


def _of_other_classes(
    classes: NDArray[np.int64], present: NDArray[np.bool_], first: int
) -> NDArray[np.int64]:
    """Places of the first examples of further classes, until `LEAST_SCANNED` are together or
    `_LOOKED_AT` times `first` examples were passed over."""
    together = set(np.flatnonzero(present).tolist())
    found: list[int] = []
    for place, label in enumerate(classes[first:].tolist(), first):
        passed_over = place - first - len(found)
        if len(together) >= LEAST_SCANNED or passed_over >= _LOOKED_AT * first:
            break
        if label not in together:
            together.add(label)
            found.append(place)
    return np.array(found, dtype=np.int64)


def _alike(
    labels: NDArray[np.int64], waiting: NDArray[np.int64], wanted: NDArray[np.bool_], count: int
) -> NDArray[np.int64]:
    """Places of the first `count` examples of the wanted classes; fewer where no more wait."""
    sight = _SIGHT * count
    while True:
        found = np.flatnonzero(wanted[labels[waiting[:sight]]])
        if len(found) >= count or sight >= len(waiting):
            return found[:count]
        sight *= 2


def share_of_every_class(
    labels: NDArray[np.int64], limit: int, classes: int, seed: int = 0
) -> NDArray[np.int64]:
    """Indices, in order, of `limit` examples: of each class in proportion to what it has.

    A class has at least one wherever `limit` allows it. The draws belong to the labels, the limit
    and `seed` (not the run's: runs of other seeds are then compared on the same examples) alone.
    """
    counts = np.bincount(labels, minlength=classes)
    of_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    draws = generator(seed, Purpose.SHARE)
    quotas = _quotas(counts, limit)
    chosen = [draws.permutation(all_)[:n] for all_, n in zip(of_class, quotas, strict=True)]
    every: NDArray[np.int64] = np.sort(np.concatenate(chosen))
    return every


def _quotas(counts: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """How many of each class: shares rounded down, at least 1; then the largest remainders."""
    exact = counts * (limit / counts.sum())
    quotas: NDArray[np.int64] = np.minimum(counts, np.maximum(1, np.floor(exact).astype(np.int64)))
    by_remainder = np.argsort(quotas - exact, kind="stable")
    while quotas.sum() < limit:
        short = by_remainder[(quotas < counts)[by_remainder]][: limit - quotas.sum()]
        quotas[short] += 1
    while quotas.sum() > limit:  # the ones that were rounded up to 1: the largest classes give
        quotas[np.argmax(quotas)] -= 1
    return quotas
