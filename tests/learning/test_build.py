"""What a stage says about its device when it is built."""

from __future__ import annotations

import pytest
import torch

from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.learning import build
from pipeline.learning.build import WITHOUT_BF16, build_stage, computes_bf16

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
