"""Consecutive blocks: train or evaluate one batch. No input, no output, no clock.

    x ──▶ block ──▶ h ──dropout, pool──▶ passed ──▶ next block …
                    └──▶ heads ──▶ loss ──▶ the weights of this block's group

Blocks that learn together are a group; by default each block is one. What a group passes on is
computed before it learns and is detached (invariant 2), so the last block's output is handed to
`send` before its weights change. Global backprop is the group that holds the whole network.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.device.compiler import Compiler
from pipeline.device.cuda_graphs import CapturedSteps, StepScalars
from pipeline.kernels.recompute import Activation
from pipeline.learning.counters import Counters
from pipeline.learning.nonfinite import FiniteCheck, StateCheck, restore
from pipeline.network.specs import in_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pipeline.device.cuda_graphs import GraphCapture, Send
    from pipeline.learning.augment import Preprocess
    from pipeline.learning.block import Block
    from pipeline.learning.losses import LossValue
    from pipeline.learning.nonfinite import Policy
    from pipeline.network.specs import BlockSpec


class Stage:
    """Trains its blocks from their local losses, each batch as it comes by.

    The first stage of a network also has the `preprocess` that turns images into its input.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        preprocess: Preprocess | None,
        on_nonfinite: Policy = "stop",
    ) -> None:
        device, indices = blocks[0].device, [block.spec.index for block in blocks]
        self.blocks = list(blocks)
        self.at_work: int | None = None
        """Index of the block at work, for error messages."""
        self.training, self.evaluation = Counters(indices, device), Counters(indices, device)
        self._preprocess = preprocess
        self._groups = in_runs(self.blocks, lambda block: block.spec.same_group)
        self._shortcuts = _Shortcuts(block.spec for block in blocks)
        self._scalars = StepScalars(device)
        for block in blocks:
            block.dropout.follow(self._scalars.batch_id)
        self._finite = FiniteCheck(on_nonfinite, indices, self._scalars.batch_id)
        self._state_check = StateCheck(blocks)
        self._captured: CapturedSteps[Pending] | None = None
        self._skipped: dict[int, list[int]] = {}
        self._remarks: list[str] = []

    # --- training -------------------------------------------------------------------------

    def train(
        self,
        x: Tensor,
        labels: Tensor,
        *,
        batch_id: int,
        lr: float,
        send: Send,
        learner: int | None = None,
        in_slot: bool = False,
    ) -> None:
        """One step of every block; in greedy training of the `learner` and its group.

        Args:
            x: what arrived: (n, *in_shape), or uint8 images for the first stage; not modified.
            labels: (n,) int64.
            send: receives the last block's output, (n, *out_shape), unless it is the output's or
                the learner comes before the end of this stage.
            in_slot: whether x lies where later batches will, too, and stays until the device has
                done the step: then a captured step reads it there.
        """
        self._shortcuts.clear()
        self._scalars.set(batch_id, lr)
        if learner is not None:
            self._train_learner(x, labels, batch_id, send, learner)
        elif self._captured is not None:
            in_slot = in_slot and self._preprocess is None  # which makes other input of it
            self._captured.train(x, labels, batch_id, send, in_slot=in_slot)
        else:
            self.step(x, labels, batch_id, send)

    def step(self, x: Tensor, labels: Tensor, batch_id: int, send: Send) -> None:
        """One step of every block; x as it arrived."""
        pending = self.begin(x, labels, batch_id)
        if self.sends:
            send(pending.passed)
        self.finish(pending, labels, batch_id)

    @property
    def sends(self) -> bool:
        """Whether another stage comes after this one."""
        return not self.blocks[-1].spec.is_output

    def prepared(self, x: Tensor, batch_id: int) -> Tensor:
        """What arrived as the first block's input: images are normalised and augmented."""
        return self._preprocess.train(x, batch_id) if self._preprocess else x

    def begin(
        self, x: Tensor, labels: Tensor, batch_id: int, *, is_prepared: bool = False
    ) -> Pending:
        """Up to what is sent: all groups but the last learn, that one computes its activation."""
        if not is_prepared:  # here, where the first block's input is forgotten with that block
            x = self.prepared(x, batch_id)
        for group in self._groups[:-1]:
            x = self._group_step(group, x, labels, batch_id)
        return self._pass_on(self._groups[-1], x, labels, batch_id)

    def finish(self, pending: Pending, labels: Tensor, batch_id: int) -> None:
        """After it was sent: the last group learns."""
        self._learn(self._groups[-1], pending, labels, batch_id)

    def _train_learner(
        self, x: Tensor, labels: Tensor, batch_id: int, send: Send, learner: int
    ) -> None:
        x = self.prepared(x, batch_id)
        for group in self._groups:
            ends = group[-1].spec.index
            if ends == learner:
                self._group_step(group, x, labels, batch_id)
                continue
            for block in group:  # which has learned, or will later
                block.release_optimizer()
            if ends < learner:
                x = self._frozen(group, x, send)

    def ends_at(self, learner: int | None) -> bool:
        """Whether greedy training goes no further than this stage, which holds the learner."""
        return learner is not None and learner <= self.blocks[-1].spec.index

    @torch.no_grad()
    def _frozen(self, group: Sequence[Block], x: Tensor, send: Send) -> Tensor:
        """What a group that has finished learning passes on: as in a test."""
        for block in self.in_turn(group):
            h = block(x, batch_id=None, shortcut=self._shortcuts.at(block.spec, x))
            x = block.transfer(h, batch_id=None)
        if group[-1] is self.blocks[-1]:
            send(x)
        return x

    def _group_step(
        self, group: Sequence[Block], x: Tensor, labels: Tensor, batch_id: int
    ) -> Tensor:
        """One step of the blocks of a group, from all their losses; gives what it passes on."""
        pending = self._pass_on(group, x, labels, batch_id)
        self._learn(group, pending, labels, batch_id)
        return pending.passed

    def _pass_on(self, group: Sequence[Block], x: Tensor, labels: Tensor, batch_id: int) -> Pending:
        *others, last = group
        values: dict[Block, LossValue] = {}
        statistics, received = self._finite.statistics_of(group), x
        for block in self.in_turn(others):
            h = block(x, batch_id=batch_id, shortcut=self._shortcuts.at(block.spec, x))
            x = block.transfer(h, batch_id=batch_id)
            if block.spec.has_loss:
                values[block] = block.local_loss(Activation(h), labels, received)
                received = x
            del h
        self.at_work = last.spec.index
        h = last(x, batch_id=batch_id, shortcut=self._shortcuts.at(last.spec, x))
        with torch.no_grad():
            passed = last.transfer(h.detach(), batch_id=batch_id)
        return Pending(Activation.read_last(h, passed), received, passed, values, statistics)

    def _learn(
        self, group: Sequence[Block], pending: Pending, labels: Tensor, batch_id: int
    ) -> None:
        """Learn and count, unless the batch is to be skipped."""
        last, values = group[-1], pending.values
        self.at_work = last.spec.index
        if last.spec.has_loss:
            values[last] = last.local_loss(pending.take_activation(), labels, pending.received)
        losses = [value.loss for value in values.values()]
        loss = sum(losses[1:], start=losses[0])
        if self._finite.passes(loss, last.spec.index, batch_id):
            learn(group, loss, self._scalars.lr)
            for block, value in values.items():
                self.training.add(block.spec.index, value, len(labels))
        else:
            restore(pending.statistics)
            self._skipped.setdefault(last.spec.index, []).append(batch_id)
            for block in values:
                self.training.skip(block.spec.index)
        self._shortcuts.detach()
        self.at_work = None

    # --- evaluation -----------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self, x: Tensor, labels: Tensor, *, send: Send, learner: int | None = None
    ) -> None:
        """Count loss and errors of the output block, or of the learner in greedy training;
        changes nothing else (invariant 8)."""
        if self._preprocess:
            x = self._preprocess.evaluate(x)
        for block in self.in_turn(self.blocks):
            h = block(x, batch_id=None, shortcut=self._shortcuts.at(block.spec, x))
            if block.spec.is_output or block.spec.index == learner:
                value = block.local_loss(Activation(h), labels, x)
                self.evaluation.add(block.spec.index, value, len(labels))
                break
            x = block.transfer(h, batch_id=None)
        else:
            send(x)
        self.at_work = None

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
        states = (block.state().values() for block in self.blocks)
        return [*chain(*states), *self.training.sums, self._finite.first_bad]

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

    def settle(self) -> None:
        """Before a report or a snapshot.

        Raises:
            NonFiniteLossError: where a loss was not finite and only now comes to light.
        """
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
    """Of its last block."""
    received: Tensor
    """The input of the part that the activation belongs to."""
    passed: Tensor
    """(n, *out_shape), detached."""
    values: dict[Block, LossValue]
    """Of the blocks before the last."""
    statistics: Sequence[tuple[Tensor, Tensor]]
    """Those of batch norm, where the batch may be skipped: live, as they were before."""

    def take_activation(self) -> Activation:
        """It is needed once: learning gives its memory back as soon as it can."""
        activation, self.activation = self.activation, None
        assert activation is not None, "taken once"
        return activation


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


def learn(group: Sequence[Block], loss: Tensor, lr: float | Tensor) -> None:
    """One step on the parameters of blocks that learn together; gradients are freed at once."""
    learned = [parameter for block in group for parameter in block.learned]
    # a user's own network may leave parameters out, for a batch or for good: they get None; that a
    # built-in block does is a bug, of which autograd tells
    may_miss = any(block.spec.custom is not None for block in group)
    gradients: Sequence[Tensor | None] = [None] * len(learned)
    if loss.requires_grad or not may_miss:
        gradients = torch.autograd.grad(loss, learned, allow_unused=may_miss)
    remaining = iter(gradients)
    for block in group:
        block.update([next(remaining) for _ in block.learned], lr)
