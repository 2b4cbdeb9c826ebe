"""SoftHebb against its plasticity, neuron by neuron in float64, dense and on feature maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.drive_rule import LR, RuleChain
from torch import nn
from torch.nn import functional as F

from pipeline.rules.networks import Triangle, hebbian
from pipeline.rules.soft_hebb import SoftHebb

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

STEPS, N, CLASSES = 5, 6, 3
FLAT, MAPS = (9,), (2, 5, 4)


def dense() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(here, there, bias=False), Triangle(1.5))
        for here, there in ((9, 6), (6, 5))
    ]


def convolutions() -> list[nn.Module]:
    torch.manual_seed(0)
    first = nn.Conv2d(2, 6, 3, padding=(1, 2), stride=(1, 2), dilation=(2, 1), bias=False)
    return [nn.Sequential(first, Triangle(1.5)), nn.Conv2d(6, 4, 1, bias=False)]


def batch(step: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(N, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (N,), generator=generator)


def standardised(x: Tensor) -> Tensor:
    over = [axis for axis in range(x.dim()) if axis != 1]
    centred = x - x.mean(over, keepdim=True)
    return centred / ((centred**2).mean(over, keepdim=True) + 1e-5) ** 0.5


def patches_of(body: nn.Module, x: Tensor) -> Tensor:
    """(positions, numbers that a neuron sees)."""
    layer = body[0] if isinstance(body, nn.Sequential) else body
    if isinstance(layer, nn.Linear):
        return x
    how = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    columns = F.unfold(x, *how)  # type: ignore[arg-type]
    return columns.transpose(1, 2).flatten(0, 1)


def learned(weight: Tensor, patches: Tensor, temperature: float, power: float) -> Tensor:
    """The layer's weight after a step, rows of neurons, computed for each pair."""
    change = torch.zeros_like(weight)
    for x in patches:
        u = [float(w @ x) for w in weight]
        exp = [torch.tensor(each / temperature, dtype=torch.float64).exp() for each in u]
        for k, w in enumerate(weight):
            y = exp[k] / sum(exp)
            sign = 1 if u[k] == max(u) else -1
            change[k] += sign * y * (x - u[k] * w)
    rates = torch.stack([abs((w @ w) ** 0.5 - 1) ** power for w in weight])
    return weight + LR * rates[:, None] * change / len(patches)


