"""Runs that begin with what another has learned, and runs with frozen blocks, are as exact as any:
in a pipeline, after a resume, after a lost worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.run_in_threads import (
    TREE,
    Fate,
    Job,
    check_resumed,
    train_pipelined,
    train_single,
    trained_alike,
)

from pipeline.config.sections import config_tree
from pipeline.learning.block_file import decode_block
from pipeline.storage.checkpoint_writer import CheckpointStore
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")

THREE = {**TREE["data"], "classes": 3}
WAYS: dict[str, dict[str, Any]] = {
    "all blocks": {},
    "first frozen": {"model": {"freeze": [0]}},
    "output alone": {"model": {"freeze": [0, 1, 2]}},
    "one between": {"model": {"freeze": [1]}},
    "other classes": {"model": {"freeze": [0, 1]}, "data": THREE},
    "some blocks": {"model": {"init_from": {"blocks": [0, 2]}, "freeze": [0]}},
    "groups": {"model": {"group": 2, "freeze": [0, 1]}},
    "bf16": {"model": {"freeze": [0]}, "precision": "bf16"},
    "greedy": {"model": {"freeze": [0, 2]}, "schedule": {"epochs": 1, "greedy": True}},
    "skipped batches": {"model": {"freeze": [1]}, "on_nonfinite": "skip_batch"},
    "SGD": {"model": {"freeze": [0]}, "optimizer": {"name": "sgd"}},
}


@pytest.fixture
def source(folder: Callable[[], Path]) -> Path:
    """The folder of a run that has learned."""
    job, path = Job(folder(), 1), folder()
    train_single(job)
    tree = config_tree(job.run.config)
    CheckpointStore(Folder.open(path), tree, 1, 3).write(job.store.newest)
    return path


def sections(way: str, source: Path) -> dict[str, Any]:
    given = WAYS[way]
    model = {**TREE["model"], **given.get("model", {})}
    model["init_from"] = {"run": str(source), **model.get("init_from", {})}
    return {**given, "model": model}


def states(files: Mapping[int, bytes]) -> dict[int, dict[str, Tensor]]:
    return {block: decode_block(data) for block, data in files.items()}


@pytest.mark.parametrize("way", WAYS)
def test_a_pipeline_equals_single_mode(way: str, source: Path, folder: Callable[[], Path]) -> None:
    given = sections(way, source)
    stages = 2 if "group" in given["model"] else 3
    job = trained_alike(folder, stages, **given)
    drawn = Job(folder(), stages, **{**given, "model": {**given["model"], "init_from": None}})
    train_single(drawn)
    last = max(job.store.files)
    assert job.store.files[last] != drawn.store.files[last]
    begun = states(job.run.start.initial.files)
    ended = states(job.store.files[last])
    frozen = job.run.config.model.freeze
    for block in frozen:
        assert ended[block].keys() == begun[block].keys()
        assert all(tensor.equal(begun[block][name]) for name, tensor in ended[block].items())
    losses = {entry["block"]: entry["loss"] for entry in job.lines()[-1]["blocks"]}
    assert {block for block, loss in losses.items() if loss is None} == {*frozen}
    assert job.lines()[-1]["train"]["loss"] is not None


@pytest.mark.parametrize(("way", "step", "stages"), [("other classes", 2, 2), ("greedy", 4, 3)])
def test_a_resume_needs_the_other_run_no_more(
    way: str, step: int, stages: int, source: Path, folder: Callable[[], Path]
) -> None:
    given = {**sections(way, source), "checkpoint_every_steps": 1}
    whole = Job(folder(), 3, **given)
    train_single(whole)
    for path in sorted(source.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    check_resumed(whole, folder, step, stages, **given)


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("act", [3, 6, 12])
def test_a_lost_worker_comes_back_to_what_the_run_began_with(
    stage: int, act: int, source: Path, folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first snapshot, too: the others are told again where they begin."""
    for module in ("pipeline.coordinator.coordinator", "pipeline.transport.in_memory"):
        monkeypatch.setattr(f"{module}._POLL_S", 0.01)
    given = sections("first frozen", source)
    whole, disturbed = (Job(folder(), 3, **given) for _ in range(2))
    train_single(whole)
    train_pipelined(disturbed, {stage: Fate(act)})
    assert disturbed.store.files == whole.store.files
    assert disturbed.lines() == whole.lines()
    assert any("was killed" in note for note in disturbed.notes)
