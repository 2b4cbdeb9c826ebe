"""Every form of the loss, every network: the same bytes in a pipeline and in single mode."""

from __future__ import annotations

from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Any

import pytest
from support.run_in_threads import (
    TREE,
    Fate,
    Job,
    ThreadWorkers,
    coordinator,
    train_pipelined,
    train_single,
    trained_alike,
)

from pipeline.coordinator.reports import Reports
from pipeline.learning.block_file import decode_block
from pipeline.schedule.reports import PassReport
from pipeline.transport.in_memory import MemorySender

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.schedule.best import BestSoFar
    from pipeline.schedule.items import Item

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")


FORMS: dict[str, dict[str, Any]] = {
    "pred": {"name": "pred"},
    "sim": {"name": "sim"},
    "pred-bio": {"name": "pred", "bio": True},
    "predsim-bio": {"name": "predsim", "bio": True, "beta": 0.01},
    "sign": {"name": "pred", "classifier": "fixed", "feedback": "sign"},
    "random": {"name": "predsim", "classifier": "fixed", "feedback": "random"},
    "unsupervised sim": {"name": "pred", "unsupervised": "sim", "alpha": 0.3},
    "recon": {"name": "predsim", "unsupervised": "recon", "alpha": 0.3},
    "hidden layers": {"name": "predsim", "pred_hidden": [[8], [], [6, 5]]},
}


def test_batches_of_few_classes_are_the_same_in_a_resumed_pipeline(
    folder: Callable[[], Path],
) -> None:
    few = {"classes_per_batch": 2, "classes_per_batch_until_epoch": 1}
    data = {**TREE["data"], "classes": 4}
    limited, plain = (
        Job(folder(), 3, data={**data, **keys}, checkpoint_every_steps=1) for keys in (few, {})
    )
    for job in (limited, plain):
        train_single(job)
    start = limited.store.states[2]
    resumed = Job(folder(), 2, start, data={**data, **few}, checkpoint_every_steps=1)
    train_pipelined(resumed)
    assert resumed.store.files[6] == limited.store.files[6]
    assert all(resumed.store.files[6][block] != plain.store.files[6][block] for block in range(4))


RECIPE: dict[str, Any] = {
    "optimizer": {
        "name": "sgd",
        "lr": 0.5,
        "nesterov": True,
        "weight_decay": 1e-3,
        "clip_norm": 2.0,
        "blocks": {0: {"lr": 1.0}, 3: {"weight_decay": 0.0}},
    },
    "schedule": {"epochs": 30, "warmup_epochs": 1, "decay": "cosine", "patience": 3},
    "loss": {"name": "predsim", "dim_in_decoder": 32, "beta": 0.5, "label_smoothing": 0.1},
    "data": {**TREE["data"], "classes": 3, "test_images": 40},
    "checkpoint_every_steps": 2,
}
"""Steps by everything that a schedule and an optimizer can be told; tests end it early."""


