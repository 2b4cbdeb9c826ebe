"""Members of a team, each with the whole network and a share of each batch, in threads: the same
bytes as in single mode, which has them take turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.run_in_threads import (
    TREE,
    Fate,
    Job,
    check_resumed,
    train_pipelined,
    train_single,
    trained_alike,
)

from pipeline.errors import RunError
from pipeline.learning.block import Block
from pipeline.learning.block_file import decode_block
from pipeline.worker.stage_runner import StageRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    Folder = Callable[[], Path]

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")

TWO: dict[str, Any] = {"parallel": {"members": 2}}
THREE: dict[str, Any] = {"parallel": {"members": 3}}
WHOLE: dict[str, Any] = {"parallel": {"members": 2, "batch_norm": "batch", "similarity": "batch"}}
MLP = {"name": "mlp", "hidden_layers": 2, "hidden": 16}
CASES: dict[str, dict[str, Any]] = {
    "two": TWO,
    "three, of which one has nothing to do at the end": {
        **THREE,
        "data": {**TREE["data"], "train_images": 20},
    },
    "sgd, clipped, of groups": {
        **TWO,
        "model": {**TREE["model"], "group": 2},
        "optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True, "clip_norm": 0.5},
    },
    "backprop": {**THREE, "loss": {"name": "glob"}},
    "greedy": {**TWO, "schedule": {"epochs": 1, "greedy": True}, "checkpoint_every_steps": 2},
    "every depth tested": {**TWO, "eval_depths": True, "eval_before_training": True},
    "frozen": {**TWO, "model": {**TREE["model"], "freeze": [1]}},
    "residual": {**TWO, "model": {"name": "resnet18", "feat_mult": 0.05, "dropout": 0.1}},
    "every hook of a rule": {**TWO, "model": MLP, "loss": {"rule": "support.rules:EveryHook"}},
    "SoftHebb": {
        **THREE,
        "model": {
            "factory": "pipeline.rules.networks:hebbian",
            "kwargs": {"image_shape": [2, 6, 6], "classes": 10, "channels": [4], "hidden": [8]},
        },
        "loss": {"rule": "SoftHebb"},
    },
    "batch norm and similarities of whole batches": {
        "parallel": {**WHOLE["parallel"], "members": 3}
    },
    "whole batches, of groups, every depth tested": {
        **WHOLE,
        "model": {**TREE["model"], "group": 2},
        "loss": {"name": "sim", "unsupervised": "sim"},
        "eval_depths": True,
        "eval_before_training": True,
        "data": {**TREE["data"], "train_images": 20},
    },
    "whole batches of bf16, residual": {
        **WHOLE,
        "model": {"name": "resnet18", "feat_mult": 0.05, "dropout": 0.1},
        "precision": "bf16",
    },
    "backprop with batch norm of whole batches": {
        "parallel": {"members": 3, "batch_norm": "batch"},
        "loss": {"name": "glob"},
    },
    "a rule's own batch norms of whole batches": {
        "parallel": {"members": 2, "batch_norm": "batch"},
        "loss": {"rule": "AugLocal", "options": {"depth": 2, "least": 1}},
    },
    "a network of a user's own, of whole batches": {
        "parallel": {"members": 2, "batch_norm": "batch"},
        "model": {"factory": "network.test_user_network:convolutional", "kwargs": {"width": 8}},
        "data": {**TREE["data"], "classes": 5, "size": 16, "channels": 3},
    },
    "a network of a user's own that draws after batch norm of whole batches": {
        "parallel": {"members": 3, "batch_norm": "batch"},
        "model": {"factory": "network.test_user_network:drawing_after_batch_norm"},
        "data": {**TREE["data"], "classes": 5, "size": 16, "channels": 3},
    },
    "a network of a user's own": {
        **TWO,
        "model": {"factory": "network.test_user_network:convolutional", "kwargs": {"width": 8}},
        "data": {**TREE["data"], "classes": 5, "size": 16, "channels": 3},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_team_gives_the_bytes_of_single_mode(case: str, folder: Folder) -> None:
    trained_alike(folder, 1, **CASES[case])


def weights(job: Job) -> dict[str, Tensor]:
    files = job.store.files[max(job.store.files)]
    return {
        f"{block}.{name}": tensor
        for block, data in files.items()
        for name, tensor in decode_block(data).items()
        if not name.startswith("optimizer.")
    }


def test_shares_add_up_to_the_batch(folder: Folder) -> None:
    """Where no loss and no statistics look at several examples, only rounding is different."""
    alike: dict[str, Any] = {
        "model": {**MLP, "batch_norm": False, "dropout": 0.3},
        "loss": {"name": "pred"},
        "optimizer": {"name": "sgd", "lr": 0.1},
    }
    alone, team = Job(folder(), 1, **alike), Job(folder(), 1, **alike, **THREE)
    train_single(alone)
    train_single(team)
    found = weights(team)
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4)
    for line, other in zip(alone.lines(), team.lines(), strict=True):
        assert other["test"]["error_pct"] == line["test"]["error_pct"]
        assert other["train"]["loss"] == pytest.approx(line["train"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "predsim"},
        {"name": "sim", "unsupervised": "sim"},
        {"name": "predsim", "bio": True},
        {"name": "glob"},
    ],
    ids=str,
)
def test_shares_that_see_the_whole_batch_add_up_to_it(loss: dict[str, Any], folder: Folder) -> None:
    alike: dict[str, Any] = {
        "model": {**TREE["model"], "dropout": 0.3},
        "loss": loss,
        "optimizer": {"name": "sgd", "lr": 0.05},
        "data": {**TREE["data"], "train_images": 20},  # the last of which are too few for three
    }
    sees = {"similarity": "batch"} if loss["name"] != "glob" else {}
    team = {"parallel": {"members": 3, "batch_norm": "batch", **sees}}
    alone, shared = Job(folder(), 1, **alike), Job(folder(), 1, **alike, **team)
    train_single(alone)
    train_single(shared)
    found = weights(shared)
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    for line, other in zip(alone.lines(), shared.lines(), strict=True):
        assert other["train"]["loss"] == pytest.approx(line["train"]["loss"], rel=1e-3)
        assert other["test"]["loss"] == pytest.approx(line["test"]["loss"], rel=1e-3)


@pytest.mark.parametrize("step", [2, 3])
def test_a_team_goes_on_from_a_checkpoint(step: int, folder: Folder) -> None:
    whole = Job(folder(), 1, **TWO, checkpoint_every_steps=1)
    train_single(whole)
    check_resumed(whole, folder, step, 1, **TWO)
    again = Job(folder(), 1, whole.store.states[step], **TWO)
    train_single(again)
    assert again.lines() == whole.lines()[-len(again.lines()) :]


@pytest.fixture(scope="module", params=[TWO, WHOLE], ids=["share", "batch"])
def sees(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {**request.param, "checkpoint_every_steps": 2}


@pytest.fixture(scope="module")
def undisturbed(sees: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = Job(tmp_path_factory.mktemp("undisturbed"), 1, **sees)
    train_single(job)
    return job


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("act", [6, 14, 23, 31])
def test_a_member_that_is_lost_changes_nothing(
    sees: dict[str, Any], undisturbed: Job, member: int, act: int, folder: Folder
) -> None:
    disturbed = Job(folder(), 1, **sees)
    train_pipelined(disturbed, {member: Fate(act)})
    assert any("replaced" in note for note in disturbed.notes)
    assert disturbed.store.files == undisturbed.store.files
    assert disturbed.lines() == undisturbed.lines()


def test_members_that_differ_end_the_run(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    train, job = StageRunner._train, Job(folder(), 1, **TWO)

    def drifts(runner: StageRunner, item: Any, *tensors: Tensor) -> None:
        train(runner, item, *tensors)
        if (runner.index, item.batch_id) == (1, 2):
            runner.stage.settle()
            next(iter(runner.stage.state()[0].values())).add_(1e-6)

    monkeypatch.setattr(StageRunner, "_train", drifts)
    with pytest.raises(
        RunError, match="process 1 holds other weights than the first of its team after step 3"
    ):
        train_single(job)


def spoil(monkeypatch: pytest.MonkeyPatch, batch_id: int, examples: int) -> None:
    """The loss of block 1 is not finite for a share of so many examples of a batch."""
    loss, transfer, at = Block.local_loss, Block.transfer, {"batch": 0}

    def spoilt(block: Block, *given: Any) -> Any:
        value = loss(block, *given)
        if (block.spec.index, at["batch"], len(given[1].y)) == (1, batch_id, examples):
            value = value.of(value.loss * float("nan"))
        return value

    def noted(block: Block, h: Tensor, *, batch_id: int | None) -> Tensor:
        at["batch"] = batch_id or 0
        return transfer(block, h, batch_id=batch_id)

    monkeypatch.setattr(Block, "local_loss", spoilt)
    monkeypatch.setattr(Block, "transfer", noted)


UNEVEN = {**TREE["data"], "train_images": 21, "batch_size": 7}
"""3 batches of 7: shares of 4 and 3."""


@pytest.mark.parametrize("sees", [TWO, WHOLE], ids=["share", "batch"])
def test_what_one_member_skips_all_skip(
    sees: dict[str, Any], folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 2, 3)
    skips: dict[str, Any] = {**sees, "data": UNEVEN, "on_nonfinite": "skip_batch"}
    job = Job(folder(), 1, **skips, checkpoint_every_steps=1)
    train_single(job)
    before, after = (job.store.files[step][1] for step in (1, 2))
    assert before == after
    assert job.store.files[1][2] != job.store.files[2][2]
    assert [note for note in job.notes if "skipped" in note] == [
        "member 0: block 1 skipped 1 batches of epoch 1, whose loss was not finite; the first was 2"
    ]


def test_a_team_goes_back_from_a_loss_that_is_not_finite(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 2, 3)
    goes_back: dict[str, Any] = {**TWO, "data": UNEVEN, "on_nonfinite": "rollback"}
    job = Job(folder(), 1, **goes_back, checkpoint_every_steps=1)
    train_single(job)
    assert job.run.config.parallel.members == 2
    assert any("without batch 2" in note for note in job.notes)
    assert job.store.files[1][1] == job.store.files[2][1]
