"""The plain loop trains a rule as the engine does, and findings are quotients within rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks.rivals.rule_loop import RuleLoop
from benchmarks.rules import config_text, findings, ways_of
from pipeline.config.config_file import load_config
from pipeline.data.facts import data_facts
from pipeline.learning.build import build_stage
from pipeline.network.from_config import network_specs

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
SMALL = ("model.hidden=12", "data.size=4", "data.batch_size=8", "model.batch_norm=false")


def test_the_loop_learns_what_the_engine_does(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config_text("pred by a user", 2, 1), encoding="utf-8")
    config = load_config(path, SMALL)
    facts = data_facts(config.data)
    loop = RuleLoop(config)
    stage = build_stage(config, facts, range(len(network_specs(config, facts))), CPU)
    stage._preprocess = None  # the loop's batches lie ready
    for layer, rule, block in zip(loop._layers, loop._rules, stage.blocks, strict=True):
        layer.load_state_dict(block.state_dict(), strict=False)
        if rule is not None:
            rule.load_state_dict(block.rule.state_dict())  # type: ignore[union-attr]
    for batch_id in range(1, 4):
        x, labels = torch.randn(8, 1, 4, 4), torch.arange(8) % 10
        losses = loop.step(x, labels)
        stage.training.reset()
        stage.train(x, labels, batch_id=batch_id, lr=config.optimizer.lr, send=lambda *sent: None)
        ours = [tally.loss for tally in stage.training.read()]
        assert losses == pytest.approx(ours, rel=1e-5)


def test_forward_forward_learns_in_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config_text("ForwardForward", 2, 1), encoding="utf-8")
    loop = RuleLoop(load_config(path, (*SMALL, "model.hidden=64")))
    x, labels = torch.randn(8, 1, 4, 4), torch.arange(8) % 10
    losses = [sum(loop.step(x, labels)) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_a_pipeline_is_measured_by_the_loops() -> None:
    result: dict[str, Any] = {
        "rules": {
            "DGL": {
                "loop, 1 thread": [100.0, 100.0, 200.0],
                "loop, 2 threads": [150.0, 150.0, 300.0],
                "single": [110.0, 110.0, 220.0],
                "pipeline 2": [150.0, 140.0, 300.0],
                "pipeline 3": [10.0, 10.0, 10.0],
            },
            "pred by a user": {"single": [85.0, 85.0, 90.0]},
            "pred": {"single": [100.0, 100.0, 100.0]},
        }
    }
    one, both, public = findings(result)
    assert (one.what, one.met) == ("DGL: pipeline 2 to loop, 1 thread", True)
    assert one.found.startswith("1.500 ")
    assert (both.asked, both.met) == ("", True)
    assert (public.asked, public.met) == ("≥ 0.9", False)


def test_pred_is_timed_in_single_mode_alone() -> None:
    assert list(ways_of("pred", 2)) == ["single"]
    assert list(ways_of("DGL", 1)) == ["loop, 1 thread", "single", "pipeline 2", "pipeline 3"]
