"""Depth costs single mode nothing; what is measured is what a stage takes in training."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import torch

from benchmarks.memory import (
    WAYS,
    arriving,
    checkpointed,
    configured,
    findings,
    growths,
    largest_stage,
    marking_optimizer,
    peaks_in,
    second_step,
    table,
)
from benchmarks.rivals.checkpointed import CheckpointedNetwork
from pipeline.data.facts import data_facts
from pipeline.device.meter import Meter
from pipeline.learning.build import build_stage, computes_bf16
from pipeline.network.from_config import network_specs
from pipeline.schedule.items import TrainBatch
from pipeline.worker.stage_runner import StageRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.lib.allocations import Peaks
    from pipeline.schedule.items import Item

    Queue: TypeAlias = deque[tuple[int, Item, tuple[Tensor, ...]]]


single, global_backprop = WAYS["single"], WAYS["global"]
CPU = torch.device("cpu")
BATCH = 32


def tiny_mlp(layers: int) -> dict[str, Any]:
    return {
        "model": {"name": "mlp", "hidden_layers": layers, "hidden": 64, "dropout": 0.1},
        "data": {"name": "synthetic", "channels": 1, "size": 8},
    }


TINY_VGG: dict[str, Any] = {
    "model": {"name": "vgg", "layers": [8, 8, "M", 16], "hidden": 32, "dropout": 0.1},
    "data": {"name": "synthetic", "channels": 3, "size": 8},
}


def test_single_modes_peak_does_not_grow_with_depth() -> None:
    shallow, deep = (single(tiny_mlp(layers), BATCH, CPU) for layers in (3, 9))
    assert deep.total == pytest.approx(shallow.total, rel=0.05)
    assert deep.activations == pytest.approx(shallow.activations, rel=0.05)


def test_global_backprops_peak_does() -> None:
    shallow, deep = (global_backprop(tiny_mlp(layers), BATCH, CPU) for layers in (3, 9))
    assert deep.activations > 2 * shallow.activations
    assert deep.total > 2 * shallow.total


@pytest.mark.skipif(
    not computes_bf16(CPU), reason="no instructions for bf16: PyTorch keeps numbers of both widths"
)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_in_bf16_activations_take_less(way: Callable[..., Peaks]) -> None:
    wide, narrow = (
        way({**TINY_VGG, "runtime": {"precision": precision}}, BATCH, CPU)
        for precision in ("fp32", "bf16")
    )
    assert narrow.activations < 0.8 * wide.activations


def test_checkpointing_keeps_fewer_activations() -> None:
    plain, less = (way(tiny_mlp(16), BATCH, CPU) for way in (global_backprop, checkpointed))
    assert less.activations < 0.7 * plain.activations


def test_a_plain_network_in_one_segment_keeps_what_global_backprop_does() -> None:
    """So that the two are compared for their checkpoints, and nothing else."""
    config = configured(TINY_VGG, "glob", BATCH)
    facts = data_facts(config.data)
    network = CheckpointedNetwork(network_specs(config, facts), marking_optimizer, CPU, 1)

    def step(batch_id: int, images: int) -> None:
        network.train(*arriving(facts.shape, images, CPU, torch.uint8), lr=1e-4)

    plain, ours = second_step(step, BATCH, CPU), global_backprop(TINY_VGG, BATCH, CPU)
    assert plain.activations == pytest.approx(ours.activations, rel=0.1)
    assert plain.total == pytest.approx(ours.total, rel=0.1)


@dataclass
class Outlet:
    """As that of single mode: to the next stage by way of a queue."""

    after: int
    queue: Queue

    def forward(self, item: Item, tensors: tuple[Tensor, ...]) -> None:
        self.queue.append((self.after, item, tensors))

    def report(self, report: Any) -> None:
        raise AssertionError("no epoch ends here")

    snapshot = remark = report


@pytest.mark.parametrize("tree", [tiny_mlp(4), TINY_VGG], ids=["mlp", "vgg"])
def test_one_stage_with_all_blocks_takes_what_single_mode_does(tree: dict[str, Any]) -> None:
    config = configured(tree, "predsim", BATCH)
    facts = data_facts(config.data)
    queue: Queue = deque()
    runners = []
    for index, spec in enumerate(network_specs(config, facts)):
        stage = build_stage(config, facts, [spec.index], CPU)
        stage.blocks[0].attach(marking_optimizer)
        after = Outlet(index + 1, queue)
        runners.append(StageRunner(index, stage, after.forward, after, meter=Meter()))

    def step(batch_id: int, images: int) -> None:
        batch = arriving(facts.shape, images, CPU, torch.uint8)
        queue.append((0, TrainBatch(batch_id, 1, 1e-4), batch))
        del batch
        while queue:
            stage, item, tensors = queue.popleft()
            if stage < len(runners):
                runners[stage].handle(item, tensors)

    chained = second_step(step, BATCH, CPU)
    assert single(tree, BATCH, CPU).total == pytest.approx(chained.total, rel=0.02)
    assert single(tree, BATCH, CPU).activations == pytest.approx(chained.activations, rel=0.02)


def test_no_stage_takes_more_than_single_mode() -> None:
    stage, whole = (way(TINY_VGG, BATCH, CPU) for way in (largest_stage, single))
    assert 0.5 * whole.total < stage.total <= 1.02 * whole.total


def test_what_is_held_is_the_weights_and_adams_two_moments() -> None:
    """Heads, too, of which global backprop has none."""
    widths = [(64, 64), (64, 64), (64, 10)]
    layers = sum(a * b + b for a, b in widths)
    norms = 2 * (64 + 64)  # and as many running statistics, which are not learned
    learned = 12 * (layers + norms)
    rivals = [way(tiny_mlp(2), BATCH, CPU).held for way in (global_backprop, checkpointed)]
    assert rivals == pytest.approx([learned + 4 * norms] * 2, rel=0.01)
    heads = 12 * 2 * (64 * 64 + 64 + 64 * 10 + 10)
    assert single(tiny_mlp(2), BATCH, CPU).held == pytest.approx(rivals[0] + heads, rel=0.02)


def result(**singles: int) -> dict[str, Any]:
    """Single mode's peaks in MB by network; those of other ways are 100 MB."""
    peaks = {"total": 100_000_000, "activations": 50_000_000}
    found = {
        name.replace("_", "-"): {
            **{way: peaks.copy() for way in WAYS},
            "single": {"total": mb * 10**6, "activations": 10**6},
        }
        for name, mb in singles.items()
    }
    return {"bytes": found}


