"""`pipeline.fit` from another run's weights, with frozen blocks; weights alone as a checkpoint."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import pipeline
from launch.evaluate import main as evaluate
from launch.predict import main as predict
from pipeline.errors import ConfigError
from pipeline.learning.block_file import decode_block

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.api.fitted import FittedRun

pytestmark = pytest.mark.usefixtures("torch_settings")
QUICK: dict[str, Any] = {"batch_size": 32, "gpus": "cpu", "quiet": True, "epochs": 2}
SMALL = {"data.train_limit": 64, "data.test_limit": 16, "model.hidden": 8, "model.hidden_layers": 2}
WEIGHTS = {**SMALL, "runtime.best_form": "weights"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FittedRun:
    folder = tmp_path_factory.mktemp("run") / "run"
    return pipeline.fit("mlp", "digits", **QUICK, options=WEIGHTS, run_dir=folder)


def best_of(run: FittedRun) -> tuple[dict[str, Any], dict[int, Any]]:
    """Manifest and tensors of its best checkpoint."""
    folder = run.path / "checkpoints" / "best"
    manifest = json.loads((folder / "manifest.json").read_text())
    files = sorted(folder.glob("block-*"))
    return manifest, {at: decode_block(file.read_bytes()) for at, file in enumerate(files)}


# --- weights only -------------------------------------------------------------------------


def test_the_best_has_weights_only_and_the_newest_stay_whole(run: FittedRun) -> None:
    manifest, tensors = best_of(run)
    assert manifest["form"] == "weights"
    assert {name.partition(".")[0] for name in tensors[0]} == {"encoder", "bn"}
    assert {name.partition(".")[0] for name in tensors[2]} == {"encoder"}
    newest = run.path / "checkpoints" / "step-00000004"
    whole = decode_block((newest / "block-00.safetensors").read_bytes())
    assert {name.partition(".")[0] for name in whole} == {
        "encoder",
        "bn",
        "pred",
        "sim",
        "optimizer",
    }
    assert "form" not in json.loads((newest / "manifest.json").read_text())


def test_weights_alone_give_the_same_network(run: FittedRun) -> None:
    same = pipeline.fit("mlp", "digits", **QUICK, options=SMALL, run_dir=run.path.parent / "full")
    x = torch.rand(5, 1, 8, 8)
    loaded = pipeline.load(run.path, at="best")
    assert torch.equal(loaded(x), pipeline.load(same.path, at="best")(x))
    assert torch.equal(loaded(x), run.best(x))
    for command, arguments in ((evaluate, ["--json"]), (predict, [])):
        if command is predict:
            import numpy as np

            np.savez(run.path.parent / "some.npz", X=np.zeros((2, 1, 8, 8), "uint8"))
            arguments = [str(run.path.parent / "some.npz")]
        said = [
            CliRunner().invoke(command, [str(path), *arguments, "--checkpoint", "best"])
            for path in (run.path, same.path)
        ]
        assert [each.exit_code for each in said] == [0, 0], said[0].output
        assert said[0].output.replace(str(run.path), "") == said[1].output.replace(
            str(same.path), ""
        )


def test_what_heads_would_be_needed_for_is_refused(run: FittedRun, tmp_path: Path) -> None:
    said = CliRunner().invoke(evaluate, [str(run.path), "--every-depth", "--checkpoint", "best"])
    assert said.exit_code == 2
    assert "--every-depth: checkpoint best of" in said.output
    assert "holds weights only (runtime.best_form)" in said.output
    moved = tmp_path / "moved"
    shutil.copytree(run.path, moved)
    shutil.rmtree(moved / "checkpoints" / "step-00000004")
    shutil.rmtree(moved / "checkpoints" / "step-00000002")
    step = json.loads((moved / "checkpoints" / "best" / "manifest.json").read_text())["step"]
    (moved / "checkpoints" / "best").rename(moved / "checkpoints" / f"step-{step:08d}")
    with pytest.raises(ConfigError, match=r"weights only \(runtime.best_form\), from which no run"):
        pipeline.fit("mlp", "digits", **QUICK, options=WEIGHTS, run_dir=moved, resume=True)


def test_a_rule_that_predicts_stays_with_the_weights(tmp_path: Path) -> None:
    given = {**QUICK, "options": {**WEIGHTS, "runtime.keep_best": "last"}}
    run = pipeline.fit(
        "mlp", "digits", loss={"rule": "MonoForward"}, **given, run_dir=tmp_path / "run"
    )
    _, tensors = best_of(run)
    assert any(name.startswith("rule.") for name in tensors[1])
    results = [
        json.loads(CliRunner().invoke(evaluate, [str(run.path), "--json", *more]).output)
        for more in ([], ["--checkpoint", "best"])
    ]
    assert results[0]["error_pct"] == results[1]["error_pct"] is not None


def test_the_newest_weights_may_be_the_best(tmp_path: Path) -> None:
    """A rate that is far too high: the first epoch is better than the last."""
    options = {**SMALL, "runtime.keep_best": "last", "optimizer.name": "sgd"}
    given = {**QUICK, "epochs": 3, "lr": 0.9, "options": options}
    run = pipeline.fit("mlp", "digits", **given, run_dir=tmp_path / "run")
    manifest, _ = best_of(run)
    assert (manifest["step"], manifest["kept"]["epoch"]) == (6, 0)
    assert torch.equal(run.best[0].layer.weight, run.model[0].layer.weight)


# --- another run --------------------------------------------------------------------------


def test_a_run_goes_on_without_the_one_that_it_began_from(run: FittedRun, tmp_path: Path) -> None:
    """And ends as one that was never interrupted."""
    source = tmp_path / "source"
    shutil.copytree(run.path, source)
    options = {**SMALL, "data.train_limit": 48}
    given: dict[str, Any] = {
        **QUICK, "options": options, "init_from": {"run": source, "checkpoint": "best"},
        "freeze": [0],
    }  # fmt: skip
    whole = pipeline.fit("mlp", "digits", **given)
    half = pipeline.fit(
        "mlp", "digits", **given, run_dir=tmp_path / "half", callbacks=[lambda row: True]
    )
    assert len(half.history) == 1
    shutil.rmtree(source)
    resumed = pipeline.fit("mlp", "digits", **given, run_dir=half.path, resume=True)
    assert resumed.history[-1]["epoch"] == 2
    state, other = (each.model.state_dict() for each in (resumed, whole))
    assert all(torch.equal(state[name], tensor) for name, tensor in other.items())
    frozen = pipeline.load(run.path, at="best")[0].state_dict()
    assert all(torch.equal(resumed.model[0].state_dict()[name], t) for name, t in frozen.items())
    kept = json.loads((half.path / "initial.json").read_text())
    assert (kept["run"], kept["checkpoint"]) == (str(source), "best")
    assert resumed.history[-1]["blocks"][0]["loss"] is None


def test_a_run_that_ended_at_once_looks_there_again(run: FittedRun, tmp_path: Path) -> None:
    given: dict[str, Any] = {**QUICK, "options": SMALL, "init_from": run.path}
    whole = pipeline.fit("mlp", "digits", **given, run_dir=tmp_path / "run")
    shutil.rmtree(whole.path / "checkpoints")
    (whole.path / "checkpoints").mkdir()
    again = pipeline.fit("mlp", "digits", **given, run_dir=whole.path, resume=True)
    state, other = (each.model.state_dict() for each in (again, whole))
    assert all(torch.equal(state[name], tensor) for name, tensor in other.items())
    log = (whole.path / "run.log").read_text()
    assert log.count("blocks 0, 1, 2 begin as in") == 2
    with pytest.raises(ConfigError, match=r"model\.init_from is null, but the run in"):
        pipeline.fit("mlp", "digits", **QUICK, options=SMALL, run_dir=whole.path, resume=True)


def test_a_module_that_has_learned_elsewhere_keeps_its_frozen_blocks() -> None:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(),
                        nn.Linear(8, 10))  # fmt: skip
    limits = {"data.train_limit": 64, "data.test_limit": 16}
    run = pipeline.fit(net, "digits", freeze=[0], **QUICK, options=limits)
    assert torch.equal(run.model[1].weight, net[1].weight)
    assert not torch.equal(run.model[3].weight, net[3].weight)
    assert net[1].weight.requires_grad  # the object stays as it is
