"""Kernels are timed and counted to a kind of work; no clock is asserted."""

from __future__ import annotations

import pytest
import torch

from benchmarks.lib import kernels
from benchmarks.lib.kernels import (
    CONVOLUTIONS,
    KINDS,
    OPTIMIZER,
    OTHERS,
    PRODUCTS,
    KernelClock,
    kind_of,
)

pytestmark = pytest.mark.usefixtures("torch_settings")


class Ticks:
    """Goes on by one second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("convolution", CONVOLUTIONS), ("convolution_backward", CONVOLUTIONS),
        ("addmm", PRODUCTS), ("mm", PRODUCTS), ("_linear_pointwise", PRODUCTS),
        ("native_batch_norm_backward", "batch norm"), ("batch_norm_update_stats", "batch norm"),
        ("leaky_relu_", "activation, pooling"), ("max_pool2d_with_indices", "activation, pooling"),
        ("_to_copy", "copies, casts"), ("clone", "copies, casts"),
        ("_fused_adam_", OPTIMIZER), ("add_", OTHERS), ("_log_softmax", OTHERS),
    ],
)  # fmt: skip
def test_every_kernel_is_of_a_kind(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_the_median_counts_for_all_kernels_of_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ticks = KernelClock(), Ticks()
    monkeypatch.setattr(kernels, "perf_counter", ticks)
    small, large = torch.ones(2, 2), torch.ones(3, 3)
    with clock:
        for x in (small, small, large, small):
            torch.mm(x, x)
            ticks.now += 10.0 * (x is large)  # not while a kernel runs
    found = clock.seconds(steps=2)
    assert found == {**dict.fromkeys(KINDS, 0.0), PRODUCTS: 2.0}


def test_what_an_optimizer_runs_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "perf_counter", Ticks())
    weight = torch.ones(3, requires_grad=True)
    optimizer, clock = torch.optim.SGD([weight], lr=0.5, foreach=False), KernelClock()
    clock.watch(optimizer)
    weight.grad = torch.ones(3)
    with clock:
        optimizer.step()
        weight.detach().exp()
    found = clock.seconds(steps=1)
    assert found[OPTIMIZER] >= 1.0
    assert found[OTHERS] >= 1.0
    assert torch.equal(weight.detach(), torch.full((3,), 0.5))
