"""benchmarks/memory.py: the peak of a record as worked out by hand; depth costs nothing."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import torch

from benchmarks.lib.allocations import (
    Change,
    Event,
    Gradients,
    MarkingOptimizer,
    Peaks,
    measure,
    peak,
    pieces_of,
)
from benchmarks.lib.memory_report import growths, table, verdicts
from benchmarks.memory import (
    WAYS,
    arriving,
    checkpointed,
    configured,
    global_backprop,
    largest_stage,
    marking_optimizer,
    second_step,
    single,
)
from benchmarks.rivals.checkpointed import CheckpointedNetwork
from pipeline.data.facts import data_facts
from pipeline.device.meter import Meter
from pipeline.learning.build import build_stage
from pipeline.network.from_config import network_specs
from pipeline.schedule.items import TrainBatch
from pipeline.worker.stage_runner import StageRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from pipeline.schedule.items import Item

    Queue: TypeAlias = deque[tuple[int, Item, tuple[Tensor, ...]]]

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


# --- the record ---------------------------------------------------------------------------


RECORD: list[Event] = [
    Change(1, 100),
    Change(2, 30),  # 130
    Change(2, -30),
    Change(2, 50),  # 150: the same address once more
    Change(3, 7),  # 157: the most
    Change(1, -100),
    Change(9, -1000),  # was there before the record began
    Change(4, 20),  # 77
    Gradients((2, 4, 8)),
    Change(2, -50),
    Change(4, -20),
    Change(2, 60),  # 67: no gradient any more
]
"""Without the gradients, 50 and 20 bytes: 100, 130, 100, 107, 7, 67."""


def test_the_peak_is_that_worked_out_by_hand() -> None:
    pieces = pieces_of(RECORD)
    assert [(p.nbytes, p.taken, p.given_back) for p in pieces] == [
        (100, 0, 5),
        (30, 1, 2),
        (50, 3, 9),
        (7, 4, inf),
        (20, 7, 10),
        (60, 11, inf),
    ]
    assert peak(pieces) == 157


def test_gradients_are_the_pieces_at_their_addresses_when_they_are_used() -> None:
    pieces = pieces_of(RECORD)
    assert [p.nbytes for p in pieces if p.is_gradient] == [50, 20]
    assert peak(piece for piece in pieces if not piece.is_gradient) == 130


def test_an_empty_record_has_no_peak() -> None:
    assert peak(pieces_of([])) == 0


class Taken:
    """Stands for an optimizer: keeps how many numbers it was given."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        self.given += [gradient.numel() for gradient in gradients]

    def state(self) -> dict[str, Tensor]:
        return {}

    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass


def test_what_tensors_take_is_recorded() -> None:
    """Numbers of 4 bytes: 300 + 500, of which 500 are a gradient, then 300 + 400; the 1000 that
    were there before do not count, nor that they go."""
    kept, optimizer = [torch.ones(1000)], Taken()

    def work() -> None:
        small, gradient = torch.ones(300), torch.ones(500)
        MarkingOptimizer(optimizer).step([gradient], 0.1)
        del gradient
        kept[0] = torch.ones(400)
        assert len(small) == 300

    assert measure(work, CPU) == Peaks(total=4 * 800, activations=4 * 700)
    assert optimizer.given == [500]


# --- what is measured ---------------------------------------------------------------------


def test_single_modes_peak_does_not_grow_with_depth() -> None:
    shallow, deep = (single(tiny_mlp(layers), BATCH, CPU) for layers in (3, 9))
    assert deep.total == pytest.approx(shallow.total, rel=0.05)
    assert deep.activations == pytest.approx(shallow.activations, rel=0.05)


def test_global_backprops_peak_does() -> None:
    shallow, deep = (global_backprop(tiny_mlp(layers), BATCH, CPU) for layers in (3, 9))
    assert deep.activations > 2 * shallow.activations
    assert deep.total > 2 * shallow.total


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
        runners.append(StageRunner(index, stage, Outlet(index + 1, queue), meter=Meter()))

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


# --- what is told -------------------------------------------------------------------------


def found(**singles: int) -> dict[str, dict[str, Peaks]]:
    """Single mode's peaks by network; those of other ways are 100 MB."""
    others = dict.fromkeys(WAYS, Peaks(100_000_000, 50_000_000))
    return {
        name.replace("_", "-"): {**others, "single": Peaks(peak * 10**6, 10**6)}
        for name, peak in singles.items()
    }


def test_growth_is_that_of_neighbours() -> None:
    assert growths(found(mlp_4=20, mlp_8=21, mlp_16=42, vgg8b=5)) == {
        "mlp-8": pytest.approx(0.05),
        "mlp-16": pytest.approx(1.0),
    }


def test_verdicts_say_what_was_asked() -> None:
    assert verdicts(found(mlp_4=20, mlp_8=20, mlp_16=40, vgg19=26)) == [
        "mlp-8, single: +0.0%; asked ±5%: yes",
        "mlp-16, single: +100.0%; asked ±5%: NO",
        "vgg19, single: 0.26 of global; asked at most 0.25: NO",
    ]
    assert verdicts(found(vgg19=25))[-1].endswith("0.25: yes")


def test_the_table_has_both_peaks() -> None:
    assert table(found(vgg19=20)).splitlines()[-1] == (
        "| vgg19 | 20.0 (1.0) | 100.0 (50.0) | 100.0 (50.0) | 100.0 (50.0) | 0.20 |"
    )
