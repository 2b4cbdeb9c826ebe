"""`pipeline.export`: files that another program loads, and gets the very predictions of the run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.datasets import load_digits
from support import REPOSITORY
from support.torchvision_networks import vgg
from torch import nn

import pipeline
from launch.export import main
from pipeline.api import export as export_module
from pipeline.api import formats
from pipeline.api.formats import FromData

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("export")]

FORMATS = ("safetensors", "state-dict", "torch-export", "onnx")
GRAPHS = ("torch-export", "onnx")
FIT: dict[str, Any] = {"epochs": 1, "batch_size": 16, "gpus": "cpu", "quiet": True}
SYNTHETIC = {"data.size": 32, "data.classes": 5, "data.train_images": 32, "data.test_images": 8}
MEASURED = {"model.hidden_layers": 2, "model.hidden": 16, "data.normalise": "measured"}
DIGITS = {"data.train_limit": 64, "data.test_limit": 16, "model.feat_mult": 0.05}
X, Y = load_digits(return_X_y=True)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name of the file: run, format, arguments
    **{f"{run}-{each}": (run, each, {}) for run in ("mlp", "vgg", "resnet") for each in FORMATS},
    **{f"own-{each}": ("own", each, {}) for each in FORMATS},
    **{f"resnet-3-{each}": ("resnet", each, {"depth": 3}) for each in ("safetensors", "onnx")},
    **{f"mlp-data-{each}": ("mlp", each, {"preprocess": True}) for each in GRAPHS},
    "vgg-data-onnx": ("vgg", "onnx", {"preprocess": True}),
    "own-1-onnx": ("own", "onnx", {"depth": 1}),
}
ELSEWHERE = """
import importlib.abc, json, sys

