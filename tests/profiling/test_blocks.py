"""Every block of a network is timed alone, with what would arrive at it."""

from __future__ import annotations

from typing import Any

import pytest
from support import rules

from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.profiling import blocks

LOSSES: dict[str, dict[str, Any]] = {
    "pred": {"name": "pred"},
    "an output layer, and an image that is carried": {"rule": f"{rules.__name__}:Image"},
    "copies, whole numbers and floats that are carried": {"rule": f"{rules.__name__}:EveryHook"},
    "examples that arrive in another shape": {"rule": "ForwardForward"},
}


@pytest.mark.usefixtures("torch_settings")
@pytest.mark.parametrize("loss", LOSSES)
def test_all_blocks_are_timed(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SECONDS", 0.0)
    tree = {
        "model": {"name": "mlp", "hidden_layers": 2, "hidden": 12, "batch_norm": False},
        "loss": LOSSES[loss],
        "data": {"name": "synthetic", "size": 4, "channels": 1, "classes": 3, "batch_size": 8},
    }
    config = build_config(tree, "test")
    times = blocks.measure_blocks(config, data_facts(config.data), "cpu")
    assert [each.block for each in times] == list(range(len(times)))
    # an output layer is no stage of its own: its block has the time of both
    assert sum(each.learn_s > 0 for each in times) == 2
