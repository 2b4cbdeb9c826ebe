"""Augmented local learning, against plain functions."""

from __future__ import annotations

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
)
from torch import nn

from pipeline.rules.auglocal import AugLocal, depth_at
from pipeline.rules.rule import Place

IMAGE = (2, 13, 9)


def test_five_steps_on_feature_maps() -> None:
    """13 pixels are halved twice: at the second and third of three layers, at both of two."""
    strides = [(1, 2, 2), (2, 2), (2,)]
    bodies = [nn.Conv2d(2, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))]
    chain = RuleChain(AugLocal, bodies, IMAGE, CLASSES, depth=3, least=1)

    def loss(
        w: dict[str, torch.Tensor], h: torch.Tensor, image: torch.Tensor, y: torch.Tensor, at: int
    ) -> torch.Tensor:
        for layer, stride in enumerate(strides[at]):
            h = hidden_convolution(w, f"rule.auxiliary.{layer}", h, stride)
        last = f"rule.auxiliary.{len(strides[at]) + 1}"
        return cross_entropy(perceptron(w, last, h.mean(dim=(2, 3))), y)

    images = torch.randn(STEPS, 4, *IMAGE, dtype=torch.float64)
    check_five_steps(chain, images, lambda w, x: convolution(w, "body", x), loss)


def test_five_steps_on_vectors() -> None:
    chain = RuleChain(AugLocal, [nn.Linear(9, 8), nn.Linear(8, 6)], (9,), CLASSES, depth=3)
    check_five_steps(
        chain,
        torch.randn(STEPS, 6, 9, dtype=torch.float64),
        lambda w, x: linear(w, "body", x),
        lambda w, h, image, y, at: cross_entropy(perceptron(w, "rule.auxiliary", h), y),
    )
    layers = [sum(isinstance(part, nn.Linear) for part in rule.modules()) for rule in chain.rules]
    assert layers == [4, 2]


@pytest.mark.parametrize(
    ("blocks", "depth", "least", "depths"),
    [
        (1, 4, 1, [4]),
        (2, 4, 1, [4, 1]),
        (4, 4, 1, [4, 3, 2, 1]),
        (3, 4, 1, [4, 3, 1]),
        (6, 3, 1, [3, 3, 2, 2, 1, 1]),
        (3, 2, 2, [2, 2, 2]),
    ],
)
def test_depths_lie_on_a_line(blocks: int, depth: int, least: int, depths: list[int]) -> None:
    places = [Place(index, blocks, (8,), (8,), CLASSES, (8,)) for index in range(blocks)]
    assert [depth_at(place, depth, least) for place in places] == depths


@pytest.mark.parametrize(
    ("side", "strides"), [(4, [1, 1, 1]), (8, [1, 1, 2]), (28, [2, 2, 2]), (99, [2, 2, 2])]
)
def test_maps_shrink_at_evenly_spaced_layers(side: int, strides: list[int]) -> None:
    rule = AugLocal(Place(0, 2, (1, side, side), (2, side, side), CLASSES, (1, side, side)), 3)
    found = [part.stride[0] for part in rule.modules() if isinstance(part, nn.Conv2d)]
    assert found == strides
    assert rule.scores(torch.zeros(2, 2, side, side), None).shape == (2, CLASSES)
