"""Mono-Forward against gradients written out by hand, in float64, and what it predicts."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch
from support.drive_rule import LR, RuleChain
from torch import nn

from pipeline.rules.mono_forward import MonoForward
from pipeline.rules.rule import Place

if TYPE_CHECKING:
    from torch import Tensor

STEPS, N, CLASSES = 5, 6, 3
SIZES = (9, 8, 5)


def chain_of(predict: str = "last") -> RuleChain:
    torch.manual_seed(0)
    bodies = [nn.Sequential(nn.Linear(here, there), nn.ReLU()) for here, there in pairwise(SIZES)]
    return RuleChain(MonoForward, bodies, SIZES[:1], CLASSES, predict=predict)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(N, SIZES[0], generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (N,), generator=generator)


def weights_of(chain: RuleChain) -> list[list[Tensor]]:
    """W, b and M of each layer."""
    pairs = zip(chain.bodies, chain.rules, strict=True)
    return [
        [p.detach().clone() for p in (*body.parameters(), *rule.parameters())]
        for body, rule in pairs
    ]


@pytest.mark.parametrize("predict", ["last", "sum"])
def test_five_steps_are_those_of_gradients_by_hand(predict: str) -> None:
    chain = chain_of(predict)
    layers = weights_of(chain)
    for step in range(1, STEPS + 1):
        x, y = batch(step)
        losses = chain.train(x, y, step)
        for index, (w, b, m) in enumerate(layers):
            z = x @ w.T + b
            a = z.clamp(min=0)
            exp = (a @ m.T).exp()
            p = exp / exp.sum(1, keepdim=True)
            assert losses[index] == pytest.approx(
                -sum(p[at, label].log().item() for at, label in enumerate(y)) / N, abs=1e-10
            )
            error = (p - torch.eye(CLASSES, dtype=p.dtype)[y]) / N
            by_z = (error @ m) * (z > 0)
            layers[index] = [
                w - LR * by_z.T @ x,
                b - LR * by_z.sum(0),
                m - LR * error.T @ a,
            ]
            x = a
    for trained, expected in zip(weights_of(chain), layers, strict=True):
        torch.testing.assert_close(trained, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("predict", ["last", "sum"])
def test_scores_are_of_the_last_layer_or_of_all(predict: str) -> None:
    chain = chain_of(predict)
    h, y = batch(1)
    total = torch.zeros(N, CLASSES, dtype=torch.float64)
    for scores, (w, b, m) in zip(chain.scores(h, y), weights_of(chain), strict=True):
        h = (h @ w.T + b).clamp(min=0)
        own = h @ m.T
        total += own
        torch.testing.assert_close(scores, own if predict == "last" else total)


def test_feature_maps_are_projected_flat() -> None:
    chain = RuleChain(MonoForward, [nn.Conv2d(1, 2, 3)], (1, 4, 4), CLASSES)
    (projection,) = chain.rules[0].parameters()
    assert projection.shape == (CLASSES, 2 * 2 * 2)
    x = torch.randn(N, 1, 4, 4, dtype=torch.float64)
    (scores,) = chain.scores(x, torch.zeros(N, dtype=torch.int64))
    torch.testing.assert_close(scores, chain.bodies[0](x).flatten(1) @ projection.T)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="predict: 'first' is not allowed: use one of last, sum"):
        chain_of("first")
    with pytest.raises(ValueError, match="one class for each example"):
        MonoForward(Place(0, 1, (4,), (4,), 0, (4,)))
