"""Decoupled greedy learning, against plain functions."""

from __future__ import annotations

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
    hidden_convolution,
    linear,
    perceptron,
    window_means,
)
from torch import nn

from pipeline.rules.dgl import DGL

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.plain_networks import Weights
    from torch import Tensor

IMAGE = (2, 9, 6)


def cnn(w: Weights, h: Tensor) -> Tensor:
    return perceptron(
        w, "rule.auxiliary.2", window_means(hidden_convolution(w, "rule.auxiliary.0", h), 5, 3)
    )


def mlp(w: Weights, h: Tensor) -> Tensor:
    return perceptron(w, "rule.auxiliary.1", window_means(h, 5, 3))


def mlp_sr(w: Weights, h: Tensor) -> Tensor:
    h = window_means(h, 4, 3)  # a quarter of 9 pixels; no less than 2 of 6
    for layer in (1, 2, 3):
        h = hidden_convolution(w, f"rule.auxiliary.{layer}", h)
    return perceptron(w, "rule.auxiliary.5", window_means(h, 2, 1))


@pytest.mark.parametrize(("name", "scores"), [("cnn", cnn), ("mlp", mlp), ("mlp-sr", mlp_sr)])
def test_five_steps_on_feature_maps(name: str, scores: Callable[[Weights, Tensor], Tensor]) -> None:
    bodies = [nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)]
    chain = RuleChain(DGL, bodies, IMAGE, CLASSES, auxiliary=name, hidden=7)
    check_five_steps(
        chain,
        torch.randn(STEPS, 6, *IMAGE, dtype=torch.float64),
        lambda w, x: convolution(w, "body", x),
        lambda w, h, image, y, index: cross_entropy(scores(w, h), y),
    )


@pytest.mark.parametrize(("name", "layers"), [("cnn", 2), ("mlp", 3), ("mlp-sr", 3)])
def test_five_steps_on_vectors(name: str, layers: int) -> None:
    chain = RuleChain(DGL, [nn.Linear(9, 8), nn.Linear(8, 6)], (9,), CLASSES, auxiliary=name)
    check_five_steps(
        chain,
        torch.randn(STEPS, 6, 9, dtype=torch.float64),
        lambda w, x: linear(w, "body", x),
        lambda w, h, image, y, index: cross_entropy(perceptron(w, "rule.auxiliary.1", h), y),
    )
    assert sum(isinstance(part, nn.Linear) for part in chain.rules[0].modules()) == layers
