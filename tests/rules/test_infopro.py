"""Information propagation, against plain functions."""

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
from torch.nn import functional as F

from pipeline.rules.auxiliary import Enlarged
from pipeline.rules.infopro import InfoPro
from pipeline.rules.rule import Batch, Place

if TYPE_CHECKING:
    from torch import Tensor

IMAGE = (2, 7, 7)
KEEPS, TELLS = (2.0, 0.5), (0.25, 1.0)


def contrast(z: Tensor, y: Tensor) -> Tensor:
    """The mean over all pairs of a class of -log softmax over all others of their similarity."""
    z = z / z.square().sum(dim=1, keepdim=True).sqrt()
    terms = []
    for i in range(len(y)):
        below = sum(((z[i] @ z[k]) / 0.07).exp() for k in range(len(y)) if k != i)
        positives = [j for j in range(len(y)) if j != i and y[j] == y[i]]
        terms += [-(((z[i] @ z[j]) / 0.07).exp() / below).log() for j in positives]
    return torch.stack(terms).mean()


def enlarged(h: Tensor) -> Tensor:
    """4×4 to 7×7 pixels: the old ones, and means of neighbours in between."""
    for dim in (2, 3):
        halfway = (h.narrow(dim, 0, 3) + h.narrow(dim, 1, 3)) / 2
        both = torch.stack([h.narrow(dim, 0, 3), halfway], dim=dim + 1).flatten(dim, dim + 1)
        h = torch.cat([both, h.narrow(dim, 3, 1)], dim=dim)
    return h


def rebuilt(w: dict[str, Tensor], h: Tensor) -> Tensor:
    return convolution(w, "rule.decoder.2", hidden_convolution(w, "rule.decoder.1", enlarged(h)))


def body(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return convolution(w, "body", x, stride=2 if x.shape[-1] == 7 else 1)


def task(w: dict[str, Tensor], h: Tensor) -> Tensor:
    pooled = hidden_convolution(w, "rule.task.0", h).mean(dim=(2, 3))
    return perceptron(w, "rule.task.2", pooled)


def feature_maps(**options: object) -> RuleChain:
    bodies = [nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 5, 3, padding=1)]
    weights = {"reconstruction": KEEPS, "task": TELLS}
    return RuleChain(InfoPro, bodies, IMAGE, CLASSES, **weights, hidden=6, **options)


def test_five_steps_with_cross_entropy() -> None:
    def loss(w: dict[str, Tensor], h: Tensor, image: Tensor, y: Tensor, at: int) -> Tensor:
        lost = (rebuilt(w, h) - image).square().mean()
        return KEEPS[at] * lost + TELLS[at] * cross_entropy(task(w, h), y)

    images = torch.randn(STEPS, 6, *IMAGE, dtype=torch.float64)
    check_five_steps(feature_maps(), images, body, loss)


def test_five_steps_by_contrast() -> None:
    def loss(w: dict[str, Tensor], h: Tensor, image: Tensor, y: Tensor, at: int) -> Tensor:
        lost = (rebuilt(w, h) - image).square().mean()
        read = linear(w, "rule.readout.linear", window_means(h, 2, 2).detach().flatten(1))
        told = TELLS[at] * contrast(task(w, h), y)
        return KEEPS[at] * lost + told + cross_entropy(read, y)

    images = torch.randn(STEPS, 7, *IMAGE, dtype=torch.float64)
    check_five_steps(feature_maps(surrogate="contrastive"), images, body, loss)


def test_five_steps_on_vectors() -> None:
    """Of three blocks, the one in the middle has the mean of both ends' weights."""
    bodies = [nn.Linear(9, 8), nn.Linear(8, 6), nn.Linear(6, 6)]
    chain = RuleChain(InfoPro, bodies, (9,), CLASSES, reconstruction=[2.0, 0.5], task=[1.0, 3.0])

    def loss(w: dict[str, Tensor], h: Tensor, image: Tensor, y: Tensor, at: int) -> Tensor:
        lost = (linear(w, "rule.decoder.1", h) - image).square().mean()
        told = cross_entropy(perceptron(w, "rule.task", h), y)
        return (2.0, 1.25, 0.5)[at] * lost + (1.0, 2.0, 3.0)[at] * told

    images = torch.randn(STEPS, 6, 9, dtype=torch.float64)
    check_five_steps(chain, images, lambda w, x: linear(w, "body", x), loss)


@pytest.mark.parametrize(("sides", "to"), [((4, 3), (28, 17)), ((1, 2), (8, 8)), ((9, 9), (9, 9))])
def test_enlarging_is_bilinear_interpolation(sides: tuple[int, int], to: tuple[int, int]) -> None:
    h = torch.randn(2, 3, *sides)
    expected = F.interpolate(h, to, mode="bilinear", align_corners=True)
    torch.testing.assert_close(Enlarged(sides, to)(h), expected)


def test_images_are_rebuilt_from_vectors() -> None:
    """A fully connected block after images of any shape."""
    rule = InfoPro(Place(0, 1, (2, 7, 7), (5,), CLASSES, IMAGE))
    image = torch.randn(3, *IMAGE)
    batch = Batch(image, torch.arange(3), {"image": image})
    loss, scores = rule.loss(torch.randn(3, 5), image, batch, torch.Generator())
    assert loss.isfinite()
    assert scores.shape == (3, CLASSES)
