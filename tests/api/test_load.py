"""`pipeline.load`: plain modules from run folders."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import pipeline

if TYPE_CHECKING:
    from pathlib import Path

QUICK: dict[str, Any] = {
    "epochs": 2, "batch_size": 32, "gpus": "cpu", "quiet": True,
    "options": {"data.train_limit": 64, "data.test_limit": 16},
}  # fmt: skip
EPOCH = 2
"""Steps."""


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.1),
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10),
    )  # fmt: skip


def chain(*widths: int) -> nn.Sequential:
    layers = (nn.Linear(*pair) for pair in pairwise(widths))
    return nn.Sequential(nn.Flatten(), *layers)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and bool((x == y).all()) for (a, x), (b, y) in pairs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pipeline.FittedRun]:
    folder = tmp_path_factory.mktemp("runs")
    residual = {**QUICK, "options": {**QUICK["options"], "model.feat_mult": 0.05}}
    none = {**QUICK, "options": {**QUICK["options"], "runtime.keep_best": False}}
    return {
        "own": pipeline.fit(network(), "digits", **QUICK, run_dir=folder / "own"),
        "mlp": pipeline.fit("mlp", "digits", **QUICK, run_dir=folder / "mlp"),
        "none": pipeline.fit("mlp", "digits", **none, run_dir=folder / "none"),
        "resnet18": pipeline.fit("resnet18", "digits", **residual, run_dir=folder / "resnet"),
    }


def test_the_last_checkpoint_is_the_model_of_the_run(runs: dict[str, Any]) -> None:
    for name, run in runs.items():
        given = {"network": network()} if name == "own" else {}
        loaded = pipeline.load(run.path, **given)
        assert same(loaded, run.model)
        assert not loaded.training


def test_each_checkpoint_has_its_step(runs: dict[str, Any]) -> None:
    run = runs["own"]
    first = pipeline.load(run.path, at=EPOCH, network=network())
    plain = pipeline.fit(network(), "digits", **{**QUICK, "epochs": 1})
    assert same(first, plain.model)
    assert not same(first, run.model)
    assert same(pipeline.load(run.path, at=2 * EPOCH, network=network()), run.model)


def test_the_best_is_the_first_of_the_lowest_tested_error(tmp_path: Path) -> None:
    """A rate that is far too high: the first epochs are better than the last."""
    options = {**QUICK["options"], "runtime.keep_checkpoints": 9, "optimizer.name": "sgd"}
    given = {**QUICK, "epochs": 4, "lr": 0.9, "options": options}
    run = pipeline.fit("mlp", "digits", **given, run_dir=tmp_path / "run")
    errors = [row["test"]["error_pct"] for row in run.history]
    best = errors.index(min(errors))
    assert best < len(errors) - 1, "else it is the last"
    at_its_end = pipeline.load(run.path, at=run.history[best]["step"])
    assert same(pipeline.load(run.path, at="best"), at_its_end)
    assert same(run.best, at_its_end)
    assert not same(run.best, run.model)


def test_a_depth_gives_what_the_first_blocks_pass_on(runs: dict[str, Any]) -> None:
    x = torch.rand(3, 1, 8, 8)
    own, whole = runs["own"], runs["own"].model
    one = pipeline.load(own.path, network=network(), depth=1)
    assert torch.equal(one(x), whole[:4](x))
    assert torch.equal(pipeline.load(own.path, network=network(), depth=3)(x), whole(x))
    two = pipeline.load(runs["resnet18"].path, depth=3)
    assert torch.equal(two(x), runs["resnet18"].model[:2](x))


def test_a_module_that_occurs_twice_counts_twice_in_a_depth(tmp_path: Path) -> None:
    activation = nn.ReLU()
    shared = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), activation, nn.Linear(8, 6), activation, nn.Linear(6, 10)
    )
    run = pipeline.fit(shared, "digits", **QUICK, run_dir=tmp_path / "run")
    x = torch.randn(3, 1, 8, 8)
    two = pipeline.load(run.path, network=shared, depth=2)
    assert torch.equal(two(x), run.model[:5](x))
    assert two(x).min() == 0, "else the activation is missing"


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("own", {}, "network: which? the network of the run in "),
        ("own", {"network": chain(64, 8, 10)}, "network: has 2 blocks, the run's has 3: give"),
        (
            "own",
            {"network": chain(64, 8, 9, 10)},
            "network: has in block 1 encoder.0.weight of (9, 8), the run's has one of (8, 8): give",
        ),
        ("mlp", {"at": 1}, "at 1: there are checkpoints of steps 2, 4: use one, 'last' or 'best'"),
        ("none", {"at": 1}, "at 1: there are checkpoints of steps 2, 4: use one, or 'last'"),
        ("none", {"at": "best"}, "at 'best': this run has kept no best checkpoint"),
        ("mlp", {"at": "first"}, "at 'first': there are checkpoints of steps"),
        ("mlp", {"depth": "1"}, "depth '1': the network has 2 blocks: give 1 to that"),
        ("mlp", {"depth": 1.5}, "depth 1.5: the network has 2 blocks: give 1 to that"),
        ("mlp", {"depth": 0}, "depth 0: the network has 2 blocks: give 1 to that"),
        (
            "resnet18",
            {"depth": 2},
            "depth 2: a shortcut spans blocks 1 to 2 and can't be cut: give 3 or 1",
        ),
    ],
)
def test_what_is_not_there_is_said(
    runs: dict[str, Any], name: str, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(pipeline.ConfigError) as caught:
        pipeline.load(runs[name].path, **given)
    assert str(caught.value).startswith(says)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(pipeline.ConfigError, match="there is no such folder"):
        pipeline.load(tmp_path / "nowhere")
    for no_path in (None, 3):
        with pytest.raises(pipeline.ConfigError, match=f"run_dir {no_path}: is no path: give one"):
            pipeline.load(no_path)  # type: ignore[arg-type]
        with pytest.raises(pipeline.ConfigError, match=f"run_dir {no_path}: is no path: give one"):
            pipeline.export(no_path)  # type: ignore[arg-type]
    with pytest.raises(pipeline.ConfigError, match="run_dir '': is empty: give a path"):
        pipeline.load("")
    with pytest.raises(pipeline.ConfigError, match="holds a null byte"):
        pipeline.load("x\0")
    with pytest.raises(pipeline.ConfigError, match="holds no run: name the folder of a run"):
        pipeline.load(tmp_path)


def test_runs_of_earlier_versions_have_known_data(runs: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    path = tmp_path / "run"
    shutil.copytree(runs["mlp"].path, path)
    tree = json.loads((path / "data.json").read_text())
    assert tree.pop("facts")["shape"] == [1, 8, 8]
    (path / "data.json").write_text(json.dumps(tree))
    assert same(pipeline.load(path), runs["mlp"].model)
