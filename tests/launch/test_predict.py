"""pipeline-predict: the classes that the run's own network gives, by name; lines about the rest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.special import softmax

import pipeline
from launch.predict import in_words, main
from pipeline.data.image_folder import read_folder

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.api.fitted import FittedRun

pytestmark = pytest.mark.usefixtures("torch_settings")
CLASSES = ("dark", "light", "split")
SIZE = 8


def image(label: int, seed: int) -> Image.Image:
    """Of another size than the network sees."""
    draws = np.random.default_rng(seed)
    pixels = draws.integers(0, 60, (14, 12, 3)) + (0, 190, 0)[label]
    if label == 2:
        pixels[:, :6] += 190
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 20), ("val", 4)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                picture = image(label, seed=100 * label + k + (50 if part == "val" else 0))
                picture.save(root / part / name / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> FittedRun:
    options = {
        "data.name": "imagefolder", "data.root": str(root), "data.size": SIZE,
        "data.random_crop": False, "data.normalise": "measured", "model.hidden": 16,
    }  # fmt: skip
    return pipeline.fit(
        "mlp", str(root), epochs=8, batch_size=12, lr=0.003, gpus="cpu", quiet=True,
        options=options, run_dir=tmp_path_factory.mktemp("run") / "run",
    )  # fmt: skip


def ask(*arguments: Any) -> tuple[int, str]:
    """Exit status and all output."""
    done = CliRunner().invoke(main, list(map(str, arguments)))
    return done.exit_code, done.output


def lines(*arguments: Any) -> list[dict[str, Any]]:
    status, said = ask(*arguments, "--json")
    assert status == 0, said
    return list(map(json.loads, said.splitlines()))


def test_how_far_it_is_is_said_beside_the_answers(
    run: FittedRun, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.display.plain_view.PLAIN_EVERY_S", 0.0)
    done = CliRunner().invoke(main, [str(run.path), str(root / "val"), "--json"])
    assert len(list(map(json.loads, done.stdout.splitlines()))) == 12
    assert done.stderr.splitlines() == [f"predicting: {k} of 12" for k in range(1, 13)]


def test_images_are_seen_as_in_the_tests_of_the_run(run: FittedRun, root: Path) -> None:
    """Scaled, cut and normalised: the probabilities are those of the arrays that a test has."""
    _, _, _, test = read_folder(run._trained.config.data, 1, lambda *told: None)
    x, y = test.take(np.arange(len(test)), None)
    expected = softmax(run.scores_by_depth(x)[-1], axis=1)
    found = lines(run.path, root / "val", "--top", 99)
    assert [line["file"] for line in found] == sorted(map(str, root.glob("val/*/*.png")))
    for line, row in zip(found, expected, strict=True):
        assert [each["class"] for each in line["classes"]] == [CLASSES[k] for k in np.argsort(-row)]
        given = [each["probability"] for each in line["classes"]]
        assert given == pytest.approx(sorted(row, reverse=True), abs=1e-5)
    named = [line["classes"][0]["class"] for line in found]
    assert named == [CLASSES[label] for label in y], "it has learned this much"


def test_people_get_a_line_for_each_image(run: FittedRun, root: Path) -> None:
    file = root / "val" / "dark" / "0.png"
    ((best, _),) = [
        [each["class"], each["probability"]] for each in lines(run.path, file)[0]["classes"][:1]
    ]
    status, said = ask(run.path, file, root / "val" / "light", "--top", "2")
    assert status == 0
    first, *others = said.splitlines()
    assert first.startswith(f"{file}: {best} 0.")
    assert first.count(",") == 1
    assert len(others) == 4


def test_arrays_need_no_targets(run: FittedRun, tmp_path: Path) -> None:
    x = np.random.default_rng(1).integers(0, 256, (5, 3, SIZE, SIZE), dtype=np.uint8)
    np.savez(tmp_path / "some.npz", X=x)
    found = lines(run.path, tmp_path / "some.npz", "--checkpoint", "best", "--top", 1)
    assert [line["example"] for line in found] == [0, 1, 2, 3, 4]
    network = pipeline.load(run.path, at="best")
    facts = run._trained.facts
    mean, std = (np.float32(each)[:, None, None] for each in (facts.mean, facts.std))
    scores = network(torch.from_numpy((x / np.float32(255) - mean) / std)).detach()
    classes = [line["classes"][0]["class"] for line in found]
    assert classes == [CLASSES[k] for k in scores.argmax(dim=1).tolist()]


def test_numbers_are_given_as_they_are(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    given = {"epochs": 1, "batch_size": 10, "gpus": "cpu", "quiet": True, "loss": "glob"}
    run = pipeline.fit("mlp", (x, x[:, :2]), **given, run_dir=tmp_path / "run")
    np.savez(tmp_path / "some.npz", X=x)
    found = [line["numbers"] for line in lines(run.path, tmp_path / "some.npz")]
    assert np.array(found) == pytest.approx(run.predict(x))
    assert ask(run.path, tmp_path / "some.npz")[1].startswith("0: ")


def test_a_name_stays_in_its_line() -> None:
    answer = {"file": "a\nb.png", "classes": [{"class": "\x1b[31m", "probability": 0.5}]}
    assert in_words(answer) == r"'a\nb.png': '\x1b[31m' 0.5000"


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (["no.png"], "IMAGE no.png: there is no such file or folder"),
        (["text.png"], "text.png: can't be decoded as an image: it is of no format that is read"),
        (["empty"], "IMAGE empty: there is no image in this folder"),
        (["no.npz"], "IMAGE no.npz: there is no such file or folder"),
        (["y.npz"], "y.npz: needs examples to predict, as X or x_test"),
        (["wide.npz"], "wide.npz: X has shape (2, 5); (n, 3, 8, 8) is needed, as in the data"),
        (["none.npz"], "none.npz: X has shape (0, 3, 8, 8): (n, …) with at least one example"),
        (["deep.png"], "deep.png: pixels of mode I;16 have more than 8 bits, and the run's config"),
        (["wide.npz", "text.png"], "wide.npz: give one .npz file alone, or images"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    run: FittedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    np.savez("y.npz", y=np.zeros(2))
    np.savez("wide.npz", X=np.zeros((2, 5), np.uint8))
    np.savez("none.npz", X=np.zeros((0, 3, 8, 8), np.uint8))
    Image.fromarray(np.zeros((8, 8), np.uint16)).save("deep.png")
    status, said = ask(run.path, *inputs)
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {says}")


def test_examples_that_are_no_images_need_a_file_of_arrays(tmp_path: Path) -> None:
    x, y = np.zeros((20, 4), np.float32), np.arange(20) % 2
    given = {"epochs": 1, "batch_size": 10, "gpus": "cpu", "quiet": True}
    run = pipeline.fit("mlp", (x, y), **given, run_dir=tmp_path / "run")
    image(0, 1).save(tmp_path / "some.png")
    status, said = ask(run.path, tmp_path / "some.png")
    assert status == 2
    assert said.startswith("error: image files can't be read as examples of this run, which are f")
