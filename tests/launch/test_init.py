"""pipeline-init: what it writes is taken unchanged, and trains to something sensible at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_wine

from benchmarks.digit_images import main as write_digits
from launch import cli, init
from launch.first_config import first_config
from pipeline.config.config_file import config_of, load_config
from pipeline.data.batches import load_batches
from pipeline.errors import ConfigError
from pipeline.run.metrics import METRICS_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.testing import Result


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(init.main, arguments)


def trained(data: str, *options: str) -> float:
    """The tested error, in percent, of a run by the config that is written for some data."""
    result = run(data, "--out", "my.yaml")
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    command = result.stderr.removeprefix("next: pipeline-launch ").split()
    result = CliRunner().invoke(
        cli.main, [*command, "--view", "quiet", "--run-dir", "run", *options]
    )
    assert result.exit_code == 0, result.stderr
    last = json.loads((Path("run") / METRICS_FILE).read_text().splitlines()[-1])
    found: float = (last.get("test") or last["validation"])["error_pct"]
    return found


def pictures(
    size: tuple[int, int],
    mode: str = "RGB",
    images: int = 3,
    parts: Sequence[str] = ("train", "val"),
) -> str:
    """A folder of two classes."""
    for part in parts:
        for name in ("cat", "dog"):
            folder = Path("photos") / part / name
            folder.mkdir(parents=True)
            for number in range(images):
                image = Image.new(mode, size, 0)
                image.paste(Image.new(mode, (size[0] // 2, size[1]), "white"), (number, 0))
                image.save(folder / f"{number}.png")
    return "photos"


def arrays(name: str = "my.npz", **given: Any) -> str:
    np.savez(name, **given)
    return name


# --- it trains ------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(40, 60))
def test_the_shape_of_an_example_stays_on_one_line(length: int) -> None:
    name = "n" * length + ".npz"
    arrays(name, X=np.zeros((60, 3, 32, 32), np.uint8), y=np.arange(60) % 3)
    text = first_config(name)
    assert "uint8 of 3 × 32 × 32." in text
    assert "\u00a0" not in text


@pytest.mark.usefixtures("torch_settings")
def test_a_folder_of_small_pictures_is_learned_as_it_is() -> None:
    CliRunner().invoke(write_digits, ["png"])
    assert trained("png", "--set", "schedule.epochs=3") < 8
    assert "# png: 1,437 examples to train on, 360 to test on; 10 classes (0, 1, 2," in (
        Path("my.yaml").read_text()
    )


@pytest.mark.usefixtures("torch_settings")
def test_a_file_of_measurements_is_learned_as_it_is() -> None:
    X, y = load_wine(return_X_y=True)
    path = arrays(X=X, y=y, classes=np.array(["one", "two", "three"]))
    assert trained(path, "--set", "schedule.epochs=15") < 10
    config = load_config(Path("my.yaml"))
    assert (config.data.validation, config.data.normalise) == (0.2, "measured")
    assert "3 classes (one, two, three)" in Path("my.yaml").read_text()


@pytest.mark.usefixtures("torch_settings")
def test_what_was_chosen_for_pictures_can_be_read() -> None:
    """Colour, photographs, 16 bits."""
    config = config_of(first_config(pictures((200, 100))), "")
    assert (config.data.size, config.data.channels, config.data.random_crop) == (64, 3, None)
    x, _ = load_batches(config.data, 1).train(1, 0)
    assert x.shape[1:] == (3, 64, 64)


@pytest.mark.parametrize(("mode", "white"), [("L", None), ("I;16", 65535.0)])
def test_grey_pictures_are_read_as_such(mode: str, white: float | None) -> None:
    config = config_of(first_config(pictures((12, 12), mode)), "")
    found = (config.data.size, config.data.resize, config.data.channels, config.data.white)
    assert found == (12, 12, 1, white)


@pytest.mark.parametrize(
    ("parts", "said", "validation"),
    [
        (["train", "test"], "# tested on its test/", None),
        (["train", "val", "test"], "# tested on its val/, test/ is left alone", None),
        (["train"], "6 examples to train on;", 0.2),
        (["."], "6 examples to train on;", 0.2),
    ],
)
@pytest.mark.usefixtures("torch_settings")
def test_folders_are_taken_as_people_have_them(
    parts: list[str], said: str, validation: float | None
) -> None:
    pictures((12, 12), parts=parts)
    trained("photos", "--set", "schedule.epochs=1")
    assert said in Path("my.yaml").read_text()
    assert load_config(Path("my.yaml")).data.validation == validation


# --- any data -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "stl10", "svhn", "synthetic"])
def test_a_data_set_needs_not_be_there(name: str) -> None:
    config = config_of(first_config(name), "")
    assert config.data.name == name
    assert config.model.name == ("mlp" if name == "mnist" else "vgg")


@pytest.mark.parametrize("images", [17, 33, 65, 129])
def test_no_image_is_left_for_a_batch_of_its_own(images: int) -> None:
    X, y = np.zeros((images, 4)), np.arange(images) % 2
    config = config_of(first_config(arrays(x_train=X, y_train=y, x_test=X, y_test=y)), "")
    assert images % config.data.batch_size != 1


def test_numbers_to_predict_have_the_loss_that_can() -> None:
    X = np.zeros((50, 4), "float32")
    config = config_of(first_config(arrays(X=X, y=np.linspace(0, 1, 50))), "")
    assert config.loss.name == "glob"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("mnits", "mnits: is no folder of images, no .npz file, and no data set by name; these"),
        ("mnits", "; did you mean mnist?"),
        ("imagefolder", "imagefolder: is no folder of images"),
        ("gone.npz", "data.file gone.npz: No such file or directory"),
        ("empty", "holds no folder, and imagefolder needs train/CLASS/… with val/CLASS/…"),
        (
            "my.csv",
            "my.csv: is a file, and only an .npz file is read: one with X and y, or",
        ),
        ("cat.png", "of images give a folder of folders, of anything else a function (docs/data"),
    ],
)
def test_data_that_are_not_there_are_named(data: str, said: str) -> None:
    Path("empty").mkdir()
    for name in ("my.csv", "cat.png"):
        Path(name).touch()
    result = run(data)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_token_ids_need_a_network_of_ones_own() -> None:
    ids = np.zeros((8, 5), "int64")
    with pytest.raises(ConfigError, match="examples are token ids, which no built-in network"):
        first_config(arrays(X=ids, y=ids))


# --- the file -------------------------------------------------------------------------------


def test_a_file_that_is_there_is_kept() -> None:
    Path("my.yaml").write_text("mine")
    result = run("digits", "--out", "my.yaml")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: --out my.yaml: is there already: name another, or give --overwrite\n"
    )
    assert Path("my.yaml").read_text() == "mine"
    assert run("digits", "--out", "my.yaml", "--overwrite").exit_code == 0
    assert load_config(Path("my.yaml")).data.name == "digits"


def test_a_config_may_go_into_a_pipe() -> None:
    result = run("digits")
    assert result.exit_code == 0
    assert config_of(result.stdout, "").data.name == "digits"
    assert result.stderr == "next: pipeline-launch --single FILE.yaml\n"
