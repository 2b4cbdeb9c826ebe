"""Optimizers against torch's own classes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from pipeline.learning.optimizers import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable


def shapes_and_gradients(steps: int = 6) -> tuple[list[Tensor], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (4,), (5, 4, 3, 3)]
    initial = [torch.randn(*shape, generator=generator) for shape in shapes]
    gradients = [
        [torch.randn(*shape, generator=generator) for shape in shapes] for _ in range(steps)
    ]
    return initial, gradients


RATES = [1e-2, 1e-2, 1e-3, 1e-3, 1e-3, 1e-2]  # the learning rate comes with each batch


def torch_result(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> list[Tensor]:
    initial, gradients = shapes_and_gradients()
    parameters = [tensor.clone().requires_grad_() for tensor in initial]
    optimizer = make(parameters)
    for lr, step in zip(RATES, gradients, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def our_result(name: Any, weight_decay: float, momentum: float = 0.9) -> list[Tensor]:
    initial, gradients = shapes_and_gradients()
    parameters = {str(index): tensor.clone() for index, tensor in enumerate(initial)}
    optimizer = make_optimizer(name, parameters, weight_decay=weight_decay, momentum=momentum)
    for lr, step in zip(RATES, gradients, strict=True):
        optimizer.step(step, lr)
    return list(parameters.values())


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_is_torchs(amsgrad: bool, weight_decay: float) -> None:
    ours = our_result("amsgrad" if amsgrad else "adam", weight_decay)
    for fused, rtol, atol in ((True, 0.0, 0.0), (False, 1e-5, 1e-7)):
        make = partial(torch.optim.Adam, amsgrad=amsgrad, weight_decay=weight_decay, fused=fused)
        torch.testing.assert_close(ours, torch_result(make), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["adam", "amsgrad", "sgd"])
def test_a_block_without_parameters_has_nothing_to_update(name: Any) -> None:
    optimizer = make_optimizer(name, {}, weight_decay=0.1, momentum=0.9)
    optimizer.step([], 0.01)
    assert optimizer.state() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_adam_takes_its_rate_from_memory() -> None:
    parameters = {"weight": torch.ones(4, 3, device="cuda")}
    optimizer = make_optimizer("adam", parameters, weight_decay=0.1, momentum=0.9)
    gradient, lr = torch.full((4, 3), 0.5, device="cuda"), torch.zeros((), device="cuda")
    expected = [parameter.cpu().clone() for parameter in parameters.values()]
    plain = torch.optim.Adam(expected, weight_decay=0.1)
    for rate in RATES:
        optimizer.step([gradient], lr.fill_(rate))
        expected[0].grad, plain.param_groups[0]["lr"] = gradient.cpu(), rate
        plain.step()
    torch.testing.assert_close(parameters["weight"].cpu(), expected[0])
    assert optimizer.state()["weight.step"] == len(RATES)


def test_amsgrad_is_not_adam() -> None:
    assert not torch.equal(our_result("adam", 0.0)[0], our_result("amsgrad", 0.0)[0])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum: float, weight_decay: float) -> None:
    ours = our_result("sgd", weight_decay, momentum)
    for fused, rtol, atol in ((True, 0.0, 0.0), (False, 1e-6, 1e-7)):
        make = partial(
            torch.optim.SGD, lr=1.0, momentum=momentum, weight_decay=weight_decay, fused=fused
        )
        torch.testing.assert_close(ours, torch_result(make), rtol=rtol, atol=atol)
