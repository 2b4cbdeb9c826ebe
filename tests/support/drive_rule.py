"""Blocks that learn by a local rule, in a plain loop in float64: the engine's calls in its order.

Every block steps by plain gradient descent, so its weights show what it has learned from.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from pipeline.rules.rule import Batch, LocalRule, Place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

LR = 0.1


def draws(step: int, block: int) -> torch.Generator:
    """What a block draws from in a training step; `expand` draws as block -1, tests as step 0."""
    return torch.Generator().manual_seed(1000 * step + block + 1)


class RuleChain:
    """Bodies, one a block, each with an instance of one rule."""

    def __init__(
        self,
        rule: type[LocalRule],
        bodies: Sequence[nn.Module],
        image_shape: tuple[int, ...],
        classes: int,
        **options: Any,
    ) -> None:
        self.rule, self.classes, self.options = rule, classes, options
        self.bodies = [body.double() for body in bodies]
        self.rules: list[LocalRule] = []
        shape = image_shape
        for index, body in enumerate(self.bodies):
            entered = self._with_options(rule.entered_shape, shape, classes, image_shape)
            with torch.no_grad():
                after = tuple(body.eval()(torch.zeros(2, *entered, dtype=torch.float64)).shape[1:])
            place = Place(index, len(bodies), shape, after, classes, image_shape)
            self.rules.append(rule(place, **options).double())
            shape = after

    def train(self, x: Tensor, y: Tensor, step: int) -> list[float | None]:
        """One step of every block; gives their losses."""
        batch = self._expanded(x, y, step, training=True)
        losses = []
        for index, (body, rule) in enumerate(zip(self.bodies, self.rules, strict=True)):
            body.train()
            rule.train()
            generator = draws(step, index)
            x = rule.enter(batch.x, batch, generator)
            h = body(x)
            sent = Batch(h.detach(), y, dict(batch.carry))
            with torch.no_grad():
                rule.leave(sent.x, sent)
                directions = dict(rule.update(body, sent.x, x, batch))
            loss = rule.loss(h, x, batch, generator)
            loss = loss[0] if isinstance(loss, tuple) else loss
            losses.append(None if loss is None else loss.item())
            _descend(body, rule, loss, directions)
            batch = sent
        return losses

    @torch.no_grad()
    def scores(self, x: Tensor, y: Tensor) -> list[Tensor | None]:
        """What each depth predicts."""
        batch = self._expanded(x, y, 0, training=False)
        scores = []
        for index, (body, rule) in enumerate(zip(self.bodies, self.rules, strict=True)):
            body.eval()
            rule.eval()
            batch.x = body(rule.enter(batch.x, batch, draws(0, index)))
            rule.leave(batch.x, batch)
            scores.append(rule.scores(batch.x, batch))
        return scores

    def _expanded(self, x: Tensor, y: Tensor, step: int, *, training: bool) -> Batch:
        given = Batch(x, y, training=training)
        args = (given, self.classes, training, draws(step, -1))
        expanded: Batch = self._with_options(self.rule.expand, *args)
        expanded.training = training
        assert set(expanded.carry) == set(self.rule.carries)
        return expanded

    def _with_options(self, function: Any, *args: Any) -> Any:
        wanted = inspect.signature(function).parameters
        return function(*args, **{k: v for k, v in self.options.items() if k in wanted})


def _descend(
    body: nn.Module, rule: LocalRule, loss: Tensor | None, directions: dict[str, Tensor]
) -> None:
    named = {
        **dict(body.named_parameters()),
        **{f"rule.{k}": p for k, p in rule.named_parameters()},
    }
    by_loss = {name: p for name, p in named.items() if name not in directions}
    if loss is not None:
        gradients = torch.autograd.grad(loss, list(by_loss.values()), allow_unused=True)
        directions |= {k: g for k, g in zip(by_loss, gradients, strict=True) if g is not None}
    with torch.no_grad():
        for name, direction in directions.items():
            named[name] -= LR * direction
