"""Reports of a stage: its counters, usage and state, as plain numbers.

Shared by the learning half (which makes them) and the message half (which carries them).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from math import isfinite, isqrt
from typing import TYPE_CHECKING

from pipeline.errors import ProtocolError
from pipeline.schedule.items import Item

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DOINGS = ("idle", "input", "copy", "compute", "room", "send", "learn", "read", "report")
"""What a thread may be doing: waiting for `input`, for `room` at the next stage, for a `report`;
`compute`: up to what is sent, `learn`: after that; the feed's `read`s batches."""
MOST_SPANS = 1 << 15
"""Of one timeline."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over one pass for one block.

    `images`: how many predictions were asked for, one an image where each has one target.
    `errors` is None where the block makes no prediction, as by `sim`. The sums of L_pred and L_sim,
    not weighted, are None where the loss has no such part; not a number where a part of the pass
    was counted without them, by an earlier version.
    """

    block: int
    images: int
    loss_sum: float
    errors: int | None
    cross_entropy_sum: float | None = None
    similarity_sum: float | None = None

    @property
    def loss(self) -> float | None:
        """Mean loss of a prediction, None before the first."""
        return self._mean(self.loss_sum)

    @property
    def cross_entropy(self) -> float | None:
        """Mean L_pred, None where there is none, or before the first prediction."""
        return self._mean(self.cross_entropy_sum)

    @property
    def similarity(self) -> float | None:
        """Mean L_sim, as `cross_entropy`."""
        return self._mean(self.similarity_sum)

    def _mean(self, total: float | None) -> float | None:
        return None if total is None or not self.images else total / self.images

    @property
    def error_pct(self) -> float | None:
        """Wrong predictions in percent, None where nothing is predicted or counted."""
        if self.errors is None or not self.images:
            return None
        return 100.0 * self.errors / self.images


def summed(tallies: Iterable[Tally]) -> list[Tally]:
    """One for each block: those of several members of a team are added up, in their order."""
    by_block: dict[int, Tally] = {}
    for tally in tallies:
        before = by_block.get(tally.block)
        by_block[tally.block] = tally if before is None else _sum(before, tally)
    return list(by_block.values())


def _sum(one: Tally, other: Tally) -> Tally:
    errors = _both(one.errors, other.errors)
    return Tally(
        one.block,
        one.images + other.images,
        one.loss_sum + other.loss_sum,
        None if errors is None else int(errors),
        _both(one.cross_entropy_sum, other.cross_entropy_sum),
        _both(one.similarity_sum, other.similarity_sum),
    )


def _both(one: float | None, other: float | None) -> float | None:
    """None counts for nothing beside a number."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


def digest_of(files: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of all block files of a stage, one after the other."""
    digest = sha256()
    for file in files:
        digest.update(file)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of a tensor of a block, by its name in the block's file: equal ones mean equal bits."""

    block: int
    tensor: str
    digest: str


@dataclass(frozen=True, slots=True)
class Usage:
    """A stage's wall-clock seconds in one pass, those not spent waiting, and its peak memory."""

    wall_s: float
    busy_s: float
    peak_memory_bytes: int

    @property
    def busy(self) -> float:
        """Share of the time in which the stage was not waiting for a neighbour."""
        return min(1.0, max(0.0, self.busy_s / self.wall_s)) if self.wall_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one stage answers to the end of a pass: `train` or `evaluation` of `epoch`.

    `confusion`: of an evaluation, how many of each class were taken for each, row by row; empty
    where the stage predicts none, or too many.
    """

    stage: int
    epoch: int
    training: bool
    tallies: tuple[Tally, ...]
    usage: Usage
    confusion: tuple[int, ...] = ()


def rows_of(confusion: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """A square table by rows, of its numbers one after another."""
    classes = isqrt(len(confusion))
    return tuple(tuple(confusion[row * classes : (row + 1) * classes]) for row in range(classes))


@dataclass(frozen=True, slots=True)
class StageState:
    """A stage's state after `step`, without its block files, which go beside it, one a block.

    `tallies` are the counters of the epoch that was under way, so that a resumed run reports
    the whole epoch; they are no part of the block files. `digest`: of all block files, from a
    member of a team that is not the first: its files stay where they are.
    """

    step: int
    epoch: int
    epoch_reported: bool
    blocks: tuple[int, ...]
    tallies: tuple[Tally, ...]
    digest: str = ""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The monotonic and the wall clock of a process, read at the same time. `identity`: equal for
    processes that have one monotonic clock."""

    identity: str
    monotonic_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """What one thread did. Its i-th span began at `began_s[i]`, with `DOINGS[what[i]]`, for
    `items[item[i]]`, and lasted until the next one began, the last until `ended_s`.

    All times are seconds of its monotonic clock. Where a device computes, it came to the beginning
    of span `device_at[j]` at `device_s[j]`. `is_full`: more was to be recorded.
    """

    items: tuple[Item, ...]
    began_s: tuple[float, ...]
    what: tuple[int, ...]
    item: tuple[int, ...]
    ended_s: float
    clock: ClockReading
    device_at: tuple[int, ...] = ()
    device_s: tuple[float, ...] = ()
    is_full: bool = False

    def __post_init__(self) -> None:
        spans = len(self.began_s)
        if spans > MOST_SPANS or {len(self.what), len(self.item)} != {spans}:
            raise ProtocolError(
                f"timeline of {spans}, {len(self.what)}, {len(self.item)} spans: at most "
                f"{MOST_SPANS}, and as many of each"
            )
        if len(self.device_at) != len(self.device_s):
            raise ProtocolError(
                f"timeline with {len(self.device_at)} marks of a device at {len(self.device_s)} "
                "times"
            )
        if not all(0 <= code < len(DOINGS) for code in self.what):
            raise ProtocolError("timeline of something that nobody does")
        if not all(0 <= item < len(self.items) for item in self.item):
            raise ProtocolError(f"timeline of items that are not among its {len(self.items)}")
        readings = (self.clock.monotonic_s, self.clock.wall_s)
        for times in ((*self.began_s, self.ended_s), self.device_s, readings):
            if not all(map(isfinite, times)):
                raise ProtocolError("timeline with a time that is no number")
        if any(after < before for before, after in pairwise((*self.began_s, self.ended_s))):
            raise ProtocolError("timeline that goes back in time")
