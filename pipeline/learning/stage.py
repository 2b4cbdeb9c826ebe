"""Consecutive blocks: train or evaluate one batch. No input, no output, no clock.

    x ──▶ block ──▶ h ──dropout, pool──▶ passed ──▶ next block …
                    └──▶ heads ──▶ loss ──▶ the weights of this block's group

Blocks that learn together are a group; by default each block is one. What a group passes on is
computed before it learns and is detached (invariant 2), so the last block's output is handed to
`send` before its weights change. Global backprop is the group that holds the whole network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.device.compiler import Compiler
from pipeline.device.cuda_graphs import CapturedSteps, StepScalars
from pipeline.dtypes import wide
from pipeline.kernels.recompute import Activation
from pipeline.learning.counters import Confusion, Counters
from pipeline.learning.losses import output_loss
from pipeline.learning.nonfinite import FiniteCheck, StateCheck, restore
from pipeline.learning.precision import Between
from pipeline.learning.rule_calls import Expansion, shared_by
from pipeline.learning.shares import NOTHING, contribution_of, share_of
from pipeline.learning.team import Team, sizes
from pipeline.network.specs import in_runs
from pipeline.rules.rule import Batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pipeline.device.cuda_graphs import GraphCapture, Send, Tensors
    from pipeline.learning.augment import Preprocess
    from pipeline.learning.block import Block
    from pipeline.learning.exchange import Exchange
    from pipeline.learning.losses import LossValue
    from pipeline.learning.nonfinite import Policy
    from pipeline.learning.rule_calls import Versions
    from pipeline.learning.shares import Contribution, Share
    from pipeline.learning.whole_batch import WholeBatch
    from pipeline.network.specs import BlockSpec
    from pipeline.schedule.items import Turn

AS_COMPUTED = Between()
MOST_CLASSES = 128
"""With more, tests count no confusions: a report then would hold more than 16,384 numbers."""


class Stage:
    """Trains its blocks from their local losses, each batch as it comes by.

    The first stage of a network also has the `preprocess` that turns examples into its input.
    `tests_every_depth`: in tests, what each block predicts is counted, too. `between`: how
    activations travel between its groups, and to other stages. `exchange`: of a member of a team,
    which takes its share of each batch, or, `in_rounds`, whole batches by turns.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        preprocess: Preprocess | None,
        on_nonfinite: Policy = "stop",
        *,
        tests_every_depth: bool = False,
        between: Between = AS_COMPUTED,
        exchange: Exchange | None = None,
        in_rounds: bool = False,
        whole: WholeBatch | None = None,
    ) -> None:
        device, indices = blocks[0].device, [block.spec.index for block in blocks]
        self.blocks = list(blocks)
        self._is_last = blocks[-1].spec.is_last
        self._tests_every_depth, self._between = tests_every_depth, between
        self._carries = [spec.name for spec in blocks[0].spec.in_training.carried]
        self.at_work: int | None = None
        """Index of the block at work, for error messages."""
        frozen = {block.spec.index for block in blocks if block.spec.frozen}
        self.training = Counters(indices, device, frozen)
        self.evaluation = Counters(indices, device)
        self.confusion = Confusion(device)
        """Of the test under way, where this stage is tested."""
        self._preprocess = preprocess
        self._groups = in_runs(self.blocks, lambda block: block.spec.same_group)
        self._expansion = _expansion_of(self._groups[0]) if preprocess else None
        self._shortcuts = _Shortcuts(block.spec for block in blocks)
        self._scalars = StepScalars(device)
        for block in blocks:
            block.dropout.follow(self._scalars.batch_id)
        self._finite = FiniteCheck(on_nonfinite, indices, self._scalars.batch_id)
        self._state_check = StateCheck(blocks)
        self._captured: CapturedSteps[Pending] | None = None
        self._skipped: dict[int, list[int]] = {}
        self._remarks: list[str] = []
        self._in_rounds = in_rounds
        self._share: Share | None = None
        """Of the batch at work, in a team that shares batches out."""
        self._contribution: Contribution = NOTHING
        """What it counts for in the sum of the team."""
        self._given_as = 0
        """The batch by which the team knows what it found."""
        self._may_skip, self._whole = on_nonfinite == "skip_batch", whole
        self._team: Team | None = None
        if exchange is not None:
            self._team = Team(exchange, may_skip=self._may_skip, count=self._count, skip=self._skip)

    # --- training -------------------------------------------------------------------------

    def train(
        self,
        x: Tensor,
        targets: Tensor,
        *carried: Tensor,
        batch_id: int,
        lr: float,
        send: Send,
        learner: int | None = None,
        in_slot: bool = False,
        turn: Turn | None = None,
    ) -> None:
        """One step of every block; in greedy training of the `learner` and its group.

        Args:
            x: what arrived: (rows, *in_shape), or examples for the first stage; not modified.
            targets: (n, …): classes as int64, or numbers.
            carried: what travels beside them, as the first block's spec has it.
            send: receives the last block's output, (rows, *out_shape), and what is carried on,
                unless it is the output's or the learner comes before the end of this stage.
            in_slot: whether x lies where later batches will, too, and stays until the device has
                done the step: then a captured step reads it there.
            turn: of a replica, the batch's place in its round.
        """
        self._shortcuts.clear()
        self._scalars.set(batch_id, lr)
        given = (x, targets, *carried)
        if turn is not None:
            self._contribution, self._given_as = contribution_of(turn), turn.first
        else:
            given, self._given_as = self._own_share(given), batch_id
        if not len(given[1]):
            self.give_nothing(batch_id, lr, learner)
        elif learner is not None:
            self._train_learner(given, batch_id, send, learner)
        elif self._captured is not None:
            in_slot = in_slot and self._preprocess is None  # which makes other input of it
            self._captured.train(given, batch_id, send, in_slot=in_slot)
        else:
            self.step(given, batch_id, send)

    def _own_share(self, given: Tensors) -> Tensors:
        """What this member of a team takes of a batch; all of it, if batches aren't shared out."""
        if self._team is None or self._in_rounds:
            return given
        share = self._team.share(len(given[1]))
        if share != self._share:
            self._share, self._contribution = share, share.contribution
            for block in self.blocks:
                block.take(share)
        # kernels may round otherwise where memory begins elsewhere than a fresh tensor's
        return tuple(tensor[share.rows].clone() for tensor in given)

    def give_nothing(self, batch_id: int, lr: float, learner: int | None = None) -> None:
        """To the team, without examples, for all groups that learn. `batch_id`: of the batch, or of
        the first of its round."""
        assert self._team is not None, "of a team alone"
        self._scalars.set(batch_id, lr)
        for group in self._groups:
            learns = not group[-1].spec.frozen and learner in (None, group[-1].spec.index)
            if learns:
                self._team.begin(group)
                self._team.give(group, batch_id, None, NOTHING, self._scalars.lr, {}, 0)

    def step(self, given: Tensors, batch_id: int, send: Send) -> None:
        """One step of every block, for a batch as it arrived."""
        pending = self.begin(given, batch_id)
        if self.sends:
            send(*pending.sent)
        self.finish(pending, batch_id)

    @property
    def sends(self) -> bool:
        """Whether another stage comes after this one."""
        return not self._is_last

    def prepared(self, given: Tensors, batch_id: int) -> Tensors:
        """What arrived as the first block's input: examples are normalised and augmented, and a
        rule makes copies of them."""
        if self._preprocess is None:
            return given
        return _given(self._arrived(given, batch_id, training=True))

    def begin(self, given: Tensors, batch_id: int, *, is_prepared: bool = False) -> Pending:
        """Up to what is sent: all groups but the last learn, that one computes its activation."""
        # prepared here, where the first block's input is forgotten with that block
        batch = self._batch(given) if is_prepared else self._arrived(given, batch_id, training=True)
        del given
        for group in self._groups[:-1]:
            batch = self._group_step(group, batch, batch_id)
        pending = self._pass_on(self._groups[-1], batch, batch_id)
        # here, where a captured step computes it again with each replay
        pending.sent = self._sent(pending.onwards)
        return pending

    def finish(self, pending: Pending, batch_id: int) -> None:
        """After it was sent: the last group learns."""
        self._learn(self._groups[-1], pending, batch_id)

    def passed_on(self, given: Tensors, batch_id: int, *, training: bool) -> Tensors:
        """What goes on from a stage of one group, which does not learn from it."""
        assert len(self._groups) == 1, "others would have to learn"
        if training:
            return _given(self.begin(given, batch_id).onwards)
        batch = self._arrived(given, batch_id, training=False)
        return _given(self._computed(self._groups[0], batch, batch_id)[-1])

    def _batch(self, given: Tensors, *, training: bool = True) -> Batch:
        x, targets, *carried = given
        if self._preprocess is None:
            x = self._between.arrived(x)
        return Batch(x, targets, dict(zip(self._carries, carried, strict=True)), training)

    def _arrived(self, given: Tensors, batch_id: int, *, training: bool) -> Batch:
        """What arrived, as the first block receives it."""
        if self._preprocess is None:
            return self._batch(given, training=training)
        x, targets = given
        if training:
            x = self._preprocess.train(x, batch_id, self._share)
        else:
            x = self._preprocess.evaluate(x)
        if self._expansion is None:
            return Batch(x, targets, training=training)
        first = self._share.first if self._share else 0
        return self._expansion.expanded(x, targets, batch_id, training=training, first=first)

    def _train_learner(self, given: Tensors, batch_id: int, send: Send, learner: int) -> None:
        batch = self._arrived(given, batch_id, training=True)
        for group in self._groups:
            ends = group[-1].spec.index
            if ends == learner:
                self._group_step(group, batch, batch_id)
                continue
            if self._team is not None:
                self._team.complete(group)
            for block in group:  # which has learned, or will later
                block.release_optimizer()
            if ends < learner:
                batch = self._frozen(group, batch, batch_id, send)

    def ends_at(self, learner: int | None) -> bool:
        """Whether greedy training goes no further than this stage, which holds the learner."""
        return learner is not None and learner <= self.blocks[-1].spec.index

    @torch.no_grad()
    def _frozen(self, group: Sequence[Block], batch: Batch, batch_id: int, send: Send) -> Batch:
        """What a group that has finished learning passes on: as in a test."""
        batch = self._computed(group, batch, batch_id)[-1]
        if group[-1] is self.blocks[-1]:
            send(*self._sent(batch))
        return batch

    def _computed(
        self, group: Sequence[Block], batch: Batch, batch_id: int
    ) -> tuple[Tensor, Tensor, Batch]:
        """What a group makes of a batch without learning from it: what it computed on, its last
        activation, and what goes on."""
        if self._team is not None:
            self._team.complete(group)
        calls = group[-1].calls
        x = received = batch.x
        if calls is not None:
            generator = calls.generator(batch_id, training=batch.training)
            received = calls.entered(batch, generator, learns=False)
            x = group[0].own_copy(received)
        for block in self.in_turn(group):
            h = block(x, batch_id=None, shortcut=self._shortcuts.at(block.spec, x))
            x = h if block.spec.is_output else block.transfer(h, batch_id=None)
        if calls is not None:
            self.at_work = group[-1].spec.index
        return received, h, self._left(group[-1], h, x, batch)

    def _left(self, block: Block, h: Tensor, passed: Tensor, batch: Batch) -> Batch:
        """What goes on from the last block of a group."""
        if block.calls is None:
            onwards = Batch(passed, batch.y, batch.carry, batch.training)
        else:
            onwards = block.calls.left(h, passed, batch)
        if not block.spec.is_last:
            onwards.x = self._between.left(onwards.x)
        return onwards

    def _sent(self, batch: Batch) -> Tensors:
        """Of what goes on, all but the targets, which are sent as they came."""
        x = batch.x if self._is_last else self._between.sent(batch.x)
        return (x, *batch.carry.values())

    def _group_step(self, group: Sequence[Block], batch: Batch, batch_id: int) -> Batch:
        """One step of the blocks of a group, from all their losses; gives what it passes on."""
        pending = self._pass_on(group, batch, batch_id)
        del batch
        self._learn(group, pending, batch_id)
        return pending.onwards

    def _pass_on(self, group: Sequence[Block], batch: Batch, batch_id: int) -> Pending:
        *others, last = group
        if last.spec.frozen:
            with torch.no_grad():
                received, _, onwards = self._computed(group, batch, batch_id)
            return Pending(None, received, batch, onwards, {}, ())
        values: dict[Block, LossValue] = {}
        statistics: Sequence[tuple[Tensor, Tensor]] = ()
        if self._team is None:
            statistics = self._finite.statistics_of(group)
        else:
            self.at_work = last.spec.index
            self._team.begin(group)
            self._open_whole(last, batch_id)
        generator = None
        x = received = batch.x
        if last.calls is not None:
            self.at_work = last.spec.index
            generator = last.calls.generator(batch_id, training=True)
            received = last.calls.entered(batch, generator, learns=True)
            x = group[0].own_copy(received)
        for block in self.in_turn(others):
            h = block(x, batch_id=batch_id, shortcut=self._shortcuts.at(block.spec, x))
            x = block.transfer(h, batch_id=batch_id)
            if block.spec.has_loss:
                values[block] = block.local_loss(Activation(h), batch, received)
                received = x
            del h
        self.at_work = last.spec.index
        h = last(x, batch_id=batch_id, shortcut=self._shortcuts.at(last.spec, x))
        with torch.no_grad():
            detached = h.detach()
            passed = last.transfer(detached, batch_id=batch_id)
            onwards = self._left(last, detached, passed, batch)
        activation = Activation.read_last(h, passed)
        shared = [] if last.calls is None else shared_by(batch, onwards)
        return Pending(activation, received, batch, onwards, values, statistics, generator, shared)

    def _learn(self, group: Sequence[Block], pending: Pending, batch_id: int) -> None:
        """Learn and count, unless the batch is to be skipped, or the group is frozen."""
        last, values = group[-1], pending.values
        if last.spec.frozen:
            self.at_work = None
            return
        self.at_work = last.spec.index
        directions: Mapping[str, Tensor] = {}
        if last.spec.has_loss:
            if last.calls is not None and pending.activation is not None:
                h = pending.activation.h.detach()
                directions = last.calls.directions(last.encoder, h, pending.received, pending.batch)
            values[last] = last.local_loss(
                pending.take_activation(), pending.batch, pending.received, pending.generator
            )
            if last.calls is not None:
                last.calls.check_unchanged(pending.shared)
        losses = [value.loss for value in values.values()]
        loss = sum(losses[1:], start=losses[0])
        passes = self._finite.passes(loss, last.spec.index, batch_id)
        predictions = counted(pending.onwards.y)
        if self._team is not None:
            gradients = self._part_of_gradients(group, loss, directions, passes)
            at, lr = self._given_as, self._scalars.lr
            self._team.give(group, at, gradients, self._contribution, lr, values, predictions)
        elif passes:
            learn(group, loss, self._scalars.lr, directions)
            for block, value in values.items():
                self._count(block, value, predictions)
        else:
            restore(pending.statistics)
            self._skip(group, batch_id)
        self._shortcuts.detach()
        self.at_work = None

    def _part_of_gradients(
        self,
        group: Sequence[Block],
        loss: Tensor,
        directions: Mapping[str, Tensor],
        passes: bool,
    ) -> Sequence[Tensor | None] | None:
        """What a member of a team gives; None where its loss may not be learned from."""
        if self._whole is None:
            return (
                gradients_of(group, loss, directions, self._contribution.weight) if passes else None
            )
        if self._may_skip:  # all do, then: within the backward pass they wait for each other
            passes = self._whole.all_agree(passes)
        gradients = None
        if passes:
            # by this thread, which alone may ask whether it still is to wait
            with torch.autograd.set_multithreading_enabled(False):
                gradients = gradients_of(group, loss, directions, self._contribution.weight)
        self._whole.close()
        return gradients

    def _open_whole(self, block: Block, batch_id: int) -> None:
        """From now on a group that ends with this block sees the whole batch, where it is to."""
        if self._whole is not None and self._share is not None:
            self._whole.open(batch_id, block.spec.index, self._share.of)

    def _count(self, block: Block, value: LossValue, predictions: int) -> None:
        self.training.add(block.spec.index, value, predictions)

    def _skip(self, group: Sequence[Block], batch_id: int) -> None:
        self._skipped.setdefault(group[-1].spec.index, []).append(batch_id)
        for block in group:
            if block.spec.has_loss:
                self.training.skip(block.spec.index)

    # --- evaluation -----------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self,
        x: Tensor,
        targets: Tensor,
        *carried: Tensor,
        send: Send,
        batch_id: int = 1,
        learner: int | None = None,
    ) -> None:
        """Count loss and errors of the last block, or of the learner in greedy training, and, where
        every depth is tested, those of the blocks before it; changes nothing else (invariant 8).
        Arguments as for `train`."""
        given = self._own_share((x, targets, *carried))
        if not len(given[1]):
            return
        batch = self._arrived(given, batch_id, training=False)
        del x, targets, carried, given
        for group in self._groups:
            received, h, onwards = self._computed(group, batch, batch_id)
            last = group[-1]
            if learner is None:
                ends = self._is_last and last is self.blocks[-1]
            else:
                ends = last.spec.index == learner
            if ends:
                self.at_work = last.spec.index
                self._open_whole(last, batch_id)
                value = self._tested(last, h, received, batch, onwards, batch_id)
                if self._whole is not None:
                    self._whole.close()
                self.evaluation.add(last.spec.index, value, counted(batch.y))
                if value.predicted is not None and last.spec.classes <= MOST_CLASSES:
                    self.confusion.add(value.predicted, batch.y, last.spec.classes)
                break
            if self._tests_every_depth and not batch.y.is_floating_point():
                self._count_depth(last, h, onwards)
            batch = onwards
            del received, h, onwards
        else:
            send(*self._sent(batch))
        self.at_work = None

    def _count_depth(self, block: Block, h: Tensor, onwards: Batch) -> None:
        """Count what a block predicts that the tests are not about."""
        self.at_work = block.spec.index
        scores = block.scores(h, onwards)
        if scores is not None:
            value = output_loss(wide(scores), onwards.y)
            self.evaluation.add(block.spec.index, value, counted(onwards.y))

    def _tested(
        self,
        block: Block,
        h: Tensor,
        x: Tensor,
        batch: Batch,
        onwards: Batch,
        batch_id: int,
    ) -> LossValue:
        if block.calls is None:
            return block.local_loss(Activation(h), batch, x)
        return block.calls.scored(h, x, batch, onwards, batch_id)

    @torch.no_grad()
    def scores(self, x: Tensor, targets: Tensor, batch_id: int = 1) -> list[Tensor | None]:
        """What each block of a whole network predicts in a test, by its rule or local classifier.

        Args:
            x: (n, …) examples.
            targets: (n, …), that the rules may look at; predictions should not depend on them.
            batch_id: of the test, for rules that draw numbers in it.

        Returns:
            For each block (n, classes, …), or None where it predicts nothing.
        """
        batch = self._arrived((x, targets), batch_id, training=False)
        found: list[Tensor | None] = []
        for group in self._groups:
            _, h, onwards = self._computed(group, batch, batch_id)
            found += [*(None for _ in group[1:]), group[-1].scores(h, onwards)]
            batch = onwards
        return found

    # --- how steps are run ----------------------------------------------------------------

    def compile(self) -> None:
        """From now on blocks compute with what torch.compile makes of them."""
        compiler = Compiler(self.remark)
        for block in self.blocks:
            block.compute_by(compiler.run)

    def capture(self, graphs: GraphCapture) -> None:
        """From now on steps are captured, and replayed for other batches of the same shape."""
        self._captured = CapturedSteps(self, graphs, self.remark)

    def mutated_tensors(self) -> list[Tensor]:
        """All that a step changes."""
        states = (block.state().values() for block in self.blocks if not block.spec.frozen)
        return [*chain(*states), *self.training.sums, self._finite.first_bad]

    def found_sizes(self, examples: int) -> list[list[int]]:
        """Bytes of what a member of a team finds, tensor by tensor: for each group that learns, and
        each time that members look at the `examples` of a whole batch."""
        assert self._team is not None, "of a team alone"
        most = share_of(examples, 0, self._team.members).count
        found = [sizes(group) for group in self._groups if not group[-1].spec.frozen]
        return [*found, *chain.from_iterable(block.seen_sizes(most) for block in self.blocks)]

    # --- state ----------------------------------------------------------------------------

    def state(self) -> dict[int, dict[str, Tensor]]:
        """The live tensors of every block, by block index."""
        return {block.spec.index: block.state() for block in self.in_turn(self.blocks)}

    def load(self, states: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Overwrite the state of every block.

        Raises:
            CheckpointError: where a state is not of the block it is for.
        """
        for block in self.in_turn(self.blocks):
            block.load(states[block.spec.index])

    def begin_with(self, files: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Overwrite a part of the first state of some blocks (`model.init_from`).

        Raises:
            CheckpointError: where a tensor is not of the block it is for.
        """
        for block in self.in_turn(self.blocks):
            if block.spec.index in files:
                block.begin_with(files[block.spec.index])

    def settle(self) -> None:
        """Before a report or a snapshot: make the steps that are still to be made.

        Raises:
            NonFiniteLossError: where a loss was not finite and only now comes to light.
        """
        if self._team is not None:
            self._team.settle()
        self._finite.settle()

    def check_state(self, batch_id: int) -> None:
        """After batch `batch_id`.

        Raises:
            NonFiniteLossError: where the state of a block is not finite.
        """
        self._state_check.check(self.state(), batch_id)

    # --- what is told ---------------------------------------------------------------------

    def remark(self, text: str) -> None:
        """Have the person who watches told."""
        self._remarks.append(text)

    def take_remarks(self) -> list[str]:
        """What the person who watches is to be told, since this was asked last."""
        remarks, self._remarks = self._remarks, []
        return remarks

    def take_skipped(self) -> dict[int, list[int]]:
        """The batches that each block has skipped since this was asked last."""
        skipped, self._skipped = self._skipped, {}
        return skipped

    def in_turn(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """One after the other; each is `at_work` in its turn, and none in the end."""
        for block in blocks:
            self.at_work = block.spec.index
            yield block
        self.at_work = None


@dataclass(slots=True)
class Pending:
    """A group that has computed what it passes on, and now is to learn."""

    activation: Activation | None
    """Of its last block; None of one that is frozen."""
    received: Tensor
    """The input of the part that the activation belongs to."""
    batch: Batch
    """What arrived at the group."""
    onwards: Batch
    """What goes on from it: x (rows, *out_shape), detached."""
    values: dict[Block, LossValue]
    """Of the blocks before the last."""
    statistics: Sequence[tuple[Tensor, Tensor]]
    """Those of batch norm, where the batch may be skipped: live, as they were before."""
    generator: torch.Generator | None = None
    """Of a rule that is not built in."""
    shared: Versions = field(default_factory=list)
    """What such a rule may not change any more."""
    sent: Tensors = ()
    """Of the last group of a stage: what is passed on and carried on, as it travels."""

    def take_activation(self) -> Activation:
        """It is needed once: learning gives its memory back as soon as it can."""
        activation, self.activation = self.activation, None
        assert activation is not None, "taken once"
        return activation


def _expansion_of(group: Sequence[Block]) -> Expansion | None:
    first, last = group[0], group[-1]
    if last.rule is None or last.spec.rule is None:
        return None
    return Expansion(first.spec, type(last.rule), last.spec.rule, last.seed)


class _Shortcuts:
    """The inputs that residual connections carry past blocks of a stage, which holds the whole span
    of each."""

    def __init__(self, specs: Iterable[BlockSpec]) -> None:
        self._sources = {spec.shortcut.source for spec in specs if spec.shortcut}
        self._carried: dict[int, Tensor] = {}

    def at(self, spec: BlockSpec, x: Tensor) -> Tensor | None:
        """Keeps the input x of a block where a shortcut begins; gives what ends in this block."""
        if spec.index in self._sources:
            self._carried[spec.index] = x
        return self._carried.pop(spec.shortcut.source) if spec.shortcut else None

    def clear(self) -> None:
        """Forget what greedy training, which may end within a span, has left behind."""
        self._carried.clear()

    def detach(self) -> None:
        """At the end of a group: what goes past it brings no gradient back to it."""
        self._carried = {source: x.detach() for source, x in self._carried.items()}


def learn(
    group: Sequence[Block],
    loss: Tensor,
    lr: float | Tensor,
    directions: Mapping[str, Tensor] | None = None,
) -> None:
    """One step on the parameters of blocks that learn together; gradients are freed at once.

    Args:
        directions: as for `gradients_of`.
    """
    gradients = iter(gradients_of(group, loss, directions))
    for block in group:
        block.update([next(gradients) for _ in block.learned], lr)


def gradients_of(
    group: Sequence[Block],
    loss: Tensor,
    directions: Mapping[str, Tensor] | None = None,
    weight: float | None = None,
) -> list[Tensor | None]:
    """What the parameters of blocks that learn together step against, in order.

    Args:
        directions: of parameters of the last block's layer, by name: in place of a gradient.
        weight: that all is multiplied by.
    """
    layer = dict(group[-1].encoder.named_parameters()) if directions else {}
    given = {id(layer[name]): direction for name, direction in (directions or {}).items()}
    if weight is not None:
        loss = loss * weight
        given = {at: direction * weight for at, direction in given.items()}
    learned = [
        parameter for block in group for parameter in block.learned if id(parameter) not in given
    ]
    # where no block may, that one does is a bug, of which autograd tells
    may_miss = any(block.spec.may_miss_gradients for block in group)
    gradients: Sequence[Tensor | None] = [None] * len(learned)
    if learned and (loss.requires_grad or not may_miss):
        gradients = torch.autograd.grad(loss, learned, allow_unused=may_miss)
    remaining = iter(gradients)
    return [
        given[id(p)] if id(p) in given else next(remaining)
        for block in group
        for p in block.learned
    ]


def counted(targets: Tensor) -> int:
    """How many predictions a batch asks for: one for each class that is a target."""
    return len(targets) if targets.is_floating_point() else targets.numel()


def _given(batch: Batch) -> Tensors:
    return (batch.x, batch.y, *batch.carry.values())