def test_growth_is_that_of_neighbours() -> None:
    assert growths(peaks_in(result(mlp_4=20, mlp_8=21, mlp_16=42, vgg8b=5))) == {
        "mlp-8": pytest.approx(0.05),
        "mlp-16": pytest.approx(1.0),
    }
    assert growths(peaks_in(result(mlp_32=42, mlp_4=20))) == {}, "no other depth is twice one's"


def test_findings_say_what_was_asked() -> None:
    found = findings(result(mlp_4=20, mlp_8=20, mlp_16=40, vgg19=26))
    assert [(one.what, one.found, one.met) for one in found if one.asked] == [
        ("mlp-8, single mode: more than with half the depth", "+0.0%", True),
        ("mlp-16, single mode: more than with half the depth", "+100.0%", False),
        ("vgg19, single mode / global backprop", "0.26", False),
    ]
    assert findings(result(vgg19=25))[-1].met


def test_what_is_held_counts_in_findings_of_its_own() -> None:
    kept = result(vgg19=20)
    for way, peaks in kept["bytes"]["vgg19"].items():
        peaks["held"] = 10**6 * (60 if way == "single" else 20)
    found = {one.what: one.found for one in findings(kept)}
    said = "vgg19, with weights and optimizer state, single mode / global backprop"
    assert found[said] == f"{(20 + 60) / (100 + 20):.2f}"
    assert table(kept).splitlines()[-1].startswith("| vgg19 | 20.0 (1.0) + 60.0 | 100.0 (50.0) + ")


def test_the_table_has_both_peaks() -> None:
    assert table(result(vgg19=20)).splitlines()[-1] == (
        "| vgg19 | 20.0 (1.0) | 100.0 (50.0) | 100.0 (50.0) | 100.0 (50.0) | 0.20 |"
    )
