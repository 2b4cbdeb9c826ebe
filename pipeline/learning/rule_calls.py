"""Calls the functions of a rule that is not built in, for one block, and checks what they give.

generator(batch) ─┬─ entered ─ the block ─┬─ left     what goes on, before anything learns
                  │                       └─ value    the loss, and directions
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor

from pipeline.dtypes import wide
from pipeline.errors import ConfigError
from pipeline.learning.losses import LossValue, output_loss
from pipeline.learning.precision import autocast
from pipeline.network.rule_shapes import (
    arrival_problem,
    described,
    expander,
    naming_rule,
    scores_problem,
)
from pipeline.rules.rule import Batch
from pipeline.seeding import Purpose, derived_seed, of_share, seeded_draws
from pipeline.system.named_object import NamedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from torch import nn

    from pipeline.network.specs import BlockSpec, RuleSpec
    from pipeline.rules.rule import LocalRule


Versions: TypeAlias = "list[tuple[str, Tensor, int]]"
"""Tensors with their names, and how often each was changed before."""


class RuleCalls:
    """The rule of a block at work, in the precision that the block computes in.

    All raise ConfigError, naming rule and block, where a function gives what it may not.
    """

    def __init__(
        self,
        rule: LocalRule,
        spec: BlockSpec,
        *,
        seed: int,
        device: torch.device,
        bf16: bool,
    ) -> None:
        assert spec.rule is not None, "a block with a rule of a user's"
        self._bf16 = bf16
        self._rule, self._spec, self._seed, self._device = rule, spec, seed, device
        self.first = 0
        """Of a batch's examples, the first of the share that is at work."""
        self.named = spec.rule.named

    def generator(self, batch_id: int, *, training: bool) -> torch.Generator | None:
        """The numbers that belong to this block, batch and share; none for a rule that draws
        nothing."""
        if self._rule.static:
            return None
        position = (self._spec.index, batch_id, int(training), *of_share(self.first))
        return _generator(self._seed, self._device, Purpose.RULE, *position)

    def entered(self, batch: Batch, generator: torch.Generator | None, *, learns: bool) -> Tensor:
        """What the block, or the first of its group, computes on.

        Args:
            learns: from this batch; else the rule's modules are as in a test.
        """
        self._rule.train(learns)
        targets = batch.y, batch.y._version
        with self._drawing(generator), self._autocast():
            x = self._rule.enter(batch.x, batch, cast("torch.Generator", generator))
        self._check_left_alone("enter", batch, targets)
        if not isinstance(x, Tensor) or len(x) != len(batch.x):
            raise self._wrong(f"enter gives {described(x)} for {described(batch.x)}")
        return x

    @torch.no_grad()
    def left(self, h: Tensor, passed: Tensor, batch: Batch) -> Batch:
        """What goes on to the next block.

        Args:
            h: (rows, *shape): detached.
            passed: what that block receives as x.
        """
        onwards = Batch(passed, batch.y, dict(batch.carry), batch.training)
        before = {name: tensor._version for name, tensor in batch.carry.items()}
        targets = batch.y, batch.y._version
        with self._autocast():
            self._rule.leave(h, onwards)
        self._check_left_alone("leave", onwards, targets)
        for name, version in before.items():
            if batch.carry[name]._version != version:
                raise self._wrong(
                    f"leave changes {name!r} in place, which others may still read: put a new "
                    "tensor into batch.carry"
                )
        leaves = self._spec.leaves_in_training if batch.training else self._spec.leaves_in_tests
        if problem := arrival_problem(onwards, leaves):
            raise self._wrong(problem)
        for name, tensor in onwards.carry.items():
            if _share_memory(tensor, passed):  # and the next block may compute in place on that
                onwards.carry[name] = tensor.clone()
            if tensor.requires_grad:
                raise self._wrong(
                    f"carries {name!r} with its graph, by which a gradient would reach this block "
                    "from another: detach it"
                )
        return onwards

    def value(
        self, h: Tensor, x: Tensor, batch: Batch, generator: torch.Generator | None
    ) -> LossValue:
        """The loss of an activation, and the errors of its scores where the rule gave them."""
        with self._drawing(generator), self._autocast():
            given = self._rule.loss(h, x, batch, cast("torch.Generator", generator))
        loss, scores = given if isinstance(given, tuple) else (given, None)
        if loss is None:
            loss = torch.zeros((), device=self._device)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise self._wrong(f"loss gives {described(loss)}: a scalar is needed, as by mean()")
        if scores is None:
            return LossValue(loss, None)
        self._check_scores(scores, batch.y)
        if batch.y.is_floating_point():
            return LossValue(loss, None)
        return LossValue(loss, (scores.detach().argmax(dim=1) != batch.y).sum())

    @torch.no_grad()
    def directions(
        self, layer: nn.Module, h: Tensor, x: Tensor, batch: Batch
    ) -> Mapping[str, Tensor]:
        """What the parameters of the block's layer step against, by its names for them; empty where
        only a gradient teaches."""
        with self._autocast():
            given = self._rule.update(layer, h, x, batch)
        if not given:
            return {}
        own = dict(layer.named_parameters())
        for name, direction in given.items():
            if name not in own:
                raise self._wrong(
                    f"update names {name!r}; the layer has {', '.join(own) or 'no parameters'}"
                )
            if direction.shape != own[name].shape:
                raise self._wrong(
                    f"update gives {described(direction)} for {name!r} of {tuple(own[name].shape)}"
                )
        return {name: each.to(own[name].dtype) for name, each in given.items()}

    def scored(
        self, h: Tensor, x: Tensor, batch: Batch, onwards: Batch, batch_id: int
    ) -> LossValue:
        """In a test: cross-entropy and errors of the scores, of numbers their mean squared error;
        without scores, the rule's own loss.

        Args:
            batch: what arrived; `onwards`: what goes on.
        """
        scores = self.scores(h, onwards)
        if scores is None:
            value = self.value(h, x, batch, self.generator(batch_id, training=False))
            return LossValue(value.loss, None)
        return output_loss(wide(scores), batch.y)

    def scores(self, h: Tensor, onwards: Batch) -> Tensor | None:
        """What the rule predicts in a test, (n, classes, …); None: nothing."""
        with self._autocast():
            scores = self._rule.scores(h, onwards)
        if scores is not None:
            self._check_scores(scores, onwards.y)
        return scores

    def _check_scores(self, scores: Tensor, y: Tensor) -> None:
        if problem := scores_problem(scores, y, self._spec.classes):
            raise self._wrong(problem)

    def _check_left_alone(self, what: str, batch: Batch, targets: tuple[Tensor, int]) -> None:
        """Raises ConfigError where the targets are not as they arrived: these every stage gets."""
        if batch.y is not targets[0] or batch.y._version != targets[1]:
            raise self._wrong(
                f"{what} changes batch.y, which stays the same for all blocks: carry what else is "
                "needed"
            )

    def check_unchanged(self, shared: Versions) -> None:
        """Raises ConfigError where the rule has changed in place what was passed on, or what others
        were given, too: that would reach blocks of the same process, and none of another."""
        for name, tensor, version in shared:
            if tensor._version != version:
                raise self._wrong(
                    f"changes {name} in place, which other blocks may still read: make a new tensor"
                )

    def _autocast(self) -> torch.autocast:
        return autocast(self._device, bf16=self._bf16)

    def _drawing(self, generator: torch.Generator | None) -> AbstractContextManager[None]:
        """What modules of the rule draw from the generators that all share, as nn.Dropout does,
        belongs to block and batch, too."""
        if generator is None:
            return nullcontext()
        return seeded_draws(generator.initial_seed(), self._device)

    def _wrong(self, what: str) -> ConfigError:
        return NamedError(f"loss.rule {self.named}: block {self._spec.index}: {what}")


