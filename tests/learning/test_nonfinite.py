"""Losses that are not finite: the run stops, skips the batch, or goes back and leaves it out."""

from __future__ import annotations

from math import inf, nan
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.run_in_threads import Job, train_pipelined

from pipeline.errors import InterruptedRunError, NonFiniteLossError, StageFailedError
from pipeline.learning.block import Block
from pipeline.learning.losses import LossValue
from pipeline.learning.nonfinite import FiniteCheck, StateCheck
from pipeline.run.events import Note
from pipeline.schedule.feed import Feed
from pipeline.single import SingleTrainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Folder = Callable[[], Path]
    Train = Callable[[Job], None]
    SpoilLoss = Callable[[float, Callable[[Block], bool]], None]
    SpoilState = Callable[[dict[int, int]], None]

BAD_BLOCK, BAD_BATCH = 1, 3
COURSE: dict[str, Any] = {"schedule": {"epochs": 2}, "checkpoint_every_steps": 1}

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")


def in_single_mode(job: Job) -> None:
    SingleTrainer(job.run).run()


WAYS = pytest.mark.parametrize("train", [in_single_mode, train_pipelined])


@pytest.fixture
def at_batch(monkeypatch: pytest.MonkeyPatch) -> dict[Block, int | None]:
    """The batch that each block has passed on last."""
    transfer, at = Block.transfer, {}

    def noted(block: Block, h: Any, *, batch_id: int | None) -> Any:
        at[block] = batch_id
        return transfer(block, h, batch_id=batch_id)

    monkeypatch.setattr(Block, "transfer", noted)
    return at


@pytest.fixture
def spoil_loss(monkeypatch: pytest.MonkeyPatch) -> SpoilLoss:
    """Have losses multiplied by a factor where a block meets a condition."""

    def plant(factor: float, spoils: Callable[[Block], bool]) -> None:
        local_loss = Block.local_loss

        def spoilt(block: Block, *given: Any) -> LossValue:
            value = local_loss(block, *given)
            return LossValue(value.loss * factor, value.errors) if spoils(block) else value

        monkeypatch.setattr(Block, "local_loss", spoilt)

    return plant


@pytest.fixture
def spoilt(spoil_loss: SpoilLoss, at_batch: dict[Block, int | None]) -> None:
    """Block 1's loss is infinite at batch 3, however often that batch comes."""
    spoil_loss(inf, lambda block: (block.spec.index, at_batch.get(block)) == (BAD_BLOCK, BAD_BATCH))


@pytest.mark.usefixtures("spoilt")
@WAYS
def test_by_default_the_run_stops_and_says_where(train: Train, folder: Folder) -> None:
    job = Job(folder(), 3, **COURSE)
    with pytest.raises(StageFailedError) as caught:
        train(job)
    text = str(caught.value)
    assert f"the loss of block 1 is not finite at batch 3{NonFiniteLossError.CURE}; the" in text
    assert caught.value.remote_traceback == ""
    (kept,) = job.folder.glob("batch-00000003.npz")
    assert str(kept) in text
    assert not [event for event in job.events if isinstance(event, Note)]  # no restart was tried
    assert not [batch for batch in job.store.files if batch >= BAD_BATCH]


@pytest.mark.usefixtures("spoilt")
def test_a_skipped_batch_leaves_the_block_as_it_was(folder: Folder) -> None:
    jobs = [Job(folder(), 3, on_nonfinite="skip_batch", **COURSE) for _ in range(2)]
    in_single_mode(jobs[0])
    train_pipelined(jobs[1])
    assert jobs[1].store.files == jobs[0].store.files
    assert jobs[1].lines() == jobs[0].lines()
    before, after = jobs[0].store.files[BAD_BATCH - 1], jobs[0].store.files[BAD_BATCH]
    assert [block for block in before if before[block] == after[block]] == [BAD_BLOCK]
    for job in jobs:
        (text,) = [event.text for event in job.events if isinstance(event, Note)]
        assert text.endswith(
            "block 1 skipped 1 batches of epoch 1, whose loss was not finite; the first was 3"
        )
        assert text.startswith("stage 1")


@WAYS
def test_an_output_block_that_skips_everything_is_not_mixed_up_with_another(
    train: Train, folder: Folder, spoil_loss: SpoilLoss
) -> None:
    spoil_loss(inf, lambda block: block.spec.is_output)
    job = Job(folder(), 3, on_nonfinite="skip_batch", **COURSE)
    train(job)
    for line in job.lines():
        assert set(line["train"].values()) == {None}
        assert [block["block"] for block in line["blocks"]] == [0, 1, 2, 3]
        assert all(block["loss"] > 0 for block in line["blocks"][:-1])


