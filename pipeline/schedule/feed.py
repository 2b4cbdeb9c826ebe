"""The order of everything that travels downstream, as one sequence.

Single mode and the pipeline consume the same sequence, so they do the same things in the same
order by construction. For 2 epochs of 3 steps, tested with 2 batches after every epoch, a
snapshot at the end of each (t: training batch, E: end of epoch, ( ): evaluation, S: snapshot):

    t1 t2 t3 E1 (e1 e2) S3 | t4 t5 t6 E2 (e1 e2) S6 | Stop

With a snapshot every 2 steps: t1 t2 S2 t3 E1 (e1 e2) | t4 S4 t5 t6 E2 (e1 e2) S6 | Stop
With a patience of 1 epoch, 9 epochs end as these 2 do, where the second has no lower tested error:
what follows a test that may end the run is fed once it has been reported.

The learning rate of each step, for 4 epochs of 2 steps, in hundredths of `lr`:

    milestones [2], factor 0.5    100 100 | 100 100 |  50  50 |  50  50
    decay cosine                  100  96 |  85  69 |  50  31 |  15   4
    warm-up of 1 epoch             50 100 | 100 100 | 100 100 | 100 100
    warm-up, then cosine           50 100 | 100  93 |  75  50 |  25   7
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, lcm, pi, prod
from threading import Event
from typing import TYPE_CHECKING, Literal, TypeGuard

from pipeline.network.specs import in_runs
from pipeline.schedule.best import BestSoFar
from pipeline.schedule.items import (
    EndEpoch,
    EndEvaluation,
    EvaluationBatch,
    Item,
    PassedBatch,
    Snapshot,
    StartEvaluation,
    Stop,
    TrainBatch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.config.sections import Config
    from pipeline.errors import PipelineError
    from pipeline.network.specs import BlockSpec


_NO_TEST = BestSoFar()
_LOOKS_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Course:
    """What a run does, in steps: batches per epoch, learning rates, tests, snapshots."""

    epochs: int
    steps_per_epoch: int
    evaluation_batches: int
    lr: float
    milestones: tuple[int, ...] = ()
    """Epochs after which the rate drops."""
    factor: float = 0.25
    eval_every_epochs: int = 1
    eval_before_training: bool = False
    checkpoint_every_steps: int = 0
    predictions: int = 1
    """That an example asks for: what is counted of it, as the characters of a text."""
    learners: tuple[int, ...] = ()
    """In greedy training, the block that learns in each phase; empty: all learn at once."""
    last_step: int | None = None
    """End early, after this step, as a check of a few steps does."""
    decay: Literal["milestones", "cosine"] = "milestones"
    min_factor: float = 0.0
    warmup_epochs: int = 0
    tests_on: Literal["test", "validation"] = "test"
    """Which part of the data tests are on."""
    tests_every_depth: bool = False
    """Whether they say what each block predicts."""
    patience: int | None = None
    """Epochs without a lower tested error after which the run ends."""
    rounds: int = 1
    """A snapshot falls where a round of so many batches of an epoch is over."""

    @property
    def all_epochs(self) -> int:
        """Epochs of the whole run: greedy training takes `epochs` for each of its phases."""
        return self.epochs * max(1, len(self.learners))

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        steps = self.all_epochs * self.steps_per_epoch
        return steps if self.last_step is None else min(steps, self.last_step)

    def snapshot_after(self, step: int) -> int:
        """The first step from `step` (from 1) on after which a snapshot is taken."""
        every = self.checkpoint_every_steps or self.steps_per_epoch
        due = (step + every - 1) // every * every
        return min(self.steps, self.round_end(due))

    def round_end(self, step: int) -> int:
        """The last step of the round that step (from 1) belongs to."""
        before = (self.epoch_of(step) - 1) * self.steps_per_epoch
        within = -(-(step - before) // self.rounds) * self.rounds
        return min(self.steps, before + min(within, self.steps_per_epoch))

    def epoch_of(self, step: int) -> int:
        """The epoch (from 1) that step (from 1) belongs to; 0 before the first step."""
        return (step + self.steps_per_epoch - 1) // self.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """Of a step (from 1), drawn above: for each phase of greedy training the same again."""
        done = (max(step, 1) - 1) % (self.epochs * self.steps_per_epoch)
        warmup = self.warmup_epochs * self.steps_per_epoch
        rate = self.lr * self._decayed(done, warmup)
        return rate if done >= warmup else rate * ((done + 1) / warmup)

    def _decayed(self, done: int, warmup: int) -> float:
        """What is left of the rate after `done` steps, of which `warmup` don't count."""
        if self.decay == "cosine":
            share = max(0, done - warmup) / (self.epochs * self.steps_per_epoch - warmup)
            return self.min_factor + (1 - self.min_factor) * (1 + cos(pi * share)) / 2
        # a milestone m takes effect from epoch m + 1
        passed = sum(done // self.steps_per_epoch >= milestone for milestone in self.milestones)
        return self.factor**passed

    def learner(self, epoch: int) -> int | None:
        """The block that learns in an epoch of greedy training; None: all blocks."""
        return self.learners[(max(epoch, 1) - 1) // self.epochs] if self.learners else None

    def is_enough(self, best: BestSoFar) -> bool:
        """Whether the run ends with the test that was last, by its patience."""
        return self.patience is not None and best.epochs_since >= self.patience

    def evaluates(self, epoch: int) -> bool:
        """Whether `epoch` is followed by a test; the last one of a phase is, unless tests are
        off, or there is nothing to test on."""
        if not self.evaluation_batches:
            return False
        if epoch == 0:
            return self.eval_before_training
        every = self.eval_every_epochs
        return every > 0 and (epoch % every == 0 or epoch % self.epochs == 0)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run is: `step` steps done; was the epoch of that step reported and tested?"""

    step: int = 0
    epoch_reported: bool = True


def course_of(
    config: Config, specs: Sequence[BlockSpec], steps_per_epoch: int, evaluation_batches: int
) -> Course:
    """The course of a configured run of a network on its data."""
    groups = in_runs(specs, lambda spec: spec.same_group)
    return Course(
        epochs=config.schedule.epochs,
        steps_per_epoch=steps_per_epoch,
        evaluation_batches=evaluation_batches,
        lr=config.optimizer.lr,
        milestones=config.schedule.milestone_epochs,
        factor=config.schedule.factor,
        decay=config.schedule.decay,
        min_factor=config.schedule.min_factor,
        warmup_epochs=config.schedule.warmup_epochs,
        patience=config.schedule.patience,
        eval_every_epochs=config.runtime.eval_every_epochs,
        eval_before_training=config.runtime.eval_before_training,
        checkpoint_every_steps=config.runtime.checkpoint_every_steps,
        rounds=lcm(*config.parallel.replicas.values()),
        predictions=prod(specs[-1].target_shape) if specs[-1].classes else 1,
        learners=tuple(group[-1].index for group in groups if not group[-1].frozen)
        if config.schedule.greedy
        else (),
        tests_on="test" if config.data.validation is None else "validation",
        tests_every_depth=config.runtime.eval_depths,
    )


class Feed:
    """The items of a run from `start` to the end, or to an interruption.

    `interrupt` may be called from any thread: the next item is then a snapshot of what has been
    fed so far, and the last one a stop. Of the training batches `left_out` only the count is fed.

    `best`: what the tests before `start` have shown. `is_judged`: whether somebody looks at each
    epoch, and may end the run with it. Where a test or a judge may end the run, whoever feeds waits
    after it (`wait_for_report`), and whoever hears its report says so (`hear`).
    """

    def __init__(
        self,
        course: Course,
        start: Position,
        *,
        best: BestSoFar = _NO_TEST,
        left_out: frozenset[int] = frozenset(),
        is_judged: bool = False,
    ) -> None:
        self.course, self.best, self.left_out = course, best, left_out
        self._is_judged, self._judged, self._is_ended = is_judged, 0, False
        self.interrupted = False
        self.cut_short = False
        """Whether part of the course was left out: an interruption, or an item that failed."""
        self.failure: PipelineError | None = None
        """Why an item could not be had, where that is what ended the feed."""
        self.position = start
        """How far it has been fed."""
        self._given_up = False
        self._news = Event()

    def interrupt(self) -> None:
        """End the feed early, with a snapshot."""
        self.interrupted = True
        self._news.set()

    def hear(self, best: BestSoFar, *, judged: int = 0, ended: bool = False) -> None:
        """Tests have been reported; from any thread.

        Args:
            judged: the last epoch that a judge has seen; ended: whether the run ends with it.
        """
        self.best, self._judged = best, judged
        self._is_ended |= ended
        self._news.set()

    def wait_for_report(self, item: Item, look: Callable[[], None]) -> None:
        """After an item was sent: wait until it is known what follows, or for an interruption.

        Args:
            look: called while it waits, and has the last word: it must raise where no report will
                come any more.
        """
        while self._awaits(item) and not self.interrupted:
            look()
            self._news.wait(_LOOKS_EVERY_S)
            self._news.clear()

    def _awaits(self, item: Item) -> bool:
        if not _completes_an_epoch(item, self.course):
            return False
        by_tests = self.course.patience is not None and isinstance(item, EndEvaluation)
        return (by_tests and self.best.tested < item.epoch) or (
            self._is_judged and self._judged < item.epoch
        )

    @property
    def ended_early(self) -> bool:
        """Whether patience, or who looks at each epoch, has left out the end of the course."""
        is_early = not self.cut_short and self.position.step < self.course.steps
        return is_early and self._is_enough()

    def _is_enough(self) -> bool:
        return self._is_ended or self.course.is_enough(self.best)

    def give_up(self, failure: PipelineError | None) -> None:
        """The item at hand can't be had: it does not count, and the feed ends with a snapshot.

        Args:
            failure: why; None where an interruption did not wait for it.
        """
        self._given_up, self.failure = True, failure

    def __iter__(self) -> Iterator[Item]:
        """Yields each item once; an item counts as fed when the next is asked for."""
        for item in _items(self.course, self.position, self._is_enough):
            # a round that has begun comes to its end: members wait for each other
            if not self.interrupted or self._in_round:
                if isinstance(item, TrainBatch) and item.batch_id in self.left_out:
                    yield PassedBatch(item.batch_id, item.epoch)
                else:
                    yield item
                if not self._given_up:
                    assert self.interrupted or not self._awaits(item), "its report comes first"
                    self._advance(item)
                    continue
            self.cut_short = True
            if self._in_round:
                break  # its batch can't be had: the newest snapshot stays
            step, reported = self.position.step, self.position.epoch_reported
            yield Snapshot(step, self.course.epoch_of(step), reported)
            break
        yield Stop()

    @property
    def _in_round(self) -> bool:
        step = self.position.step
        return step > 0 and self.course.round_end(step) != step

    def _advance(self, item: Item) -> None:
        if isinstance(item, TrainBatch):
            self.position = Position(item.batch_id, epoch_reported=False)
        elif _completes_an_epoch(item, self.course):
            self.position = Position(self.position.step, epoch_reported=True)


def _completes_an_epoch(item: Item, course: Course) -> TypeGuard[EndEpoch | EndEvaluation]:
    """It is complete with its test, or with its end where it is not tested."""
    return isinstance(item, EndEvaluation) or (
        isinstance(item, EndEpoch) and not course.evaluates(item.epoch)
    )


def _items(course: Course, start: Position, is_enough: Callable[[], bool]) -> Iterator[Item]:
    step = start.step
    if step == 0:
        yield from _evaluation(course, 0)
    elif not start.epoch_reported and step % course.steps_per_epoch == 0:
        yield from _epoch_end(course, course.epoch_of(step), is_enough)
    every, due = course.checkpoint_every_steps, False
    while step < course.steps and not is_enough():
        step += 1
        epoch = course.epoch_of(step)
        index = (step - 1) % course.steps_per_epoch
        follow = min(course.steps_per_epoch - 1 - index, course.steps - step)
        rate, learner = course.learning_rate(step), course.learner(epoch)
        yield TrainBatch(step, epoch, rate, learner, index, follow)
        due |= every > 0 and step % every == 0
        if step % course.steps_per_epoch == 0:
            yield from _epoch_end(course, epoch, is_enough, due=due)
            due = False
        elif due and course.round_end(step) == step:
            yield Snapshot(step, epoch, epoch_reported=False)
            due = False


def _epoch_end(
    course: Course, epoch: int, is_enough: Callable[[], bool], *, due: bool = False
) -> Iterator[Item]:
    yield EndEpoch(epoch)
    yield from _evaluation(course, epoch)
    step, every = epoch * course.steps_per_epoch, course.checkpoint_every_steps
    if not every or due or step % every == 0 or epoch == course.all_epochs or is_enough():
        yield Snapshot(step, epoch, epoch_reported=True)


def _evaluation(course: Course, epoch: int) -> Iterator[Item]:
    if course.evaluates(epoch):
        yield StartEvaluation(epoch)
        for batch in range(1, course.evaluation_batches + 1):
            yield EvaluationBatch(batch, epoch, course.learner(epoch))
        yield EndEvaluation(epoch)
