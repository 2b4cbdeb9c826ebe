"""Handles the items of a feed in order: trains, evaluates, answers markers. One per stage.

The worker puts it between two links, single mode chains one after another; both see the same
calls in the same order, which is why they give the same weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pipeline.errors import ProtocolError
from pipeline.learning.block_file import encode_block
from pipeline.schedule.items import (
    EndEpoch,
    EndEvaluation,
    EvaluationBatch,
    PassedBatch,
    Snapshot,
    StartEvaluation,
    Stop,
    TrainBatch,
    turn_of,
)
from pipeline.schedule.reports import PassReport, StageState, digest_of
from pipeline.timeline.spans import SpanRecorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from pipeline.device.meter import Meter
    from pipeline.learning.stage import Stage
    from pipeline.schedule.items import Batch, Item, Turn
    from pipeline.schedule.reports import Tally


class Upstream(Protocol):
    """What a stage says to the coordinator, or to the recorder of single mode."""

    def report(self, report: PassReport) -> None:
        """The counters of a pass."""

    def snapshot(self, state: StageState, files: Sequence[bytes]) -> None:
        """The state at a marker, with one safetensors file a block."""

    def remark(self, text: str) -> None:
        """For the person who watches."""


class StageRunner:
    """One stage at work. `last_batch_id` is the last training step that its state includes.

    Args:
        forward: sends an item downstream, and of a batch (activation, targets, what is carried).
        member: which it is of a team; None: of no team. Where batches are shared out, a member
            sends the examples on as they came, so that the next one takes its share.
        rounds: of replicas, how many there are: each takes the batch of its number of each round,
            and sends the others on, for the next replica to learn from, or as an earlier one has
            made them.
        check_until: the last batch after which it looks whether its state is finite, beside
            snapshots.
        spans: records what it does, for the item that was taken up.
    """

    def __init__(
        self,
        index: int,
        stage: Stage,
        forward: Callable[[Item, tuple[Tensor, ...]], None],
        upstream: Upstream,
        *,
        meter: Meter,
        member: int | None = None,
        rounds: int = 1,
        last_batch_id: int = 0,
        check_until: int = 0,
        spans: SpanRecorder | None = None,
    ) -> None:
        self.index, self.stage, self.meter = index, stage, meter
        self.last_batch_id = last_batch_id
        self.stopped = False
        self.at_batch = 0
        """The training batch at work, 0 between them; after an error the one that it hit."""
        self._forward, self._upstream, self._member = forward, upstream, member
        self._rounds, self._rate = rounds, 0.0
        """Replicas, and the learning rate of the round at work, that of its first batch."""
        self._in_slot, self._check_until = False, check_until
        self._spans = spans or SpanRecorder()
        self._last_evaluated = 0
        self._epoch: int | None = None
        self._handlers: dict[type, Callable[..., None]] = {
            TrainBatch: self._train,
            PassedBatch: self._pass,
            EvaluationBatch: self._evaluate,
            StartEvaluation: self._start_evaluation,
            EndEvaluation: self._end_evaluation,
            EndEpoch: self._end_epoch,
            Snapshot: self._snapshot,
            Stop: self._stop,
        }

    def resume(self, epoch: int, tallies: Iterable[Tally]) -> None:
        """Go on counting the epoch that a snapshot was taken in."""
        self._epoch = epoch
        self.stage.training.reset(tallies)

    def handle(
        self, item: Item, tensors: tuple[Tensor, ...] = (), *, in_slot: bool = False
    ) -> None:
        """Do what one item asks for.

        Args:
            tensors: for batches, what arrived: (activation or examples, targets, what is carried).
            in_slot: whether the first of them is as `Stage.train` says.

        Raises:
            ProtocolError: where a batch is missing, repeated or out of order (invariant 1).
        """
        self._in_slot = in_slot
        self._spans.now("compute")
        with self.meter.working():
            self._handlers[type(item)](item, *tensors)
        self._spans.now("idle")
        for text in self.stage.take_remarks():
            self._upstream.remark(text)

    def _train(self, item: TrainBatch, x: Tensor, targets: Tensor, *carried: Tensor) -> None:
        self._must_follow("training batch", self.last_batch_id, item.batch_id)
        self._open_epoch(item.epoch)
        self.at_batch = item.batch_id
        tensors = (x, targets, *carried)
        turn, rate = None, item.lr
        if self._rounds > 1:
            turn = turn_of(item, self._rounds)
            if turn.place == 0:
                self._rate = item.lr
            rate = self._rate
        if turn is None or not self.stage.sends:
            self._pass_examples(item, tensors)
        if turn is not None and turn.place != self._member:
            self._leave_to_others(item, tensors, turn)
            return
        self.stage.train(
            x,
            targets,
            *carried,
            batch_id=item.batch_id,
            lr=rate,
            send=lambda passed, *onwards: self._send(item, (passed, targets, *onwards), "learn"),
            learner=item.learner,
            in_slot=self._in_slot,
            turn=turn,
        )
        self.last_batch_id, self.at_batch = item.batch_id, 0
        if item.batch_id <= self._check_until:
            self.stage.settle()
            self.stage.check_state(item.batch_id)
        if self._member is None and self.stage.ends_at(item.learner):
            self._forward(PassedBatch(item.batch_id, item.epoch), ())

    def _leave_to_others(self, item: TrainBatch, tensors: tuple[Tensor, ...], turn: Turn) -> None:
        """A batch that another replica learns from; a last round may have none for this one."""
        assert self._member is not None, "of a replica"
        if self.stage.sends:
            self._send(item, tensors, "compute")
        if turn.place == turn.size - 1 < self._member:
            self.stage.give_nothing(turn.first, self._rate)
        self.last_batch_id, self.at_batch = item.batch_id, 0

    def _pass_examples(self, item: Batch, tensors: tuple[Tensor, ...]) -> None:
        if self._member is not None:
            self._send(item, tensors, "compute")

    def _send(self, item: Batch, tensors: tuple[Tensor, ...], then: str) -> None:
        self._forward(item, tensors)
        self._spans.now(then)

    def _pass(self, item: PassedBatch) -> None:
        self._must_follow("training batch", self.last_batch_id, item.batch_id)
        self._open_epoch(item.epoch)
        self.last_batch_id = item.batch_id
        self._forward(item, ())

    def _evaluate(
        self, item: EvaluationBatch, x: Tensor, targets: Tensor, *carried: Tensor
    ) -> None:
        self._must_follow("evaluation batch", self._last_evaluated, item.batch_id)
        is_replica = self._rounds > 1
        if not (is_replica and self.stage.sends):
            self._pass_examples(item, (x, targets, *carried))
        if is_replica and (item.batch_id - 1) % self._rounds != self._member:
            if self.stage.sends:
                self._send(item, (x, targets, *carried), "idle")
            self._last_evaluated = item.batch_id
            return
        self.stage.evaluate(
            x,
            targets,
            *carried,
            send=lambda passed, *onwards: self._send(item, (passed, targets, *onwards), "idle"),
            batch_id=item.batch_id,
            learner=item.learner,
        )
        self._last_evaluated = item.batch_id

    def _start_evaluation(self, item: StartEvaluation) -> None:
        self._last_evaluated = 0
        self.stage.evaluation.reset()
        self.stage.confusion.reset()
        self._forward(item, ())

    def _end_evaluation(self, item: EndEvaluation) -> None:
        self._report(item.epoch, training=False)
        self._forward(item, ())

    def _end_epoch(self, item: EndEpoch) -> None:
        self.stage.settle()
        skipped = self.stage.take_skipped().items()
        for block, batches in () if self._member else skipped:  # all have skipped the same
            self._upstream.remark(
                f"block {block} skipped {len(batches)} batches of epoch {item.epoch}, whose loss "
                f"was not finite; the first was {batches[0]}"
            )
        self._report(item.epoch, training=True)
        self._forward(item, ())

    def _snapshot(self, item: Snapshot) -> None:
        self._must_be("snapshot", self.last_batch_id, item.step)
        self.stage.settle()
        self.stage.check_state(item.step)
        states = self.stage.state()
        blocks, tallies = tuple(states), self.stage.training.read()
        files = [
            encode_block(states[block.spec.index])
            for block in self.stage.in_turn(self.stage.blocks)
        ]
        digest = digest_of(files) if self._member else ""
        state = StageState(item.step, item.epoch, item.epoch_reported, blocks, tallies, digest)
        self._upstream.snapshot(state, files)
        self._forward(item, ())

    def _stop(self, item: Stop) -> None:
        self.stopped = True
        self._forward(item, ())

    def _report(self, epoch: int, *, training: bool) -> None:
        self.stage.settle()
        counters = self.stage.training if training else self.stage.evaluation
        tallies, confusion = counters.read(), () if training else self.stage.confusion.read()
        usage = self.meter.take()
        self._upstream.report(PassReport(self.index, epoch, training, tallies, usage, confusion))

    def _open_epoch(self, epoch: int) -> None:
        """Counters start again with the first batch of an epoch, not at its end: a snapshot
        taken while the epoch is being tested still holds them."""
        if epoch != self._epoch:
            self._epoch = epoch
            self.stage.training.reset()

    def _must_follow(self, what: str, before: int, now: int) -> None:
        self._must_be(what, before + 1, now)

    def _must_be(self, what: str, expected: int, got: int) -> None:
        if got != expected:
            raise ProtocolError(
                f"stage {self.index}: expected {what} {expected}, received {what} {got}"
            )
