"""Second implementations of what rules compute, as plain as can be, and the check against them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from support.drive_rule import RuleChain

    Weights = dict[str, Tensor]

STEPS = 5
STEP_SIZE = 0.1
CLASSES = 3


def check_five_steps(
    chain: RuleChain,
    images: Tensor,
    body: Callable[[Weights, Tensor], Tensor],
    loss: Callable[[Weights, Tensor, Tensor, Tensor, int], Tensor],
) -> None:
    """That losses and weights of a chain are those of plain functions, in float64.

    Args:
        images: (STEPS, n, …).
        body: weights and what arrives, to the activation.
        loss: weights, activation, images, labels and index of the block, to a scalar.
    """
    weights = [_copied(*parts) for parts in zip(chain.bodies, chain.rules, strict=True)]
    for step, image in enumerate(images, 1):
        y = torch.randint(CLASSES, (len(image),))
        losses = chain.train(image, y, step)
        h = image
        for index, own in enumerate(weights):
            h = body(own, h.detach())
            expected = loss(own, h, image, y, index)
            torch.testing.assert_close(losses[index], expected.item(), rtol=0, atol=1e-10)
            gradients = torch.autograd.grad(expected, list(own.values()))
            with torch.no_grad():
                for weight, gradient in zip(own.values(), gradients, strict=True):
                    weight -= STEP_SIZE * gradient
    for parts, own in zip(zip(chain.bodies, chain.rules, strict=True), weights, strict=True):
        torch.testing.assert_close(_copied(*parts), own, rtol=0, atol=1e-10)


def _copied(body: nn.Module, rule: nn.Module) -> Weights:
    named = [*body.named_parameters(prefix="body"), *rule.named_parameters(prefix="rule")]
    return {name: p.detach().clone().requires_grad_() for name, p in named}


def convolution(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Patch by patch, padded with zeros by half the kernel's size."""
    weight = w[f"{name}.weight"]
    kernel = weight.shape[-1]
    patches = F.unfold(x, kernel, padding=kernel // 2, stride=stride)
    flat = torch.einsum("ok,nkp->nop", weight.flatten(1), patches)
    if f"{name}.bias" in w:
        flat = flat + w[f"{name}.bias"][:, None]
    sides = [(side - 1) // stride + 1 for side in x.shape[2:]]
    return flat.unflatten(2, sides)


def hidden_convolution(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """With batch norm and ReLU."""
    x = convolution(w, f"{name}.0", x, stride)
    centred = x - x.mean(dim=(0, 2, 3), keepdim=True)
    variance = centred.square().mean(dim=(0, 2, 3), keepdim=True)
    gain, bias = (w[f"{name}.1.{which}"].view(1, -1, 1, 1) for which in ("weight", "bias"))
    return (centred / (variance + 1e-5).sqrt() * gain + bias).clamp(min=0)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return torch.einsum("nd,kd->nk", x, w[f"{name}.weight"]) + w[f"{name}.bias"]


def perceptron(w: Weights, name: str, x: Tensor) -> Tensor:
    """Linear layers 1, 3, 5 … with ReLU in between."""
    x = x.flatten(1)
    at = 1
    while f"{name}.{at + 2}.weight" in w:
        x = linear(w, f"{name}.{at}", x).clamp(min=0)
        at += 2
    return linear(w, f"{name}.{at}", x)


def window_means(x: Tensor, height: int, width: int) -> Tensor:
    """Means of windows side by side."""
    return torch.stack(
        [
            torch.stack([part.mean(dim=(2, 3)) for part in band.split(width, dim=3)], dim=2)
            for band in x.split(height, dim=2)
        ],
        dim=2,
    )


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """Mean of log Σ exp(scores) minus the label's score."""
    return (scores.exp().sum(dim=1).log() - scores[torch.arange(len(y)), y]).mean()
