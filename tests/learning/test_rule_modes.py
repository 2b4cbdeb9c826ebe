"""Modules of a rule, such as a batch norm, are in training only where its block learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.learning.build import build_stage

CPU = torch.device("cpu")
TREE: dict[str, Any] = {
    "model": {
        "factory": "pipeline.rules.networks:hebbian",
        "kwargs": {"image_shape": [1, 4, 4], "classes": 3, "hidden": [6, 5]},
    },
    "loss": {"rule": "SoftHebb"},
    "data": {"name": "synthetic", "size": 4, "channels": 1, "classes": 3},
}


@pytest.mark.parametrize(
    ("how", "changed"), [("test", set()), ("training", {0, 1}), ("greedy", {1})]
)
def test_statistics_of_a_rule_change_where_its_block_learns(how: str, changed: set[int]) -> None:
    config = build_config(TREE, "test")
    stage = build_stage(config, data_facts(config.data), [0, 1, 2], CPU)
    rules: list[Any] = [block.rule for block in stage.blocks[:2]]
    before = [rule.norm.running_mean.clone() for rule in rules]
    x = torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8)
    given = (x, torch.arange(8) % 3)
    if how == "test":
        stage.evaluate(*given, send=lambda *passed: None)
    else:
        learner = 1 if how == "greedy" else None
        stage.train(*given, batch_id=1, lr=0.1, send=lambda *passed: None, learner=learner)
    after = [rule.norm.running_mean for rule in rules]
    assert {at for at in (0, 1) if not torch.equal(before[at], after[at])} == changed
