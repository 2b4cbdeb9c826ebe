"""Tests at every depth: the same numbers in one process, in many, and of the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.run_in_threads import TREE, Job, train_pipelined, train_single

from launch.read_run import TrainedRun, own_examples
from pipeline.network.from_config import network_specs
from pipeline.trained.evaluation import evaluate
from pipeline.trained.network import TrainedNetwork

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")

DATA = {**TREE["data"], "classes": 3}
DENOISERS = {
    "factory": "pipeline.rules.networks:denoisers",
    "kwargs": {"image_shape": [2, 6, 6], "classes": 3, "blocks": 3, "hidden": 8},
}
PATIENT = {"epochs": 9, "patience": 1}
CASES: dict[str, tuple[list[int], dict[str, Any]]] = {
    "predsim": ([0, 1, 2, 3], {"schedule": PATIENT}),
    "sim": ([3], {"loss": {"name": "sim"}}),
    "groups": ([1, 2, 3], {"loss": {"name": "pred"}, "model": {**TREE["model"], "group": 2}}),
    "greedy": ([0, 1, 2, 3], {"schedule": {"epochs": 1, "greedy": True}}),
    "validation": ([0, 1, 2, 3], {"data": {**DATA, "validation": 0.4}}),
    "a rule": ([0, 1, 2, 3], {"loss": {"rule": "DGL"}}),
    "a rule that draws in tests": ([0, 1, 2], {"loss": {"rule": "NoProp"}, "model": DENOISERS}),
    "bf16": ([0, 1, 2, 3], {"precision": "bf16"}),
}
"""The blocks that predict, and what differs from `TREE`."""


@pytest.mark.parametrize("case", CASES)
def test_every_depth_is_tested_the_same_in_a_pipeline_and_afterwards(
    case: str, folder: Callable[[], Path]
) -> None:
    blocks, sections = CASES[case]
    sections = {"data": DATA, **sections}
    single, pipelined = (Job(folder(), 2, **sections, eval_depths=True) for _ in range(2))
    plain = Job(folder(), 2, **sections)
    for job in (single, plain):
        train_single(job)
    train_pipelined(pipelined)
    assert single.store.files == pipelined.store.files == plain.store.files
    assert single.lines() == pipelined.lines()
    part = "validation" if case == "validation" else "test"
    lines = single.lines()
    depths = [line[part].pop("depths") for line in lines]
    assert lines == plain.lines()
    assert [one["block"] for one in depths[-1]] == blocks
    for line, tested in zip(lines, depths, strict=True):
        assert line[part]["error_pct"] == tested[-1]["error_pct"]
        assert tested[-1]["block"] == line.get("learner", blocks[-1])
    found = evaluated(single, lines[-1]["step"])
    assert [{"block": one.block, "error_pct": one.error_pct} for one in found] == depths[-1]


def test_a_resumed_run_tests_every_depth(folder: Callable[[], Path]) -> None:
    whole = Job(folder(), 2, data=DATA, eval_depths=True)
    train_single(whole)
    resumed = Job(folder(), 3, whole.store.states[3], data=DATA, eval_depths=True)
    train_pipelined(resumed)
    assert resumed.lines() == whole.lines()[1:]


def evaluated(job: Job, step: int) -> Any:
    """What the commands say of a checkpoint, by depth; on the share for validation where there is
    one, of data that have a test set beside it."""
    config, facts = job.run.config, job.run.batches.facts
    network = TrainedNetwork(config, network_specs(config, facts), facts, job.store.files[step])
    _, batches = own_examples(TrainedRun(network, (), step))
    if config.data.validation is not None:
        own = (job.run.batches.evaluation(k) for k in range(job.run.batches.evaluation_batches))
        batches = (tuple(map(torch.from_numpy, arrays)) for arrays in own)
    return evaluate(network, batches, by_depth=True).depths