class Refused(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pipeline", "launch"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refused())
sys.path.append(TESTS)
import numpy as np, torch
from support.torchvision_networks import vgg

given, found = np.load("given.npz"), {}
for name, code in json.load(open("codes.json")).items():
    here = {"vgg": vgg}
    exec(code, here)
    for examples in (given[name], given[name][:1]):
        if "session" in here:
            (y,) = here["session"].run(None, {"x": examples})
        else:
            with torch.no_grad():
                y = here["network"](torch.from_numpy(examples)).numpy()
        found[f"{name}/{len(examples)}"] = y
np.savez("found.npz", **found)
assert not {"pipeline", "launch"} & {name.split(".")[0] for name in sys.modules}
"""
"""Carries out what the texts say of loading, where this package can't be imported."""


def code_in(text: str) -> str:
    """Of a text beside a file: how to load it."""
    found = re.search(r"^To load it.*\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    assert found, text
    code = re.sub("^    ", "", found[1], flags=re.MULTILINE)
    return code.replace("network = …", "network = vgg()")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, pipeline.FittedRun]:
    fit = {
        "mlp": partial(pipeline.fit, "mlp", (X[:200], Y[:200]), options=MEASURED),
        "vgg": partial(
            pipeline.fit, "vgg8b", "synthetic", options={**SYNTHETIC, "model.feat_mult": 0.05}
        ),
        "resnet": partial(pipeline.fit, "resnet18", "digits", options=DIGITS),
        "own": partial(pipeline.fit, vgg(), "synthetic", loss="pred", options=SYNTHETIC),
    }
    return {name: made(**FIT, run_dir=folder / f"run-{name}") for name, made in fit.items()}


def examples(run: str, n: int = 5) -> NDArray[Any]:
    """As they are in the data."""
    if run == "mlp":
        return X[:n].astype("float32")
    draws = np.random.default_rng(1)
    shape = (1, 8, 8) if run == "resnet" else (3, 32, 32)
    return draws.integers(0, 256, (n, *shape), dtype=np.uint8)


def normalised(run: pipeline.FittedRun, x: NDArray[Any]) -> NDArray[np.float32]:
    facts = json.loads((run.path / "data.json").read_text())["facts"]
    scaled = x.astype("float64") / (255 if x.dtype == np.uint8 else 1)
    places = (-1, 1, 1) if x.ndim == 4 else (-1,)
    mean, std = (np.reshape(facts[key], places) for key in ("mean", "std"))
    return ((scaled - mean) / std).astype("float32")


@pytest.fixture(scope="module")
def found(folder: Path, runs: dict[str, pipeline.FittedRun]) -> dict[str, NDArray[Any]]:
    """What each file gives in a process that can't import this package."""
    given, codes = {}, {}
    for name, (run, format, arguments) in CASES.items():
        network = {"network": vgg()} if run == "own" else {}
        path = pipeline.export(runs[run].path, format, folder / name, **arguments, **network)
        codes[name] = code_in(path.with_name(f"{name}.txt").read_text())
        x = examples(run)
        given[name] = x if "preprocess" in arguments else normalised(runs[run], x)
    np.savez(folder / "given.npz", **given)
    (folder / "codes.json").write_text(json.dumps(codes))
    program = ELSEWHERE.replace("TESTS", repr(str(REPOSITORY / "tests")))
    subprocess.run([sys.executable, "-I", "-c", program], cwd=folder, check=True, timeout=150)
    return dict(np.load(folder / "found.npz"))


@pytest.mark.timeout(400)  # a dozen programs are compiled for it
@pytest.mark.parametrize("name", CASES)
def test_another_program_gets_what_the_run_predicts(
    name: str, found: dict[str, NDArray[Any]], runs: dict[str, pipeline.FittedRun]
) -> None:
    run, _, arguments = CASES[name]
    if depth := arguments.get("depth"):
        network = {"network": vgg()} if run == "own" else {}
        model = pipeline.load(runs[run].path, depth=depth, **network)
        with torch.no_grad():
            expected = model(torch.from_numpy(normalised(runs[run], examples(run)))).numpy()
    else:
        expected = runs[run].scores_by_depth(examples(run))[-1]
    np.testing.assert_allclose(found[f"{name}/5"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[f"{name}/1"], expected[:1], rtol=1e-5, atol=1e-5)


def test_the_text_says_what_goes_in_and_where_it_is_from(
    folder: Path, found: dict[str, Any], runs: dict[str, pipeline.FittedRun]
) -> None:
    images = (folder / "resnet-safetensors.txt").read_text()
    assert "x: float32 (n, 1, 8, 8)" in images
    assert "to be normalised before: x = (v / 255 - mean) / std\n    mean: 0.3053\n" in images
    assert "y: float32 (n, 10)" in images
    assert "10, 0 to 9; the data have no names" in images
    test = runs["resnet"].history[-1]["test"]
    assert f"test error of the whole network there: {test['error_pct']:.2f} %" in images
    assert f"run: {runs['resnet'].path}\n    checkpoint: step 4, epoch 1\n" in images
    assert "name: resnet18" in images
    assert "what block 2 (conv 3→3) of 18 passes on" in (folder / "resnet-3-onnx.txt").read_text()
    bytes_in = (folder / "vgg-data-onnx.txt").read_text()
    assert "x: uint8 (n, 3, 32, 32)" in bytes_in
    assert "normalised inside: (v / 255 - mean) / std, by channel" in bytes_in
    arrays = (folder / "mlp-state-dict.txt").read_text()
    assert "to be normalised before: x = (v - mean) / std, by place" in arrays


@pytest.mark.parametrize("name", ["mlp-onnx", "vgg-data-onnx"])
def test_an_onnx_file_names_what_may_be_of_any_size(name: str, folder: Path, found: object) -> None:
    """As in the text beside it, and as viewers and servers of such files show it."""
    session = pytest.importorskip("onnxruntime").InferenceSession(folder / name)
    (given,), (left,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape[0]) == ("x", "n")
    assert (left.name, left.shape[0]) == ("y", "n")


def test_names_of_classes_are_in_the_text(tmp_path: Path) -> None:
    data = {"train": (X[:64], Y[:64] % 2), "classes": ["even", "o\ndd\udcff"]}
    run = pipeline.fit("mlp", data, **FIT, options={"model.hidden": 8}, run_dir=tmp_path / "run")
    path = pipeline.export(run.path, out=tmp_path / "file")
    assert "\nClasses\n    0: even\n    1: 'o\\ndd\\udcff'\n" in Path(f"{path}.txt").read_text()
    said = CliRunner().invoke(main, [str(run.path), "--out", str(tmp_path / "other")])
    assert said.exit_code == 0
    assert said.stdout.startswith(f"{tmp_path / 'other'}, and other.txt, which says how to use it")
    assert (tmp_path / "other").read_bytes() == path.read_bytes()


def test_normalisation_inside_is_that_of_the_run() -> None:
    """To the bit, as the first stage does it."""
    from pipeline.data.facts import known_facts
    from pipeline.learning.augment import Preprocess

    facts = known_facts("cifar10")
    x = torch.from_numpy(examples("vgg"))
    as_run = Preprocess(facts.mean, facts.std, seed=1, device=torch.device("cpu")).evaluate(x)
    assert torch.equal(FromData(nn.Identity(), facts)(x), as_run)


class Decides(nn.Module):
    """What it computes is decided by numbers that only a run knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.detach().sum()) > 1e9 else x


def refused(*arguments: str) -> str:
    """The one line that a wrong command gives."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip()


def test_what_is_wrong_is_said_in_a_line(
    runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = str(runs["resnet"].path)
    which = "name the folder of a run, as pipeline-launch said at its end"
    assert refused("nowhere") == f"RUN nowhere: there is no such folder: {which}"
    assert refused(str(tmp_path)) == f"RUN {tmp_path}: holds no run: {which}"
    assert refused(run, "--checkpoint", "3").startswith("--checkpoint 3: there are checkpoints of")
    assert refused(run, "--depth", "2").startswith("--depth 2: a shortcut spans blocks 1 to 2")
    assert refused(run, "--format", "h5").startswith("--format 'h5': there are safetensors, ")
    assert refused(run, "--preprocess").startswith("--preprocess: format safetensors holds tensors")
    assert refused(run, "--out", "no/where").startswith("--out no/where: there is no folder no")
    assert refused(run, "--out", ".") == "--out .: is a folder: name a file in it"
    assert refused(str(runs["own"].path)) == (
        f"{runs['own'].path}: the network of this run is a Python object, which no command has: "
        "use pipeline.export(…) with it"
    )
    assert not list(tmp_path.iterdir())


def test_a_command_finds_modules_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pipeline-launch does, whose path has it not, either."""
    (tmp_path / "my_exported.py").write_text(
        "from torch import nn\n\n\ndef make(width):\n"
        "    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    model = {"factory": "my_exported:make", "kwargs": {"width": 8}}
    pipeline.fit(None, (X[:64], Y[:64]), config={"model": model}, **FIT, run_dir="run")
    monkeypatch.setattr(sys, "path", sys.path[:-1])
    monkeypatch.delitem(sys.modules, "my_exported")
    result = CliRunner().invoke(main, ["run"])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "run.safetensors.txt").read_text()
    assert "network = …  # what my_exported:make gives for {'width': 8}" in text
    del sys.modules["my_exported"]


def test_files_that_are_there_are_kept(runs: dict[str, Any], tmp_path: Path) -> None:
    run, out = runs["mlp"].path, tmp_path / "network"
    for name in ("network", "network.txt"):
        (tmp_path / name).write_text("mine")
        said = refused(str(run), "--out", str(out))
        assert (
            said == f"--out {tmp_path / name}: is there already: name another, or give --overwrite"
        )
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    out.write_text("mine")
    pipeline.export(run, out=out, overwrite=True)
    assert out.stat().st_size > 100


@pytest.mark.parametrize("format", GRAPHS)
def test_a_network_that_has_no_program_is_refused_with_torch_s_reason(
    format: Any, tmp_path: Path
) -> None:
    net = nn.Sequential(nn.Linear(64, 8), Decides(), nn.Linear(8, 10))
    run = pipeline.fit(net, (X[:64], Y[:64]), **FIT)
    with pytest.raises(pipeline.ConfigError) as caught:
        pipeline.export(run.path, format, tmp_path / "network", network=net)
    said = str(caught.value)
    assert said.startswith(f"format {format}: torch can't export this network: ")
    assert "data-dependent" in said
    assert said.endswith("; safetensors and state-dict hold its tensors")
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named(
    runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(pipeline.ConfigError) as caught:
        pipeline.export(runs["mlp"].path, "onnx", tmp_path / "network")
    assert str(caught.value) == (
        "format onnx: needs onnx and onnxscript: pip install 'local-loss-pipeline[onnx]' (or onnx "
        "onnxscript)"
    )


def test_a_full_disk_leaves_nothing_half_written(
    runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(export_module, "replace_in", full)
    with pytest.raises(pipeline.ConfigError, match=r"can't be written: No space left on device"):
        pipeline.export(runs["mlp"].path, out=tmp_path / "network")
    assert not list(tmp_path.iterdir())
