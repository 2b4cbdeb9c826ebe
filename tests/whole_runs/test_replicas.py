"""Replicas of stages, in threads: the same bytes as in single mode with the same option."""

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

from pipeline.learning.block_file import decode_block

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Folder = Callable[[], Path]

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")

MANY = {**TREE["data"], "train_images": 52, "test_images": 30}
"""7 batches, the last of 4 images, and 4 of tests."""


def replicas(**of: int) -> dict[str, Any]:
    return {"parallel": {"replicas": {int(b[1:]): n for b, n in of.items()}}, "data": MANY}


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "2 of a stage in the middle": (3, replicas(b1=2)),
    "3 of a stage in the middle": (3, replicas(b1=3)),
    "2 of the first": (2, replicas(b0=2)),
    "3 of the last": (2, replicas(b1=3, b2=3, b3=3)),
    "neighbours": (3, replicas(b0=2, b1=3)),
    "all": (1, replicas(b0=2, b1=2, b2=2, b3=2)),
    "snapshots within rounds": (3, {**replicas(b1=3), "checkpoint_every_steps": 2}),
    "rates that change within rounds": (
        3,
        {
            **replicas(b1=3),
            "schedule": {"epochs": 2, "decay": "cosine", "warmup_epochs": 1},
            "optimizer": {"name": "adamw", "clip_norm": 0.5},
        },
    ),
    "a rule that carries": (
        3,
        {
            **replicas(b1=2),
            "model": {"name": "mlp", "hidden_layers": 3, "hidden": 16},
            "loss": {"rule": "support.rules:EveryHook"},
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_replicas_give_the_bytes_of_single_mode(case: str, folder: Folder) -> None:
    stages, sections = CASES[case]
    trained_alike(folder, stages, **sections)


def test_a_stage_of_replicas_learns_from_the_mean_of_its_round(folder: Folder) -> None:
    """As by one step of batches that are as much larger, where nothing looks at several examples;
    the stages before it make a step for every batch."""
    alike: dict[str, Any] = {
        "model": {"name": "mlp", "hidden_layers": 2, "hidden": 16, "batch_norm": False},
        "loss": {"name": "pred"},
        "optimizer": {"name": "sgd", "lr": 0.1, "blocks": {0: {"lr": 1e-30}}},
        "schedule": {"epochs": 1},
    }
    data = {**MANY, "train_images": 48, "crop_padding": 0, "flip": False}
    larger = Job(folder(), 1, **alike, data={**data, "batch_size": 16})
    team = Job(folder(), 2, **alike, data=data, parallel={"replicas": {1: 2, 2: 2}})
    train_single(larger)
    train_single(team)
    found, expected = (job.store.files[max(job.store.files)] for job in (team, larger))
    for block in (1, 2):
        tensors = decode_block(expected[block])
        for name, tensor in decode_block(found[block]).items():
            torch.testing.assert_close(tensor, tensors[name], atol=1e-5, rtol=1e-4)


def test_snapshots_fall_between_rounds(folder: Folder) -> None:
    job = Job(folder(), 3, **replicas(b1=3), checkpoint_every_steps=2)
    train_single(job)
    assert sorted(job.store.files) == [3, 6, 10, 13, 14]


@pytest.mark.parametrize("step", [3, 6, 10])
def test_replicas_go_on_from_a_checkpoint(step: int, folder: Folder) -> None:
    sections = {**replicas(b1=3), "checkpoint_every_steps": 2}
    whole = Job(folder(), 3, **sections)
    train_single(whole)
    check_resumed(whole, folder, step, 3, **sections)


LOSES = {**replicas(b1=2), "checkpoint_every_steps": 3}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = Job(tmp_path_factory.mktemp("undisturbed"), 3, **LOSES)
    train_single(job)
    return job


@pytest.mark.parametrize(("process", "act"), [(1, 9), (2, 12), (1, 30), (2, 33), (0, 20), (3, 25)])
def test_a_replica_that_is_lost_changes_nothing(
    undisturbed: Job, process: int, act: int, folder: Folder
) -> None:
    disturbed = Job(folder(), 3, **LOSES)
    train_pipelined(disturbed, {process: Fate(act)})
    assert any("replaced" in note for note in disturbed.notes)
    assert disturbed.store.files == undisturbed.store.files
    assert disturbed.lines() == undisturbed.lines()


def test_an_interruption_lets_a_round_come_to_its_end(folder: Folder) -> None:
    from pipeline.errors import InterruptedRunError

    whole, cut = (Job(folder(), 3, **replicas(b1=3)) for _ in range(2))
    train_single(whole)
    seen: list[int] = []
    arrays = type(cut.run).arrays

    def counting(run: Any, item: Any) -> Any:
        seen.append(1)
        cut.interrupted = len(seen) >= 4
        return arrays(run, item)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(cut.run), "arrays", counting)
        with pytest.raises(InterruptedRunError):
            train_single(cut)
    (step,) = cut.store.files
    assert step == 6
    again = Job(folder(), 3, cut.store.states[step], **replicas(b1=3))
    train_single(again)
    assert again.store.files[14] == whole.store.files[14]
