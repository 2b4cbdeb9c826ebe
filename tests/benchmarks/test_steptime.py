"""Kernels are timed, counted to a kind of work, and shown; no clock is asserted."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from time import sleep
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks import steptime
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
from benchmarks.lib.turns import taken_in_turn, times_as_fast
from benchmarks.steptime import BETWEEN, WAYS, Timed, measured, table, timed
from pipeline.config.sections import build_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config.sections import Config

pytestmark = pytest.mark.usefixtures("torch_settings", "one_thread")


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


def small(precision: str) -> Config:
    tree = {
        "model": {"name": "vgg", "layers": [4, "M"], "hidden": 8, "dropout": 0.2},
        "data": {"name": "synthetic", "size": 8, "channels": 3, "batch_size": 8},
        "loss": {"name": "predsim"},
        "runtime": {"precision": precision},
    }
    return build_config(tree, "a test")


def test_both_ways_to_train_can_be_timed() -> None:
    for step, clock in (
        (steptime._ours(small("bf16")), KernelClock()),
        (steptime._plain(small("fp32"), plain := KernelClock()), plain),
    ):
        step_ms, kinds_ms = timed(step, clock, 0.01)
        assert step_ms > 0
        assert set(kinds_ms) == {*KINDS, BETWEEN}
        assert min(kinds_ms[kind] for kind in (CONVOLUTIONS, PRODUCTS, OPTIMIZER)) > 0


def test_the_ways_take_turns_and_the_round_with_the_median_step_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    def apart(network: str, loss: str, way: str, seconds: float) -> Timed:
        order.append(way)
        ms, products_ms = [(30.0, 3.0), (10.0, 6.0), (20.0, 9.0)][(len(order) - 1) // len(WAYS)]
        kinds = {**dict.fromkeys(KINDS, 0.0), PRODUCTS: products_ms, BETWEEN: ms - products_ms}
        return Timed(network, loss, way, ms, kinds)

    def side_by_side(network: str, loss: str, seconds: float) -> dict[str, float]:
        assert seconds == 9.0
        return {way: float(number) for number, way in enumerate(WAYS, 1)}

    monkeypatch.setattr(steptime, "_apart", apart)
    monkeypatch.setattr(steptime, "_side_by_side", side_by_side)
    found = measured("mlp", "pred", rounds=3, seconds=1.0)
    assert order == 3 * list(WAYS)
    assert [(one.way, one.step_ms, one.kinds_ms[PRODUCTS], one.times_plain) for one in found] == [
        (way, 20.0, 9.0, float(number)) for number, way in enumerate(WAYS, 1)
    ]
    assert all(sum(one.kinds_ms.values()) == one.step_ms for one in found)


def pausing(pause_s: float) -> Callable[[], object]:
    return partial(sleep, pause_s)


def failing() -> Callable[[], object]:
    raise ValueError("as it should")


def test_steps_are_taken_one_by_one_in_turn() -> None:
    makers = {"long": partial(pausing, 0.02), "short": partial(pausing, 0.001)}
    took = taken_in_turn(makers, seconds=0.05)
    assert 1 <= len(took["long"]) == len(took["short"]) < 10
    assert min(took["long"]) >= 0.02
    assert min(took["short"]) >= 0.001


def test_a_process_that_fails_ends_the_measurement() -> None:
    with pytest.raises(BrokenProcessPool):
        taken_in_turn({"fails": failing}, seconds=0.05)


def test_quotients_are_those_within_rounds() -> None:
    took = {"plain": [2.0, 8.0, 3.0], "ours": [1.0, 2.0, 3.0]}
    assert times_as_fast(took, "plain") == {"plain": 1.0, "ours": 2.0}


def test_the_table_says_what_share_is_arithmetic() -> None:
    kinds = {**dict.fromkeys((*KINDS, BETWEEN), 1.0), CONVOLUTIONS: 50.0, PRODUCTS: 10.0}
    one = Timed("mlp", "pred", "ours bf16", 80.0, kinds)
    assert Timed(**one.tree()) == one
    for times, said in ((2.345, "2.35"), (None, "–")):
        assert table([replace(one, times_plain=times)]).splitlines()[-1] == (
            f"| MLP 3×1024, MNIST's shape | pred | ours bf16 | {said} | 80.0 | 50.0 | 10.0 | 1.0 "
            "| 1.0 | 1.0 | 1.0 | 1.0 | 1.0 | 75% |"
        )