@pytest.mark.parametrize(("make", "shape"), [(dense, FLAT), (convolutions, MAPS)])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.4, "power": 0}])
def test_five_steps_are_those_of_its_plasticity(
    make: Callable[[], list[nn.Module]], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    chain = RuleChain(SoftHebb, make(), shape, CLASSES, **options)
    temperature, power = options.get("temperature", 1.0), options.get("power", 0.5)
    weights = [next(body.parameters()).detach().clone() for body in chain.bodies]
    readouts = [[p.detach().clone() for p in rule.parameters()] for rule in chain.rules]
    for step in range(1, STEPS + 1):
        x, y = batch(step, shape)
        losses = chain.train(x, y, step)
        for index, body in enumerate(chain.bodies):
            x = standardised(x)
            own = weights[index]
            patches = patches_of(body, x)
            u = patches @ own.flatten(1).T
            h = u if isinstance(body, nn.Conv2d) else (u - u.mean(1, keepdim=True)).clamp(0) ** 1.5
            if x.dim() == 4:
                side = chain.rules[index].place.shape[1:]
                h = h.unflatten(0, (N, *side)).movedim(-1, 1)
            loss, readouts[index] = read_out(readouts[index], h, y)
            assert losses[index] == pytest.approx(loss, abs=1e-10)
            weights[index] = learned(own.flatten(1), patches, temperature, power).view_as(own)
            x = h
    for body, rule, weight, readout in zip(
        chain.bodies, chain.rules, weights, readouts, strict=True
    ):
        torch.testing.assert_close(next(body.parameters()).data, weight, rtol=0, atol=1e-10)
        torch.testing.assert_close(list(rule.parameters()), readout, rtol=0, atol=1e-10)


def read_out(parameters: list[Tensor], h: Tensor, y: Tensor) -> tuple[float, list[Tensor]]:
    """Loss and new parameters of the classifier beside a block, which averages maps to 2 × 2."""
    if h.dim() == 4:
        height, width = (-(-side // 2) for side in h.shape[2:])
        bands = [part.split(width, 3) for part in h.split(height, 2)]
        quarters = [part.mean((2, 3)) for band in bands for part in band]
        h = torch.stack(quarters, 2).flatten(1)
    weight, bias = parameters
    exp = (h @ weight.T + bias).exp()
    p = exp / exp.sum(1, keepdim=True)
    error = (p - torch.eye(CLASSES, dtype=p.dtype)[y]) / len(y)
    loss = -p[range(len(y)), y].log().mean().item()
    return loss, [weight - LR * error.T @ h, bias - LR * error.sum(0)]


def test_the_layer_has_an_optimizer_of_its_own() -> None:
    (rule, _) = RuleChain(SoftHebb, dense(), FLAT, CLASSES, lr=0.02).rules
    assert rule.layer_optimizer is not None
    assert (rule.layer_optimizer.name, rule.layer_optimizer.lr) == ("sgd", 0.02)
    assert rule.rule_optimizer is None


def test_in_tests_running_statistics_standardise() -> None:
    chain = RuleChain(SoftHebb, dense(), FLAT, CLASSES)
    x, y = batch(1, FLAT)
    chain.train(100 + x, y, 1)
    alone, together = (chain.scores(100 + x[:n], y[:n])[0] for n in (1, len(y)))
    # but for the rounding of products, which depends on their shapes and on the processor
    torch.testing.assert_close(together[:1], alone, rtol=1e-9, atol=1e-9)  # type: ignore[index]


@pytest.mark.parametrize(
    "body",
    [
        nn.Linear(9, 4),
        nn.Sequential(nn.Linear(9, 4, bias=False), nn.Linear(4, 4, bias=False)),
        nn.Sequential(nn.Linear(9, 4, bias=False), nn.BatchNorm1d(4)),
    ],
    ids=["bias", "two", "norm"],
)
def test_blocks_that_it_cannot_teach(body: nn.Module) -> None:
    chain = RuleChain(SoftHebb, [body], FLAT, CLASSES)
    with pytest.raises(ValueError, match="one linear or convolutional layer without bias"):
        chain.train(*batch(1, FLAT), 1)


@pytest.mark.parametrize("how", [{"groups": 2}, {"padding": "same"}, {"padding_mode": "circular"}])
def test_convolutions_that_it_cannot_teach(how: dict[str, Any]) -> None:
    chain = RuleChain(SoftHebb, [nn.Conv2d(2, 4, 3, bias=False, **how)], MAPS, CLASSES)
    with pytest.raises(ValueError, match="one group, padded with a number of zeros"):
        chain.train(*batch(1, MAPS), 1)


@pytest.mark.parametrize("name", ["lr", "temperature", "power"])
def test_bad_options(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: -1 is not allowed"):
        RuleChain(SoftHebb, dense(), FLAT, CLASSES, **{name: -1})


def test_its_network() -> None:
    network = hebbian((1, 8, 8), 10, channels=[96], hidden=[256], radius=3.0)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    for layer in (network[0], network[4]):
        norms = layer.weight.flatten(1).norm(dim=1)
        assert norms.mean().item() == pytest.approx(3.0, rel=0.05)
        assert layer.bias is None


def test_triangle() -> None:
    u = torch.tensor([[4.0, 1.0, -2.0]])  # the mean is 1
    assert Triangle(2.0)(u).tolist() == [[9.0, 0.0, 0.0]]
