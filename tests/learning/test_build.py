"""What a stage says about its device when it is built; which optimizer its blocks get."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.config.recipe import OptimizerConfig
from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.learning import build
from pipeline.learning.build import WITHOUT_BF16, block_optimizer, build_stage, computes_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "has_bf16", "blocks", "remarks"),
    [
        ("bf16", False, (0, 1), [WITHOUT_BF16]),
        ("bf16", False, (1, 2), []),  # the first stage says it for all
        ("bf16", True, (0, 1), []),
        ("fp32", False, (0, 1), []),
    ],
)
def test_it_is_said_once_that_a_device_has_no_bf16(
    precision: str,
    has_bf16: bool,
    blocks: tuple[int, ...],
    remarks: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "computes_bf16", lambda device: has_bf16)
    tree = {
        "model": {"name": "mlp", "hidden_layers": 2, "hidden": 8},
        "data": {"name": "synthetic", "size": 4},
        "loss": {"name": "pred"},
        "runtime": {"precision": precision},
    }
    config = build_config(tree, "a test")
    stage = build_stage(config, data_facts(config.data), blocks, CPU)
    assert stage.take_remarks() == remarks


@pytest.mark.parametrize("has_bf16", [True, False])
def test_of_a_processor_its_library_is_asked(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    assert computes_bf16(CPU) is has_bf16


def test_other_devices_are_taken_at_their_word() -> None:
    assert computes_bf16(torch.device("meta"))


# --- the optimizer of a block -------------------------------------------------------------


def after_a_step(block: int, gradient: float, lr: float, **settings: Any) -> float:
    """A weight of 1, at first, of a block that learns by plain gradient descent."""
    plain = OptimizerConfig.model_validate({"name": "sgd", "momentum": 0.0, "lr": 0.5, **settings})
    weight = torch.ones(1, dtype=torch.float64)
    optimizer = block_optimizer(plain, block, None, {"weight": weight})
    optimizer.step([torch.full_like(weight, gradient)], lr)
    return weight.item()


def test_a_block_learns_at_its_own_rate_and_weight_decay_which_the_schedule_scales() -> None:
    own = {"weight_decay": 0.1, "blocks": {0: {"lr": 2.0}, 1: {"weight_decay": 0.0}}}
    half = 0.25  # the common rate, halved by a milestone
    assert after_a_step(0, 1.0, half, **own) == pytest.approx(1 - 1.0 * 1.1)
    assert after_a_step(1, 1.0, half, **own) == pytest.approx(1 - 0.25 * 1.0)
    assert after_a_step(2, 1.0, half, **own) == pytest.approx(1 - 0.25 * 1.1)


def test_what_a_block_learns_from_is_clipped_before_its_rate_and_weight_decay_count() -> None:
    own = {"clip_norm": 0.5, "weight_decay": 0.1, "blocks": {0: {"lr": 1.0}}}
    assert after_a_step(0, 3.0, 0.5, **own) == pytest.approx(1 - 1.0 * 0.6)
    assert after_a_step(1, 0.25, 0.5, **own) == pytest.approx(1 - 0.5 * 0.35)
