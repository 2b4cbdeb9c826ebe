"""What travels downstream, in order: batches and markers, without their tensors.

These types are shared by the learning half (which obeys them) and the message half (which
carries them); they import neither. A marker carries no tensors and keeps its place between
batches, so whatever it asks for happens exactly after the batch before it (invariant 5).

A training batch's id is its step, counted from 1 over the whole run: it keys the random numbers
and it is the unit of progress. Evaluation batches count from 1 within their pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """One step. The learning rate travels with the batch: no schedule change can race it."""

    batch_id: int
    epoch: int
    lr: float
    learner: int | None = None
    """In greedy training: the block whose loss is learned from; those before are frozen."""
    index: int = 0
    """Within its epoch, from 0."""
    follow: int = 0
    """Training batches that follow in its epoch."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A batch's place in a round of batches that are learned from by one step, and how many these
    are: in an epoch's last round perhaps fewer. `first`: the id of its first batch."""

    place: int
    size: int
    first: int


def turn_of(batch: TrainBatch, rounds: int) -> Turn:
    """In rounds of so many batches, which begin anew with each epoch."""
    place = batch.index % rounds
    return Turn(place, min(rounds, place + 1 + batch.follow), batch.batch_id - place)


@dataclass(frozen=True, slots=True)
class EvaluationBatch:
    """Counted, never learned from: no update, no batch statistics. What a rule draws belongs to the
    seed and `batch_id`, so that every test draws the same."""

    batch_id: int
    epoch: int
    learner: int | None = None
    """In greedy training: the block whose loss is counted; None: the output block."""


@dataclass(frozen=True, slots=True)
class PassedBatch:
    """Training step `batch_id` is not for you: in greedy training it was done further up, or it
    is left out altogether. It carries no tensors; it keeps the count."""

    batch_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class StartEvaluation:
    """The evaluation batches of `epoch` follow (epoch 0: before the first step)."""

    epoch: int


@dataclass(frozen=True, slots=True)
class EndEvaluation:
    """Report what the evaluation batches of `epoch` gave."""

    epoch: int


@dataclass(frozen=True, slots=True)
class EndEpoch:
    """Report what the training batches of `epoch` gave."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copy your state as it is now: after training step `step`.

    `epoch_reported` says whether `epoch`, to which the step belongs, has been reported and
    evaluated in full; a resumed run does that first where it has not.
    """

    step: int
    epoch: int
    epoch_reported: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What a member of a team found of a batch for a group of blocks, named by its last: goes to
    every other member, and is no part of the feed.

    `at`: 0 for what is added up once the group has computed; counted from 1 for what members see of
    each other while it computes.
    """

    batch_id: int
    block: int
    at: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """The end of the run: nothing follows."""


Batch: TypeAlias = TrainBatch | EvaluationBatch
Marker: TypeAlias = PassedBatch | StartEvaluation | EndEvaluation | EndEpoch | Snapshot | Stop
Item: TypeAlias = Batch | Marker | Found
