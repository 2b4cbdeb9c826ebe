"""One stage handles the items of a feed: order, evaluation, markers, counters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.clocks import Clock
from torch import Tensor

from pipeline.config.sections import build_config
from pipeline.device.meter import Meter
from pipeline.errors import ProtocolError
from pipeline.learning.block import Block
from pipeline.learning.block_file import decode_block, encode_block
from pipeline.learning.optimizers import make_optimizer
from pipeline.learning.stage import Stage
from pipeline.network.from_config import build_specs
from pipeline.schedule.feed import Course, Feed, Position
from pipeline.schedule.items import (
    EndEpoch,
    EndEvaluation,
    EvaluationBatch,
    Snapshot,
    StartEvaluation,
    Stop,
    TrainBatch,
)
from pipeline.schedule.reports import DOINGS, PassReport, StageState, Tally, Usage
from pipeline.timeline.spans import SpanRecorder
from pipeline.worker.stage_runner import StageRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.schedule.items import Item


COURSE = Course(epochs=2, steps_per_epoch=4, evaluation_batches=2, lr=0.01)


@dataclass
class Said:
    """Remembers what a runner says."""

    forwarded: list[tuple[Item, tuple[Tensor, ...]]] = field(default_factory=list)
    reports: list[PassReport] = field(default_factory=list)
    snapshots: list[tuple[StageState, Sequence[bytes]]] = field(default_factory=list)

    def forward(self, item: Item, tensors: tuple[Tensor, ...]) -> None:
        self.forwarded.append((item, tensors))

    def report(self, report: PassReport) -> None:
        self.reports.append(report)

    def snapshot(self, state: StageState, files: Sequence[bytes]) -> None:
        self.snapshots.append((state, files))


def stage_of(last: int | None = None) -> Stage:
    """Two hidden blocks and the output, or only those before `last`."""
    tree = {
        "model": {"name": "mlp", "hidden_layers": 2, "hidden": 8, "dropout": 0.3},
        "loss": {"name": "predsim"},
        "data": {"name": "digits"},
    }
    config = build_config(tree, "test")
    specs = build_specs(config.model, config.loss, config.nonlinearity, (1, 3, 3), 3)
    blocks = [
        Block(spec, seed=1, device=torch.device("cpu"), dtype=torch.float32, bf16=False)
        for spec in specs[:last]
    ]
    for block in blocks:
        block.attach(partial(make_optimizer, "adam", weight_decay=0.0, momentum=0.0))
    return Stage(blocks, None)


def runner_of(stage: Stage | None = None, last_batch_id: int = 0) -> tuple[StageRunner, Said]:
    said, seconds = Said(), count()
    meter = Meter(clock=lambda: float(next(seconds)), peak_bytes=lambda: 77)
    runner = StageRunner(
        3, stage or stage_of(), said.forward, said, meter=meter, last_batch_id=last_batch_id
    )
    return runner, said


def tensors_of(item: Item) -> tuple[Tensor, ...]:
    if not isinstance(item, TrainBatch | EvaluationBatch):
        return ()
    generator = torch.Generator().manual_seed(item.batch_id + 1000 * (type(item) is TrainBatch))
    x = torch.rand(6, 1, 3, 3, generator=generator)
    return x, torch.randint(3, (6,), generator=generator)


def play(runner: StageRunner, *items: Item) -> None:
    for item in items:
        runner.handle(item, tensors_of(item))


def train(*batch_ids: int, epoch: int = 1) -> list[TrainBatch]:
    return [TrainBatch(batch_id, epoch, 0.01) for batch_id in batch_ids]


def states(runner: StageRunner) -> list[bytes]:
    return [encode_block(state) for state in runner.stage.state().values()]


# --- order --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "got", "expected"),
    [((), 2, 1), ((1, 2), 4, 3), ((1, 2), 2, 3), ((1, 2), 1, 3), ((1,), 0, 2), ((1,), -1, 2)],
    ids=["first missing", "missing", "repeated", "out of order", "zero", "negative"],
)
def test_training_batches_must_follow_each_other(
    before: tuple[int, ...], got: int, expected: int
) -> None:
    runner, said = runner_of()
    play(runner, *train(*before))
    state, tallies = states(runner), runner.stage.training.read()
    with pytest.raises(ProtocolError) as caught:
        play(runner, *train(got))
    assert str(caught.value) == (
        f"stage 3: expected training batch {expected}, received training batch {got}"
    )
    assert (states(runner), runner.stage.training.read()) == (state, tallies)
    assert len(said.forwarded) == 0
    assert runner.last_batch_id == expected - 1


def test_a_resumed_stage_expects_the_batch_after_its_snapshot() -> None:
    runner, _ = runner_of(last_batch_id=7)
    with pytest.raises(ProtocolError, match="expected training batch 8, received training batch 1"):
        play(runner, *train(1))
    play(runner, *train(8, epoch=2))
    assert runner.last_batch_id == 8


@pytest.mark.parametrize("ids", [(2,), (1, 1), (1, 3), (1, 2, 1)])
def test_evaluation_batches_must_follow_each_other(ids: tuple[int, ...]) -> None:
    runner, _ = runner_of()
    *right, wrong = (EvaluationBatch(batch_id, 1) for batch_id in ids)
    play(runner, StartEvaluation(1), *right)
    with pytest.raises(ProtocolError) as caught:
        play(runner, wrong)
    assert str(caught.value) == (
        f"stage 3: expected evaluation batch {len(right) + 1}, "
        f"received evaluation batch {wrong.batch_id}"
    )


def test_evaluation_batches_count_anew_in_each_pass() -> None:
    runner, said = runner_of()
    for epoch in (1, 2):
        play(runner, StartEvaluation(epoch), EvaluationBatch(1, epoch), EvaluationBatch(2, epoch))
        play(runner, EndEvaluation(epoch))
    with pytest.raises(ProtocolError, match="expected evaluation batch 3, received"):
        play(runner, EvaluationBatch(1, 3))
    assert [report.tallies[0].images for report in said.reports] == [12, 12]


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_snapshot_of_another_step_is_refused(step: int) -> None:
    runner, said = runner_of()
    play(runner, *train(1, 2))
    with pytest.raises(ProtocolError) as caught:
        play(runner, Snapshot(step, 1, False))
    assert str(caught.value) == f"stage 3: expected snapshot 2, received snapshot {step}"
    assert said.snapshots == []


# --- what is handed on --------------------------------------------------------------------


@pytest.mark.parametrize("in_slot", [True, False])
def test_where_a_batch_lies_is_handed_to_the_stage(
    monkeypatch: pytest.MonkeyPatch, in_slot: bool
) -> None:
    found: list[bool] = []
    monkeypatch.setattr(Stage, "train", lambda *ours, in_slot, **more: found.append(in_slot))
    (item,), (runner, _) = train(1), runner_of()
    runner.handle(item, tensors_of(item), in_slot=in_slot)
    assert found == [in_slot]


def test_everything_is_handed_on_in_order() -> None:
    runner, said = runner_of(stage_of(last=2))
    items = list(Feed(COURSE, Position()))
    play(runner, *items)
    assert [item for item, _ in said.forwarded] == items
    for item, tensors in said.forwarded:
        if isinstance(item, TrainBatch | EvaluationBatch):
            activation, labels = tensors
            assert activation.shape == (6, 8)
            assert not activation.requires_grad
            assert torch.equal(labels, tensors_of(item)[1])
        else:
            assert tensors == ()
    assert runner.stopped


def test_the_last_stage_hands_on_markers_only() -> None:
    runner, said = runner_of()
    play(runner, *train(1), StartEvaluation(1), EvaluationBatch(1, 1), Stop())
    assert [item for item, _ in said.forwarded] == [StartEvaluation(1), Stop()]


def test_a_snapshot_is_taken_before_the_marker_goes_on() -> None:
    order: list[str] = []

    class Ordered(Said):
        def forward(self, item: Item, tensors: tuple[Tensor, ...]) -> None:
            order.append(type(item).__name__)

        def snapshot(self, state: StageState, files: Sequence[bytes]) -> None:
            order.append("taken")

    said = Ordered()
    runner = StageRunner(0, stage_of(last=1), said.forward, said, meter=Meter())
    play(runner, Snapshot(0, 0, True))
    assert order == ["taken", "Snapshot"]


# --- evaluation ---------------------------------------------------------------------------


def test_evaluation_changes_nothing() -> None:
    runner, _ = runner_of()
    play(runner, *train(1, 2))
    before = (states(runner), runner.stage.training.read(), runner.last_batch_id)
    generator = torch.get_rng_state()
    play(runner, StartEvaluation(1), EvaluationBatch(1, 1), EvaluationBatch(2, 1), EndEvaluation(1))
    assert (states(runner), runner.stage.training.read(), runner.last_batch_id) == before
    assert torch.equal(torch.get_rng_state(), generator)


def test_training_goes_on_as_if_there_had_been_no_evaluation() -> None:
    plain, tested = runner_of()[0], runner_of()[0]
    play(plain, *train(1, 2, 3))
    for batch in train(1, 2, 3):
        play(tested, StartEvaluation(0), EvaluationBatch(1, 0), EndEvaluation(0), batch)
    assert states(plain) == states(tested)


# --- reports and counters -----------------------------------------------------------------


def test_reports_of_an_epoch() -> None:
    runner, said = runner_of()
    play(runner, *train(1, 2), EndEpoch(1))
    play(runner, StartEvaluation(1), EvaluationBatch(1, 1), EndEvaluation(1))
    trained, tested = said.reports
    assert (trained.stage, trained.epoch, trained.training) == (3, 1, True)
    assert [(tally.block, tally.images) for tally in trained.tallies] == [(0, 12), (1, 12), (2, 12)]
    assert all(tally.errors is not None and tally.loss_sum > 0 for tally in trained.tallies)
    assert (tested.epoch, tested.training) == (1, False)
    assert [(tally.block, tally.images) for tally in tested.tallies] == [(2, 6)]


def test_losses_are_means_over_images_however_large_the_batches() -> None:
    runner, said = runner_of()
    x, labels = tensors_of(train(1)[0])
    losses = []
    local_loss = Block.local_loss

    def watched(block: Block, *given: Tensor, **options: Any) -> Any:
        value = local_loss(block, *given, **options)
        if block.spec.is_output:
            losses.append(value.loss.item())
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "local_loss", watched)
        runner.handle(train(1)[0], (x, labels))
        runner.handle(train(2)[0], (x[:2], labels[:2]))
    play(runner, EndEpoch(1))
    tally = said.reports[0].tallies[-1]
    assert tally.images == 8
    assert tally.loss == pytest.approx((6 * losses[0] + 2 * losses[1]) / 8, rel=1e-6)


def test_counters_start_again_with_the_first_batch_of_an_epoch() -> None:
    runner, _ = runner_of()
    play(runner, *train(1, 2), EndEpoch(1), StartEvaluation(1), EvaluationBatch(1, 1))
    assert runner.stage.training.read()[0].images == 12  # a snapshot taken now still has them
    play(runner, EndEvaluation(1), *train(3, epoch=2))
    assert runner.stage.training.read()[0].images == 6


def test_working_time_is_metered() -> None:
    runner, said = runner_of()
    play(runner, *train(1, 2), EndEpoch(1))
    # a clock that ticks at every look: began, 2 looks per item, the report itself
    assert said.reports[0].usage == Usage(wall_s=6.0, busy_s=2.0, peak_memory_bytes=77)


def test_what_is_recorded_adds_up_to_what_is_metered(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 s up to what is sent, 5 s without room, 1 s to send, 2 s to learn; 4 s between batches."""
    clock = Clock()
    meter, spans = Meter(clock), SpanRecorder(2, clock=clock)

    def lasting(seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def longer(*given: Any, **named: Any) -> Any:
            clock.now += seconds
            return work(*given, **named)

        return longer

    def forward(item: Item, tensors: tuple[Tensor, ...]) -> None:
        if tensors:
            spans.now("room")
            with meter.waiting():
                clock.now += 5
            spans.now("send")
            clock.now += 1

    monkeypatch.setattr(Stage, "begin", lasting(3, Stage.begin))
    monkeypatch.setattr(Stage, "finish", lasting(2, Stage.finish))
    runner = StageRunner(0, stage_of(last=1), forward, Said(), meter=meter, spans=spans)
    for item in train(1, 2):
        spans.now("input")
        clock.now += 4
        spans.take_up(item, "copy")
        play(runner, item)
    timeline, usage = spans.taken(), meter.take()
    seconds = Counter[str]()
    ends = (*timeline.began_s[1:], timeline.ended_s)
    for what, began, ended in zip(timeline.what, timeline.began_s, ends, strict=True):
        seconds[DOINGS[what]] += ended - began
    waits = {"input": 8, "room": 10}
    assert +seconds == {**waits, "compute": 6, "send": 2, "learn": 4}
    assert (usage.wall_s, usage.busy_s) == (30, 30 - sum(waits.values()))


# --- snapshots ----------------------------------------------------------------------------


def test_snapshot_holds_the_state_of_that_moment() -> None:
    runner, said = runner_of()
    play(runner, *train(1, 2))
    expected, tallies = states(runner), runner.stage.training.read()
    play(runner, Snapshot(2, 1, False), *train(3))
    ((state, files),) = said.snapshots
    assert state == StageState(2, 1, False, (0, 1, 2), tallies)
    assert list(files) == expected
    assert states(runner) != expected


@pytest.mark.parametrize("interrupted_after", range(1, 16))
def test_resumed_at_any_position_it_reports_and_trains_the_same(interrupted_after: int) -> None:
    undisturbed, expected = runner_of()
    play(undisturbed, *Feed(COURSE, Position()))

    first, before = runner_of()
    feed = Feed(COURSE, Position())
    for handled, item in enumerate(feed, start=1):
        play(first, item)
        if handled == interrupted_after:
            feed.interrupt()
    state, files = before.snapshots[-1]

    stage = stage_of()
    stage.load({n: decode_block(bytes(f)) for n, f in zip(state.blocks, files, strict=True)})
    second, after = runner_of(stage, last_batch_id=state.step)
    second.resume(COURSE.epoch_of(state.step), state.tallies)
    play(second, *Feed(COURSE, Position(state.step, state.epoch_reported)))

    assert states(second) == states(undisturbed)
    assert _tallies(before.reports + after.reports) == _tallies(expected.reports)


def _tallies(reports: list[PassReport]) -> dict[tuple[int, bool], tuple[Tally, ...]]:
    """By epoch and kind; what is reported a second time must be the same."""
    found: dict[tuple[int, bool], tuple[Tally, ...]] = {}
    for report in reports:
        key = (report.epoch, report.training)
        assert found.setdefault(key, report.tallies) == report.tallies
    return found
