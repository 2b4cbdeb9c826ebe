"""Supervised contrastive learning, against plain functions."""

from __future__ import annotations

from math import exp, log
from typing import TYPE_CHECKING

import pytest
import torch
from support.drive_rule import RuleChain
from support.plain_networks import (
    CLASSES,
    STEPS,
    check_five_steps,
    convolution,
    cross_entropy,
    linear,
    perceptron,
    window_means,
)
from torch import nn

from pipeline.rules.contrastive import Contrastive, attractions
from pipeline.rules.rule import Batch, Place

if TYPE_CHECKING:
    from torch import Tensor

IMAGE = (2, 5, 4)


def contrast(z: Tensor, y: Tensor, temperature: float) -> Tensor:
    """The loss of Khosla et al., example by example, averaged over those with a positive."""
    z = z / z.square().sum(dim=1, keepdim=True).sqrt()
    terms = []
    for i in range(len(y)):
        others = [a for a in range(len(y)) if a != i]
        positives = [p for p in others if y[p] == y[i]]
        if positives:
            below = torch.stack([((z[i] @ z[a]) / temperature).exp() for a in others]).sum()
            shares = [(((z[i] @ z[p]) / temperature).exp() / below).log() for p in positives]
            terms.append(-torch.stack(shares).mean())
    return torch.stack(terms).mean()


def test_five_steps_on_feature_maps() -> None:
    bodies = [nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)]
    chain = RuleChain(Contrastive, bodies, IMAGE, CLASSES, temperature=0.5, hidden=7, projected=6)

    def loss(w: dict[str, Tensor], h: Tensor, image: Tensor, y: Tensor, at: int) -> Tensor:
        means = window_means(h, 3, 2)
        z = perceptron(w, "rule.projection.1", means)
        scores = linear(w, "rule.readout.linear", means.detach().flatten(1))
        return contrast(z, y, 0.5) + cross_entropy(scores, y)

    images = torch.randn(STEPS, 7, *IMAGE, dtype=torch.float64)
    check_five_steps(chain, images, lambda w, x: convolution(w, "body", x), loss)


def test_five_steps_on_vectors() -> None:
    chain = RuleChain(Contrastive, [nn.Linear(9, 8), nn.Linear(8, 6)], (9,), CLASSES)

    def loss(w: dict[str, Tensor], h: Tensor, image: Tensor, y: Tensor, at: int) -> Tensor:
        scores = linear(w, "rule.readout.linear", h.detach())
        return contrast(perceptron(w, "rule.projection.1", h), y, 0.1) + cross_entropy(scores, y)

    images = torch.randn(STEPS, 7, 9, dtype=torch.float64)
    check_five_steps(chain, images, lambda w, x: linear(w, "body", x), loss)


def test_three_examples_by_hand() -> None:
    """Two of a class at right angles, a third of another class near the first."""
    z = torch.tensor([[2.0, 0.0], [0.0, 3.0], [5.0, 0.0]])
    attraction, same = attractions(z, torch.tensor([1, 1, 0]), 0.5)
    expected = torch.zeros(3, 3)
    expected[0, 1] = log(exp(0) / (exp(0) + exp(1 / 0.5)))
    expected[1, 0] = log(exp(0) / (exp(0) + exp(0)))
    torch.testing.assert_close(attraction, expected)
    assert same.tolist() == [[False, True, False], [True, False, False], [False, False, False]]


@pytest.mark.parametrize("y", [[0, 1, 2], [1]], ids=["each of its own class", "one example"])
def test_examples_without_another_of_their_class_teach_nothing(y: list[int]) -> None:
    rule = Contrastive(Place(0, 1, (4,), (4,), CLASSES, (4,)))
    h = torch.randn(len(y), 4, requires_grad=True)
    loss, scores = rule.loss(h, h, Batch(h, torch.tensor(y)), torch.Generator())
    torch.testing.assert_close(loss, cross_entropy(scores, torch.tensor(y)))
    assert not torch.autograd.grad(loss, h)[0].any()


def test_autocast_does_not_reach_similarities() -> None:
    z, y = torch.randn(8, 16), torch.randint(CLASSES, (8,))
    expected, _ = attractions(z, y, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = attractions(z, y, 0.1)
    assert torch.equal(found, expected)
