"""Runs by local rules: the same bytes in one process and in many, resumed and recovered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import rules
from support.own_data import DATA, FACTORY, floats
from support.processes import digests, launch
from support.run_in_threads import (
    Fate,
    Job,
    check_resumed,
    train_pipelined,
    train_single,
    trained_alike,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")

MLP = {"name": "mlp", "hidden_layers": 3, "hidden": 12, "dropout": 0.2}
EVERY_HOOK = {"rule": f"{rules.__name__}:EveryHook", "options": {"noise": 0.2}}
IMAGE = {"rule": f"{rules.__name__}:Image"}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "every hook": (3, {"model": MLP, "loss": EVERY_HOOK}),
    "every hook, feature maps": (3, {"loss": EVERY_HOOK}),
    "every hook, bf16": (3, {"model": MLP, "loss": EVERY_HOOK, "precision": "bf16"}),
    "every hook, in groups": (2, {"model": {**MLP, "group": 2}, "loss": EVERY_HOOK}),
    "every hook, greedy": (
        3,
        {"model": MLP, "loss": EVERY_HOOK, "schedule": {"epochs": 1, "greedy": True}},
    ),
    "an output layer": (3, {"loss": IMAGE}),
    "an output layer, bf16": (3, {"loss": IMAGE, "precision": "bf16"}),
    "residual": (
        3,
        {"model": {"name": "resnet18", "feat_mult": 0.05}, "loss": IMAGE},
    ),
}
"""How many stages, and what differs from `TREE`."""


@pytest.mark.parametrize("case", CASES)
def test_rules_train_the_same_in_a_pipeline(case: str, folder: Callable[[], Path]) -> None:
    stages, sections = CASES[case]
    trained_alike(folder, stages, **sections)


@pytest.mark.parametrize("case", ["every hook", "an output layer", "every hook, greedy"])
def test_a_run_by_a_rule_goes_on_from_a_checkpoint(case: str, folder: Callable[[], Path]) -> None:
    _, sections = CASES[case]
    whole = Job(folder(), 3, **sections, checkpoint_every_steps=1)
    train_single(whole)
    for step in (1, 3):
        check_resumed(whole, folder, step, 2, **sections)


def test_a_lost_stage_of_a_run_by_a_rule_is_replaced(folder: Callable[[], Path]) -> None:
    _, sections = CASES["every hook"]
    undisturbed = Job(folder(), 3, **sections, checkpoint_every_steps=2)
    train_single(undisturbed)
    last = max(undisturbed.store.files)
    for stage in range(3):
        job = Job(folder(), 3, **sections, checkpoint_every_steps=2)
        train_pipelined(job, {stage: Fate(20)})
        assert job.store.files[last] == undisturbed.store.files[last]
        assert any("begins again" in note or "back to step" in note for note in job.notes)


CONFIG = """\
model: {name: mlp, hidden_layers: 2, hidden: 12}
loss: {rule: RULE}
data: {name: digits, batch_size: 32, train_limit: 64, test_limit: 20}
schedule: {epochs: 1}
runtime: {keep_checkpoints: 9}
"""


@pytest.mark.parametrize("rule", ["Image", "EveryHook"])
def test_a_run_by_a_rule_is_resumed_by_the_command(rule: str, tmp_path: Path) -> None:
    """Its blocks are looked at as a user's, but for an output layer beside them."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace("RULE", f'"{rules.__name__}:{rule}"'), encoding="utf-8")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert launch(config, whole, single=True, overrides=("schedule.epochs=2",)) == 0
    assert launch(config, parts, single=True) == 0
    again = {"single": True, "resume": True, "overrides": ("schedule.epochs=2",)}
    assert launch(None, parts, **again) == 0
    assert digests(parts) == digests(whole)


def numbers() -> tuple[np.ndarray, np.ndarray]:
    x = floats(40, (5,))
    return x, x.sum(axis=1).astype(np.float32)


DATA["sums"] = numbers


def test_a_rule_predicts_numbers(folder: Callable[[], Path]) -> None:
    """A test counts the squared error of its scores, whatever its loss is."""
    data = {
        "factory": FACTORY, "kwargs": {"data": "sums"}, "batch_size": 8, "validation": 0.25,
    }  # fmt: skip
    loss = {"rule": f"{rules.__name__}:Numbers"}
    sections = {"model": {"name": "mlp", "hidden_layers": 2, "hidden": 8}, "loss": loss}
    single = trained_alike(folder, 2, data=data, **sections)
    tested = [line["validation"] for line in single.lines()]
    assert all(line["error_pct"] is None and line["loss"] > 0 for line in tested)
