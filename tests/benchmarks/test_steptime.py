"""Where a step's time goes is measured and shown; no clock is asserted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from benchmarks import steptime
from benchmarks.lib.kernels import CONVOLUTIONS, KINDS, OPTIMIZER, PRODUCTS, KernelClock
from benchmarks.steptime import BETWEEN, WAYS, Timed, findings, measured, table, timed
from pipeline.config.sections import build_config

if TYPE_CHECKING:
    from pipeline.config.sections import Config

pytestmark = pytest.mark.usefixtures("torch_settings")


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


def test_the_table_says_what_share_is_arithmetic() -> None:
    kinds = {**dict.fromkeys((*KINDS, BETWEEN), 1.0), CONVOLUTIONS: 50.0, PRODUCTS: 10.0}
    one = Timed("mlp", "pred", "ours bf16", 80.0, kinds)
    assert Timed(**one.tree()) == one
    for times, said in ((2.345, "2.35"), (None, "–")):
        assert table([replace(one, times_plain=times)]).splitlines()[-1] == (
            f"| MLP 3×1024, MNIST's shape | pred | ours bf16 | {said} | 80.0 | 50.0 | 10.0 | 1.0 "
            "| 1.0 | 1.0 | 1.0 | 1.0 | 1.0 | 75% |"
        )


def test_findings_are_what_was_measured_in_turn() -> None:
    kinds = dict.fromkeys((*KINDS, BETWEEN), 1.0)
    steps = [Timed("mlp", "pred", way, 8.0, kinds, 1.5).tree() for way in WAYS]
    del steps[1]["times_plain"]  # as in older results
    assert findings({"steps": steps}) == [("mlp pred, ours bf16 / plain fp32", "1.50", "", True)]