def best_so_far(job: Job) -> dict[int, tuple[BestSoFar, bool]]:
    """Of each snapshot by step: the best that could be kept, and whether that is it."""
    return {step: (state.kept, state.is_best) for step, state in job.store.states.items()}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The run of `RECIPE` in one process."""
    job = Job(tmp_path_factory.mktemp("single"), 3, **RECIPE)
    train_single(job)
    return job


def test_a_run_that_patience_ends_is_the_same_however_it_is_trained(
    single: Job, folder: Callable[[], Path]
) -> None:
    last = max(single.store.files)
    assert 12 <= last < 90
    assert single.lines()[-1]["step"] == last
    assert single.notes[-1].startswith(f"ended early, after epoch {last // 3} of 30, by schedule.p")
    assert {is_best for _, is_best in best_so_far(single).values()} == {True, False}
    before = max(step for step in single.store.states if step < last)
    starts = [None, single.store.states[before], single.store.states[2]]
    for stages, start in zip((3, 2, 3), starts, strict=True):
        again = Job(folder(), stages, start, **RECIPE)
        train_pipelined(again)
        assert again.store.files[last] == single.store.files[last]
        assert max(again.store.files) == last
        assert again.store.newest.best == single.store.newest.best
        assert best_so_far(again).items() <= best_so_far(single).items()
        assert again.notes[-1] == single.notes[-1]
    ended = Job(folder(), 2, single.store.states[last], **RECIPE)
    train_pipelined(ended)
    assert (ended.store.files, ended.lines()) == ({}, [])


@pytest.mark.parametrize(("stage", "act"), [(0, 40), (1, 25), (1, 60), (2, 1), (2, 44)])
def test_a_run_that_patience_ends_does_so_after_a_worker_was_lost(
    stage: int, act: int, single: Job, folder: Callable[[], Path]
) -> None:
    disturbed = Job(folder(), 3, **RECIPE)
    train_pipelined(disturbed, {stage: Fate(act)})
    last = max(single.store.files)
    assert disturbed.store.files[last] == single.store.files[last]
    assert max(disturbed.store.files) == last
    assert disturbed.lines() == single.lines()
    assert disturbed.notes[-1] == single.notes[-1]
    assert any("replaced" in note for note in disturbed.notes)


def test_a_report_that_is_lost_is_not_waited_for_without_end(
    single: Job, folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # more restarts than it takes: on a busy machine all may seem to wait
    disturbed = Job(folder(), 2, **RECIPE, max_restarts=100)
    hear, lost = Reports._on_report, list[PassReport]()

    def loses_one(reports: Reports, said: Any, report: PassReport) -> None:
        if report.stage == 1 and report.epoch == 2 and not report.training and not lost:
            lost.append(report)
        else:
            hear(reports, said, report)

    monkeypatch.setattr(Reports, "_on_report", loses_one)
    workers = ThreadWorkers(2)
    workers.start()
    coordinator(disturbed, workers, stall_timeout_s=2.0).run()
    workers.leave()
    assert lost
    assert any("all wait since" in note for note in disturbed.notes)
    last = max(single.store.files)
    assert disturbed.store.files[last] == single.store.files[last]
    assert disturbed.lines() == single.lines()


RESNET = {"name": "resnet18", "feat_mult": 0.05, "dropout": 0.1}
PREACTIVATED = {"name": "wrn-10-2", "feat_mult": 0.2, "preactivation": True}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    **{form: (3, {"loss": loss}) for form, loss in FORMS.items()},
    "clipped, with rates of blocks' own": (
        3,
        {
            "optimizer": {
                "name": "adamw",
                "weight_decay": 0.1,
                "clip_norm": 0.5,
                "blocks": {0: {"lr": 0.01}, 2: {"weight_decay": 0.2}},
            },
            "schedule": {"epochs": 2, "decay": "cosine", "warmup_epochs": 1},
        },
    ),
    "mlp": (2, {"model": {"name": "mlp", "hidden_layers": 2, "hidden": 16}}),
    "resnet18": (4, {"model": RESNET}),
    "resnet18 without shortcuts": (17, {"model": {**RESNET, "residual": False}}),
    "wide residual network": (4, {"model": {"name": "wrn-10-2", "feat_mult": 0.2}}),
    "pre-activation": (4, {"model": {**PREACTIVATED, "dropout": 0.2}}),
    "pre-activation in groups": (2, {"model": {**PREACTIVATED, "group": 3}}),
    "greedy pre-activation": (
        4,
        {"model": PREACTIVATED, "schedule": {"epochs": 1, "greedy": True}},
    ),
    "groups": (2, {"model": {**TREE["model"], "group": 2}}),
    "groups that cut residual units": (3, {"model": {**RESNET, "group": 3}}),
    "one group": (1, {"model": {**TREE["model"], "group": "all"}}),
    "greedy": (3, {"schedule": {"epochs": 2, "greedy": True}}),
    "greedy groups": (
        2,
        {"schedule": {"epochs": 1, "greedy": True}, "model": {**TREE["model"], "group": 2}},
    ),
}
"""How many stages, and what differs from `TREE`."""


@pytest.mark.parametrize("case", CASES)
def test_every_loss_and_network_is_the_same_in_a_pipeline(
    case: str, folder: Callable[[], Path]
) -> None:
    stages, sections = CASES[case]
    single = trained_alike(folder, stages, **sections)
    assert all(isfinite(line["test"]["loss"]) for line in single.lines())


ROUNDED: dict[str, dict[str, Any]] = {
    "convolutions": {},
    "bf16": {"precision": "bf16"},
    "pre-activation": {"model": {**PREACTIVATED, "dropout": 0.2}},
    "groups": {"model": {**TREE["model"], "group": 2}},
    "a rule that carries numbers": {
        "model": {"name": "mlp", "hidden_layers": 3, "hidden": 12, "batch_norm": False},
        "loss": {"rule": "ForwardForward"},
    },
    "greedy": {"schedule": {"epochs": 1, "greedy": True}, "eval_depths": True},
}


@pytest.mark.parametrize("case", ROUNDED)
def test_rounded_activations_are_the_same_however_blocks_are_divided(
    case: str, folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, send = set[str](), MemorySender.send

    def noting(sender: MemorySender, item: Item, payloads: Any = ()) -> None:
        sent.update(payload.spec.dtype for payload in payloads[:1])
        send(sender, item, payloads)

    monkeypatch.setattr(MemorySender, "send", noting)
    sections = ROUNDED[case]
    whole = Job(folder(), 1, wire_dtype="bf16", **sections)
    train_single(whole)
    for stages in (1, 2) if case == "groups" else (2, 3):
        divided = Job(folder(), stages, wire_dtype="bf16", **sections)
        train_pipelined(divided)
        assert divided.store.files == whole.store.files
        assert divided.lines() == whole.lines()
    assert sent == {"uint8", "bfloat16"}
    if case != "bf16":  # whose activations are as short anyway
        plain = Job(folder(), 1, **sections)
        train_single(plain)
        assert plain.store.files != whole.store.files


def test_greedy_training_trains_one_block_after_another(folder: Callable[[], Path]) -> None:
    schedule = {"epochs": 1, "greedy": True}
    job = Job(folder(), 3, schedule=schedule)
    train_single(job)
    assert [line["blocks"][0]["block"] for line in job.lines()] == [0, 1, 2, 3]
    snapshots = [job.store.files[step] for step in sorted(job.store.files)]
    for learner, (before, after) in enumerate(pairwise(snapshots), start=1):
        changed = [b for b in before if network_part(before[b]) != network_part(after[b])]
        assert changed == [learner]
        done = decode_block(after[learner - 1])  # it needs no optimizer any more
        assert not any(done[name].any() for name in done if name.startswith("optimizer."))


def network_part(data: bytes) -> dict[str, list[float]]:
    """What a block file says of weights and statistics."""
    tensors = decode_block(data)
    return {
        name: tensor.flatten().tolist()
        for name, tensor in tensors.items()
        if not name.startswith("optimizer.")
    }


def test_a_greedy_run_goes_on_from_every_checkpoint(folder: Callable[[], Path]) -> None:
    schedule = {"epochs": 1, "greedy": True}
    whole = Job(folder(), 3, schedule=schedule, checkpoint_every_steps=1)
    train_single(whole)
    last = max(whole.store.files)
    for step in (2, 3, 7):
        again = Job(folder(), 2, whole.store.states[step], schedule=schedule)
        train_pipelined(again)
        assert again.store.files[last] == whole.store.files[last]
