"""What is taken of another run's blocks, what begins anew, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import pipeline
from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError
from pipeline.learning.block_file import decode_block
from pipeline.network.from_config import network_specs
from pipeline.storage.checkpoint import checkpoint_in
from pipeline.storage.folder import Folder
from pipeline.trained.initial import initial_of

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.storage.checkpoint import Initial

MLP = {"name": "mlp", "hidden_layers": 2, "hidden": 8}
DATA = {"name": "synthetic", "size": 4, "channels": 1, "classes": 5,
        "train_images": 24, "test_images": 8, "batch_size": 8}  # fmt: skip
TREE = {"model": MLP, "loss": {"name": "predsim"}, "data": DATA, "schedule": {"epochs": 2}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    weights = {"runtime.best_form": "weights", "runtime.keep_best": "last"}
    ways: dict[str, dict[str, Any]] = {
        "mlp": {},
        "weights": {"options": weights},
        "plain": {"options": {"model.batch_norm": False}},
        "deep": {"options": {"model.hidden_layers": 3}},
    }
    for name, given in ways.items():
        pipeline.fit(config=TREE, gpus="cpu", quiet=True, run_dir=folder / name, **given)
    return {name: folder / name for name in ways}


def begun(
    run: Path, data: dict[str, Any] | None = None, loss: str = "predsim", **changed: Any
) -> Initial:
    """What a network begins with; `changed`: keys of `model`, or of `init_from`."""
    of_init = {key: changed.pop(key) for key in ("checkpoint", "blocks") if key in changed}
    model = {**MLP, **changed, "init_from": {"run": str(run), **of_init}}
    tree = {"model": model, "loss": {"name": loss}, "data": {**DATA, **(data or {})}}
    config = build_config(tree, "test")
    return initial_of(config, network_specs(config, data_facts(config.data)))


def names(initial: Initial, block: int) -> set[str]:
    return set(decode_block(initial.files[block]))


def test_all_but_optimizers_is_taken_where_the_networks_are_alike(sources: Any) -> None:
    initial = begun(sources["mlp"])
    checkpoint = checkpoint_in(Folder.open(sources["mlp"] / "checkpoints"), "step-00000006")
    for block, data in checkpoint.read().items():
        there = {
            name: tensor
            for name, tensor in decode_block(data).items()
            if not name.startswith("optimizer.")
        }
        taken = decode_block(initial.files[block])
        assert taken.keys() == there.keys()
        assert all(torch.equal(taken[name], tensor) for name, tensor in there.items())
    (note,) = initial.notes
    assert note == f"model.init_from: blocks 0, 1, 2 begin as in {sources['mlp']} at step 6"


def test_what_was_taken_is_recorded(sources: Any) -> None:
    source = begun(sources["mlp"], checkpoint=3, blocks=[1]).source
    folder = sources["mlp"] / "checkpoints" / "step-00000003"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (source["run"], source["checkpoint"]) == (str(sources["mlp"]), "step-00000003")
    assert source["step"] == 3
    (block,) = source["blocks"]
    assert (block["block"], block["sha256"]) == (1, manifest["blocks"][1]["sha256"])
    assert "encoder.weight" in block["taken"]
    assert block["anew"] == []
    json.dumps(source)


def test_what_depends_on_the_number_of_classes_begins_anew(sources: Any) -> None:
    initial = begun(sources["mlp"], {"classes": 3})
    assert sorted(initial.files) == [0, 1]
    assert {"encoder.weight", "bn.running_mean", "sim.weight"} <= names(initial, 0)
    assert not any(name.startswith("pred.") for name in names(initial, 0))
    assert initial.notes[0].startswith("model.init_from: blocks 0, 1 begin as in ")
    said = initial.notes[1]
    assert said.startswith("model.init_from: begin anew: pred.")
    assert said.endswith(" of blocks 0, 1; encoder.weight, encoder.bias of block 2")


@pytest.mark.parametrize("checkpoint", ["best"])
def test_weights_only_are_enough(sources: Any, checkpoint: str) -> None:
    initial = begun(sources["weights"], checkpoint=checkpoint)
    assert names(initial, 0) == {
        *("encoder.weight", "encoder.bias", "bn.weight", "bn.bias"),
        *("bn.running_mean", "bn.running_var", "bn.num_batches_tracked"),
    }
    assert "sim.weight of blocks 0, 1" in initial.notes[1]


def test_frozen_blocks_take_no_heads(sources: Any) -> None:
    initial = begun(sources["mlp"], freeze=[0])
    assert {name.partition(".")[0] for name in names(initial, 0)} == {"encoder", "bn"}
    assert "sim.weight" in names(initial, 1)
    assert len(initial.notes) == 1


def test_some_blocks_of_a_network_of_another_depth(sources: Any) -> None:
    initial = begun(sources["deep"], blocks=[0, 1])
    assert sorted(initial.files) == [0, 1]
    assert initial.notes[1] == "model.init_from: begin anew: all of block 2"


def test_another_non_linearity_is_told(sources: Any) -> None:
    """By `pred` it is ReLU, where `predsim` has leaky ReLU: no tensor shows it."""
    said = begun(sources["mlp"], loss="pred").notes[-1]
    assert said == (
        "model.init_from: blocks 0, 1: the non-linearity is relu here, leaky_relu there: to keep "
        "it, set model.nonlinearity leaky_relu"
    )
    kept = begun(sources["mlp"], loss="pred", nonlinearity="leaky_relu").notes
    assert not any("non-linearity" in note for note in kept)


BY_2 = "pooling of 2×2, stride 2×2"


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        (
            {"layers": [4, "M", 4, "A", 4]},
            {"layers": [4, "A", 4, "M", 4]},
            [f"block 0: average {BY_2} here, max {BY_2} there",
             f"block 1: max {BY_2} here, average {BY_2} there"],
        ),
        (
            {"layers": [4, 4]},
            {"layers": [4, "M3", 4]},
            ["block 0: max pooling of 3×3, stride 2×2 here, no pooling there"],
        ),
        ({"layers": [4, 4, 4]}, {"layers": [4, 4, 4]}, []),
        (
            {"name": "wrn-10-1", "hidden_layers": 0},
            {"name": "wrn-10-1", "hidden_layers": 0, "residual": False},
            ["block 2: no shortcut here, a shortcut from block 1 there"],
        ),
    ],
)  # fmt: skip
def test_what_no_tensor_shows_is_told(
    there: dict[str, Any], here: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    """Convolutions are of one shape whatever follows them."""
    common = {"name": "vgg", "hidden_layers": 1, "hidden": 8}
    blocks = [0, 1, 2] if "name" in there else [0, 1]  # beyond, the others differ in shape
    tree = {**TREE, "model": {**common, **there}, "data": {**DATA, "size": 16}}
    pipeline.fit(config=tree, epochs=1, gpus="cpu", quiet=True, run_dir=tmp_path / "run")
    notes = begun(tmp_path / "run", {"size": 16}, blocks=blocks, **{**common, **here}).notes
    found = [note for note in notes if " here, " in note]
    assert len(found) == len(said)
    for note, words in zip(found, said, strict=True):
        assert words in note


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("gone", {}, "model.init_from {run}: there is no such folder"),
        ("empty", {}, "model.init_from {run}: holds no run: name the folder of a run"),
        ("unfinished", {}, "model.init_from {run}: holds no run: name the folder of a run"),
        ("mlp", {"checkpoint": 4}, "model.init_from.checkpoint 4: there are checkpoints of steps"),
        ("mlp", {"blocks": [0, 9]}, "model.init_from.blocks: there is no block 9; the network"),
        ("mlp", {"hidden_layers": 3}, "model.init_from {run}: has 3 blocks, and this network 4:"),
        (
            "mlp", {"hidden_layers": 3, "blocks": [3]},
            "model.init_from.blocks: there is no block 3 in {run}, which has blocks 0 to 2",
        ),
        (
            "mlp", {"hidden": 9},
            "model.init_from {run}: is of another network: encoder.weight of block 0 is float32 "
            "(8, 16) there, and float32 (9, 16) here; take the blocks that are alike",
        ),
        (
            "mlp", {"batch_norm": False},
            "model.init_from {run}: is of another network: block 0 has bn.",
        ),
        (
            "plain", {},
            "model.init_from {run}: is of another network: bn.weight of block 0 is missing there, "
            "and float32 (8,) here",
        ),
        ("damaged", {}, "model.init_from: {run}/checkpoints/step-00000006/block-01.safetensors: "),
    ],
)  # fmt: skip
def test_a_wrong_source_is_a_line(
    name: str, changed: Any, says: str, sources: Any, tmp_path: Path
) -> None:
    run = sources.get(name, tmp_path / name)
    if name == "empty":
        run.mkdir()
    elif name == "unfinished":
        (run / "checkpoints" / "step-00000004").mkdir(parents=True)
    elif name == "damaged":
        copied(sources["mlp"], run)
        path = run / "checkpoints" / "step-00000006" / "block-01.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ConfigError) as caught:
        begun(run, **changed)
    assert str(caught.value).startswith(says.format(run=run))
    assert "\n" not in str(caught.value)


def copied(run: Path, to: Path) -> None:
    for path in run.rglob("*"):
        if path.is_file():
            (to / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(run)).write_bytes(path.read_bytes())


def test_the_best_alone_can_be_handed_on(sources: Any, tmp_path: Path) -> None:
    for path in (sources["weights"] / "checkpoints" / "best").iterdir():
        target = tmp_path / "checkpoints" / "best" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert sorted(begun(tmp_path, checkpoint="best").files) == [0, 1, 2]
    with pytest.raises(ConfigError, match="only 'best' is there: use that"):
        begun(tmp_path)


def own(classes: int = 5, hidden: int = 6) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(16, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
        nn.Sequential(nn.Linear(hidden, 4), nn.ReLU(), nn.Linear(4, classes)),
    )  # fmt: skip


def test_of_a_user_s_own_network_tensors_go_by_block_and_name(tmp_path: Path) -> None:
    data = {"data": DATA, "loss": {"name": "pred"}}
    quick: dict[str, Any] = {"epochs": 1, "gpus": "cpu", "quiet": True}
    first = pipeline.fit(own(), config=data, run_dir=tmp_path / "first", **quick)
    few = {"data": {**DATA, "classes": 3}, "loss": {"name": "pred"}}
    run = pipeline.fit(own(3), config=few, init_from=first.path, freeze=[0], **quick)
    for name, tensor in first.model[1].state_dict().items():
        assert torch.equal(tensor, run.model[1].state_dict()[name])
    assert run.model[2][2].weight.shape == (3, 4)
    log = (run.path / "run.log").read_text()
    assert "begin anew: encoder.0.2.weight, encoder.0.2.bias of block 1" in log
    with pytest.raises(
        ConfigError, match=r"encoder.1.0.weight of block 0 is float32 \(6, 16\) there"
    ):
        pipeline.fit(own(hidden=7), config=data, init_from=first.path, **quick)
