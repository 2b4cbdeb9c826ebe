"""Optimizers against torch's own classes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from pipeline.learning.optimizers import Clipped, ParameterGroup, ParameterGroups, make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.learning.optimizers import Optimizer


def shapes_and_gradients(
    steps: int = 6, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (4,), (5, 4, 3, 3)]

    def drawn() -> list[Tensor]:
        return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]

    return drawn(), [drawn() for _ in range(steps)]


RATES = [1e-2, 1e-2, 1e-3, 1e-3, 1e-3, 1e-2]  # the learning rate comes with each batch


def torch_result(
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    dtype: torch.dtype = torch.float32,
    clip_norm: float | None = None,
) -> list[Tensor]:
    initial, gradients = shapes_and_gradients(dtype=dtype)
    parameters = [tensor.clone().requires_grad_() for tensor in initial]
    optimizer = make(parameters)
    for lr, step in zip(RATES, gradients, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def our_result(
    name: Any,
    weight_decay: float,
    momentum: float = 0.9,
    *,
    nesterov: bool = False,
    dtype: torch.dtype = torch.float32,
    clip_norm: float | None = None,
) -> list[Tensor]:
    initial, gradients = shapes_and_gradients(dtype=dtype)
    parameters = {str(index): tensor.clone() for index, tensor in enumerate(initial)}
    optimizer = make_optimizer(
        name, parameters, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov
    )
    if clip_norm is not None:
        optimizer = Clipped(optimizer, clip_norm)
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


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamw", "sgd"])
def test_a_block_without_parameters_has_nothing_to_update(name: Any) -> None:
    optimizer = Clipped(make_optimizer(name, {}, weight_decay=0.1, momentum=0.9), 1.0)
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


EXACTLY = {"rtol": 1e-14, "atol": 1e-14}
"""Of float64: rounded apart at most."""


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_decays_weights_apart_from_the_gradient_as_torchs(weight_decay: float) -> None:
    ours = our_result("adamw", weight_decay, dtype=torch.float64)
    make = partial(torch.optim.AdamW, weight_decay=weight_decay, foreach=False)
    torch.testing.assert_close(ours, torch_result(make, torch.float64), **EXACTLY)
    assert torch.equal(ours[0], our_result("adam", weight_decay, dtype=torch.float64)[0]) is (
        weight_decay == 0
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_nesterov_momentum_is_torchs(weight_decay: float) -> None:
    ours = our_result("sgd", weight_decay, nesterov=True, dtype=torch.float64)
    make = partial(torch.optim.SGD, lr=1.0, momentum=0.9, weight_decay=weight_decay, nesterov=True)
    torch.testing.assert_close(ours, torch_result(make, torch.float64), **EXACTLY)
    assert not torch.equal(ours[0], our_result("sgd", weight_decay, dtype=torch.float64)[0])


# --- clipped ------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0.5, 1e6])  # gradients here have a norm of about 14
def test_gradients_are_clipped_by_their_common_norm_as_torchs(most: float) -> None:
    ours = our_result("sgd", 0.1, dtype=torch.float64, clip_norm=most)
    make = partial(torch.optim.SGD, lr=1.0, momentum=0.9, weight_decay=0.1)
    torch.testing.assert_close(ours, torch_result(make, torch.float64, most), **EXACTLY)
    unclipped = our_result("sgd", 0.1, dtype=torch.float64)
    assert torch.equal(ours[0], unclipped[0]) is (most == 1e6)


def test_clipping_leaves_the_gradients_themselves_and_missing_ones_as_they_are() -> None:
    weights = {name: torch.zeros(2) for name in "abc"}
    optimizer = Clipped(make_optimizer("sgd", weights, weight_decay=0.0, momentum=0.0), 1.0)
    shared = torch.tensor([3.0, 4.0])  # as of two weights whose sum is used
    optimizer.step([shared, None, shared], 1.0)
    assert shared.tolist() == [3.0, 4.0]
    clipped = (shared / 50**0.5).tolist()
    assert weights["a"].tolist() == weights["c"].tolist() == pytest.approx([-x for x in clipped])
    assert weights["b"].tolist() == [0.0, 0.0]


def test_gradients_that_are_not_finite_stay_so_for_the_check_to_find() -> None:
    weight = torch.ones(2)
    optimizer = Clipped(make_optimizer("sgd", {"a": weight}, weight_decay=0.0, momentum=0.0), 1.0)
    optimizer.step([torch.tensor([torch.inf, 1.0])], 1.0)
    assert weight.isnan().any()


# --- parts --------------------------------------------------------------------------------


def made(name: Any, weights: dict[str, Tensor]) -> Optimizer:
    return make_optimizer(name, weights, weight_decay=0.1, momentum=0.9)


def parted(weights: dict[str, Tensor], *parts: tuple[Any, str, float]) -> ParameterGroups:
    """One part for each (optimizer, names of one letter each, factor)."""
    return ParameterGroups(
        weights,
        [
            ParameterGroup(names, made(name, {each: weights[each] for each in names}), factor)
            for name, names, factor in parts
        ],
    )


def test_each_part_learns_as_if_it_were_alone_at_its_own_rate() -> None:
    initial, gradients = shapes_and_gradients(dtype=torch.float64)
    weights = {name: tensor.clone() for name, tensor in zip("abc", initial, strict=True)}
    alone = {name: tensor.clone() for name, tensor in zip("abc", initial, strict=True)}
    together = parted(weights, ("sgd", "ca", 2.0), ("adamw", "b", 0.5))
    adamw, sgd = made("adamw", {"b": alone["b"]}), made("sgd", {n: alone[n] for n in "ac"})
    for lr, (a, b, c) in zip(RATES, gradients, strict=True):
        together.step([a, b, c], lr)
        sgd.step([a, c], 2.0 * lr)
        adamw.step([b], 0.5 * lr)
    assert all(torch.equal(weights[name], alone[name]) for name in "abc")
    expected = {**sgd.state(), **adamw.state()}
    assert together.state().keys() == expected.keys() >= {"a.momentum", "b.exp_avg"}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in together.state().items())


def test_a_part_without_a_gradient_keeps_its_state() -> None:
    weights = {"a": torch.ones(2), "b": torch.ones(2)}
    together = parted(weights, ("adam", "a", 1.0), ("adam", "b", 1.0))
    together.step([None, torch.ones(2)], 0.1)
    assert weights["a"].tolist() == [1.0, 1.0]
    assert [together.state()[f"{name}.step"] for name in "ab"] == [0, 1]


def test_parts_hold_live_state_and_release_it() -> None:
    weights = {"a": torch.ones(2), "b": torch.ones(2)}
    together = Clipped(parted(weights, ("sgd", "a", 1.0), ("sgd", "b", 1.0)), 100.0)
    together.hold()
    live = together.state()
    together.step([torch.ones(2), torch.ones(2)], 0.1)
    assert live["a.momentum"].tolist() == pytest.approx([1.1, 1.1])
    together.release()
    assert together.state()["a.momentum"].tolist() == [0.0, 0.0]


def test_every_parameter_is_of_one_part() -> None:
    weights = {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(AssertionError, match=r"no optimizer has \['b'\]"):
        parted(weights, ("sgd", "a", 1.0))
    with pytest.raises(KeyError):
        parted(weights, ("sgd", "ab", 1.0), ("sgd", "b", 1.0))
