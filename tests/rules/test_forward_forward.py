"""Forward-Forward against the paper's two passes, in float64, and what it predicts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from support.drive_rule import LR, RuleChain, draws
from torch import Tensor, nn

from pipeline.rules.forward_forward import ForwardForward
from pipeline.rules.rule import Batch, Place

STEPS, N, PIXELS, CLASSES = 5, 6, 9, 3
OPTIONS: list[dict[str, Any]] = [
    {},
    {"goodness": "sum", "threshold": 5.0},
    {"objective": "symba"},
    {"objective": "symba", "goodness": "sum", "alpha": 0.5},
]


def chain_of(**options: Any) -> RuleChain:
    torch.manual_seed(0)
    sizes = (PIXELS, 8, 7, 5)
    bodies = [
        nn.Sequential(nn.Flatten(), nn.Linear(here, there), nn.ReLU())
        for here, there in pairwise(sizes)
    ]
    return RuleChain(ForwardForward, bodies, (1, 3, 3), CLASSES, **options)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(N, 1, 3, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (N,), generator=generator)


def labelled(image: Tensor, label: int) -> Tensor:
    """(PIXELS,): one image with its label over the first numbers."""
    numbers = image.flatten().tolist()
    told = [max(numbers) if k == label else min(numbers) for k in range(CLASSES)]
    return torch.tensor(told + numbers[CLASSES:], dtype=torch.float64)


def layer(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    length = (x @ x) ** 0.5 / len(x) ** 0.5 + 1e-8
    return (weight @ (x / length) + bias).clamp(min=0)


def goodness(h: Tensor, options: dict[str, Any]) -> Tensor:
    return h @ h if options.get("goodness") == "sum" else h @ h / len(h)


def loss(right: Tensor, wrong: Tensor, options: dict[str, Any]) -> Tensor:
    if options.get("objective") == "symba":
        return torch.log(1 + torch.exp(options.get("alpha", 4.0) * (wrong - right)))
    threshold = options.get("threshold", 2.0)
    positive = 1 / (1 + torch.exp(threshold - right))
    negative = 1 / (1 + torch.exp(threshold - wrong))
    return -torch.log(positive) - torch.log(1 - negative)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_five_steps_are_those_of_two_plain_passes(options: dict[str, Any]) -> None:
    chain = chain_of(**options)
    weights = [[p.detach().clone() for p in body.parameters()] for body in chain.bodies]
    for step in range(1, STEPS + 1):
        x, y = batch(step)
        losses = chain.train(x, y, step)
        shifts = torch.randint(1, CLASSES, (N,), generator=draws(step, -1))
        wrong = (y + shifts) % CLASSES
        positive = [labelled(*pair) for pair in zip(x, y, strict=True)]
        negative = [labelled(*pair) for pair in zip(x, wrong, strict=True)]
        for index, own in enumerate(weights):
            for p in own:
                p.requires_grad_()
            high = [layer(*own, one) for one in positive]
            low = [layer(*own, one) for one in negative]
            total = sum(
                loss(goodness(a, options), goodness(b, options), options)
                for a, b in zip(high, low, strict=True)
            )
            mean = total / N
            assert losses[index] == pytest.approx(mean.item(), abs=1e-10)
            gradients = torch.autograd.grad(mean, own)
            weights[index] = [(p - LR * g).detach() for p, g in zip(own, gradients, strict=True)]
            positive, negative = ([one.detach() for one in ones] for ones in (high, low))
    for body, own in zip(chain.bodies, weights, strict=True):
        torch.testing.assert_close(list(body.parameters()), own, rtol=0, atol=1e-10)


def test_scores_try_every_label_and_sum_all_blocks_but_the_first() -> None:
    chain = chain_of()
    x, y = batch(1)
    by_depth = chain.scores(x, y)
    for at, image in enumerate(x):
        for label in range(CLASSES):
            h = labelled(image, label)
            total = 0.0
            for index, body in enumerate(chain.bodies):
                h = layer(*body.parameters(), h).detach()
                total = goodness(h, {}).item() + (total if index > 1 else 0.0)
                scores = by_depth[index]
                assert scores is not None
                assert scores[at, label].item() == pytest.approx(total, abs=1e-12)


def test_length_says_nothing() -> None:
    rule = chain_of().rules[1]
    x = torch.randn(4, 8, dtype=torch.float64)
    arrived = Batch(x, torch.zeros(2, dtype=torch.int64))
    entered = rule.enter(x, arrived, draws(1, 1))
    torch.testing.assert_close(rule.enter(100 * x, arrived, draws(1, 1)), entered)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "hinge"}, "objective: 'hinge' is not allowed: use one of hinton, symba"),
        ({"goodness": "max"}, "goodness: 'max' is not allowed: use one of mean, sum"),
        ({"threshold": 0}, "threshold: 0 is not allowed: use a number above 0 to 1e"),
        ({"alpha": "4"}, "alpha: '4' is not allowed"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        chain_of(**options)


@pytest.mark.parametrize(
    ("classes", "said"), [(1, "one class for each example"), (10, "10 classes in images of shape")]
)
def test_labels_that_fit_no_image(classes: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ForwardForward(Place(0, 1, (1, 3, 3), (4,), classes, (1, 3, 3)))
