"""Reports of a stage: its counters, usage and state, as plain numbers.

Shared by the learning half (which makes them) and the message half (which carries them).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over one pass for one block.

    `images`: how many predictions were asked for, one an image where each has one target.
    `errors` is None where the block makes no prediction, as by `sim`.
    """

    block: int
    images: int
    loss_sum: float
    errors: int | None

    @property
    def loss(self) -> float | None:
        """Mean loss of a prediction, None before the first."""
        return self.loss_sum / self.images if self.images else None

    @property
    def error_pct(self) -> float | None:
        """Wrong predictions in percent, None where nothing is predicted or counted."""
        if self.errors is None or not self.images:
            return None
        return 100.0 * self.errors / self.images


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
    """What one stage answers to the end of a pass: `train` or `evaluation` of `epoch`."""

    stage: int
    epoch: int
    training: bool
    tallies: tuple[Tally, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class StageState:
    """A stage's state after `step`, without its block files, which go beside it, one a block.

    `tallies` are the counters of the epoch that was under way, so that a resumed run reports
    the whole epoch; they are no part of the block files.
    """

    step: int
    epoch: int
    epoch_reported: bool
    blocks: tuple[int, ...]
    tallies: tuple[Tally, ...]