@pytest.mark.usefixtures("spoilt")
@WAYS
@pytest.mark.parametrize("every", [1, 2])
def test_rolled_back_is_as_if_the_batch_had_never_been(
    train: Train, every: int, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = {**COURSE, "checkpoint_every_steps": every}
    job = Job(folder(), 3, on_nonfinite="rollback", max_restarts=0, **course)  # it is no restart
    train(job)
    texts = [event.text for event in job.events if isinstance(event, Note)]
    assert any("without" in text and "batch 3" in text for text in texts), texts
    assert not any("may help" in text for text in texts)
    monkeypatch.undo()
    without = left_out(folder(), {BAD_BATCH}, **course)
    assert job.store.files == without.store.files
    assert job.lines() == without.lines()


@WAYS
def test_a_run_that_diverges_ends_all_the_same(
    train: Train, folder: Folder, spoil_loss: SpoilLoss, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_loss(nan, lambda block: True)
    monkeypatch.setattr("pipeline.run.bad_batches.MOST_LEFT_OUT", 2)
    job = Job(folder(), 2, on_nonfinite="rollback", **COURSE)
    with pytest.raises(StageFailedError, match="3 of 6 batches gave losses or states"):
        train(job)


# --- a state that is spoilt where every loss is finite --------------------------------------


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch, at_batch: dict[Block, int | None]) -> SpoilState:
    """Have blocks keep an infinite square of a gradient, as a large one leaves it, after a batch:
    {block: batch}. Their losses stay finite."""

    def plant(spoilt: dict[int, int]) -> None:
        update = Block.update

        def overflows(block: Block, gradients: Any, lr: Any) -> None:
            update(block, gradients, lr)
            if at_batch.get(block) == spoilt.get(block.spec.index, -1):
                block.state()["optimizer.encoder.bias.exp_avg_sq"][0] = inf

        monkeypatch.setattr(Block, "update", overflows)

    return plant


def left_out(folder: Path, batches: set[int], **course: Any) -> Job:
    """A run to which these batches were never given."""
    without = Job(folder, 3, **course)
    feed = without.run.feed
    feed = Feed(feed.course, feed.position, left_out=frozenset(batches))
    object.__setattr__(without.run, "feed", feed)
    in_single_mode(without)
    return without


@WAYS
def test_a_state_that_is_spoilt_is_never_kept(
    train: Train, folder: Folder, spoil: SpoilState
) -> None:
    spoil({1: 2})
    job = Job(folder(), 3, **COURSE)
    with pytest.raises(StageFailedError, match="the state of block 1 is not finite at batch 2"):
        train(job)
    assert 2 not in job.store.files


SPOILT: dict[str, Any] = {
    "early": ({1: 1}, {1}, {}),
    "late": ({0: 5}, {5}, {}),
    "two stages at once": ({0: 2, 2: 2}, {2}, {}),
    "two stages, one after the other": ({2: 4, 0: 5}, {4, 5}, {}),
    "in greedy training": ({1: 5}, {5}, {"schedule": {"epochs": 1, "greedy": True}}),
}


@WAYS
@pytest.mark.parametrize(("spoilt", "bad", "course"), SPOILT.values(), ids=SPOILT)
def test_the_batch_to_blame_is_found_and_left_out(
    train: Train, spoilt: dict[int, int], bad: set[int], course: dict[str, Any],
    folder: Folder, spoil: SpoilState, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Snapshots come at the end of an epoch, two steps after the fault."""
    spoil(spoilt)
    job = Job(folder(), 3, on_nonfinite="rollback", **course)
    train(job)
    monkeypatch.undo()
    assert job.store.files == left_out(folder(), bad, **course).store.files


@pytest.mark.usefixtures("spoilt")
@WAYS
def test_what_a_device_tells_late_is_blamed_on_the_right_batch(
    train: Train, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA a loss is found at the end of the epoch; what was learned since is spoilt."""
    make = FiniteCheck.__init__

    def late(check: FiniteCheck, *given: Any) -> None:
        make(check, *given)
        check._later = True

    monkeypatch.setattr(FiniteCheck, "__init__", late)
    job = Job(folder(), 3, on_nonfinite="rollback")
    train(job)
    monkeypatch.undo()
    assert job.store.files == left_out(folder(), {BAD_BATCH}).store.files


@WAYS
def test_an_interruption_ends_a_run_whose_state_is_spoilt(
    train: Train, folder: Folder, spoil: SpoilState
) -> None:
    """Its newest sound snapshot stays, and is the one that is named."""
    spoil({1: 5})
    job = Job(folder(), 3, on_nonfinite="rollback", checkpoint_every_steps=2)

    def interrupt(event: Any) -> None:
        job.interrupted = job.interrupted or "to look after every batch" in str(event)

    job.listeners.append(interrupt)
    with pytest.raises(InterruptedRunError) as caught:
        train(job)
    assert caught.value.step == 4
    assert max(job.store.files) == 4


@pytest.mark.parametrize("policy", ["stop", "rollback"])
@WAYS
def test_so_it_does_where_its_own_snapshot_finds_it(
    train: Train, policy: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Block.update
    job = Job(folder(), 3, on_nonfinite=policy, schedule={"epochs": 50})

    def overflows(block: Block, gradients: Any, lr: Any) -> None:
        update(block, gradients, lr)
        if max(job.store.files, default=0) == 3:  # after the first epoch
            block.state()["optimizer.encoder.bias.exp_avg_sq"][0] = inf
            job.interrupted = True

    monkeypatch.setattr(Block, "update", overflows)
    with pytest.raises(InterruptedRunError) as caught:
        train(job)
    assert (caught.value.step, max(job.store.files)) == (3, 3)


# --- what is not finite by design -----------------------------------------------------------


class Odd(torch.nn.Linear):
    """A layer with a mask, the least value so far, a fixed table, and a mean that moves."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("mask", torch.full((3, 3), -inf).triu(1))
        self.register_buffer("least", torch.tensor(inf))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.table = torch.nn.Parameter(torch.tensor([nan, 1.0]), requires_grad=False)


def a_check() -> tuple[StateCheck, dict[str, torch.Tensor]]:
    block: Any = Odd()
    block.spec = SimpleNamespace(index=2, custom=True, rule=None)
    return StateCheck([block]), dict(block.state_dict())


@pytest.mark.parametrize(
    ("name", "element", "value"),
    [("mask", (0, 1), -inf), ("mask", (0, 1), nan), ("least", (), 3.0), ("least", (), -inf),
     ("table", (0,), 0.0), ("mean", (0,), 1e30), ("seen", (), 9)],
)  # fmt: skip
def test_what_was_not_finite_from_the_start_is_no_divergence(
    name: str, element: tuple[int, ...], value: float
) -> None:
    check, state = a_check()
    state[name][element] = value
    check.check({2: state}, 7)


@pytest.mark.parametrize(
    ("name", "element", "value"),
    [("mask", (1, 0), -inf), ("table", (1,), nan), ("mean", (3,), inf), ("weight", (0, 0), nan)],
)
def test_what_became_so_is(name: str, element: tuple[int, ...], value: float) -> None:
    check, state = a_check()
    with torch.no_grad():
        state[name][element] = value
    with pytest.raises(NonFiniteLossError, match="the state of block 2 is not finite at batch 7"):
        check.check({2: state}, 7)


# --- what a CUDA device notes and only later tells ----------------------------------------


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_notes_are_settled_later_and_name_the_first_batch(policy: Any) -> None:
    at_work = torch.tensor(0)
    check = FiniteCheck(policy, [4, 5], at_work)
    check._later = True  # as on a CUDA device
    check.settle()
    for batch_id, loss in enumerate([1.0, nan, inf, 2.0], start=7):
        at_work.fill_(batch_id)
        assert check.passes(torch.tensor(loss), 5, batch_id)
        assert check.passes(torch.tensor(1.0), 4, batch_id)
    with pytest.raises(NonFiniteLossError) as caught:
        check.settle()
    assert (caught.value.block, caught.value.batch_id) == (5, 8)


def test_of_blocks_that_fail_together_the_first_is_named() -> None:
    check = FiniteCheck("stop", [2, 3], torch.tensor(9))
    check._later = True
    for block in (3, 2):
        check.passes(torch.tensor(nan), block, 9)
    with pytest.raises(NonFiniteLossError, match="block 2 is not finite at batch 9"):
        check.settle()


def test_a_skipping_check_looks_at_once_everywhere() -> None:
    check = FiniteCheck("skip_batch", [0], torch.tensor(0))
    assert check.passes(torch.tensor(1.0), 0, 1)
    assert not check.passes(torch.tensor(-inf), 0, 2)