class Expansion:
    """What a rule makes of a batch before the first block of the network, `first`."""

    def __init__(self, first: BlockSpec, kind: type[LocalRule], spec: RuleSpec, seed: int) -> None:
        """`kind`, `spec`: the rule that the first block learns by."""
        self._first, self._spec, self._seed = first, spec, seed
        self._expand = expander(kind, spec.options, first.classes)

    def expanded(
        self, x: Tensor, y: Tensor, batch_id: int, *, training: bool, first: int = 0
    ) -> Batch:
        """The batch, or the share of it that begins with example `first`, with its copies, and with
        what is carried."""
        position = (batch_id, int(training), *of_share(first))
        generator = _generator(self._seed, x.device, Purpose.EXPAND, *position)
        before = Batch(x, y, {}, training)
        with naming_rule(self._spec.named):
            batch = self._expand(before, generator)
            arrival = self._first.in_training if training else self._first.in_tests
            if problem := arrival_problem(batch, arrival):
                raise ConfigError(problem)
        return Batch(batch.x.contiguous(), y, dict(batch.carry), training)


def shared_by(batch: Batch, onwards: Batch) -> Versions:
    """What other blocks may read beside the one at which `batch` arrived, which has computed what
    goes on: it is not to change any more."""
    named = [("batch.y", batch.y), ("h, which is passed on,", onwards.x)]
    for carry in (batch.carry, onwards.carry):
        named += [(f"batch.carry[{name!r}]", tensor) for name, tensor in carry.items()]
    return [(name, tensor, tensor._version) for name, tensor in named]


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _generator(seed: int, device: torch.device, purpose: Purpose, *at: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, *at))
