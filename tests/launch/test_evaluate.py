"""pipeline-eval: numbers of the run's own tests, other examples, and lines about wrong ones."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path
from shutil import copy, copytree, rmtree
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import launch.export
import launch.predict
import launch.report.command
import pipeline
from launch.evaluate import main, report
from pipeline.data.batches import load_batches
from pipeline.trained.evaluation import Evaluation

if TYPE_CHECKING:
    import click

    from pipeline.api.fitted import FittedRun

pytestmark = pytest.mark.usefixtures("torch_settings")
EPOCH = 23
"""Steps."""
NETWORK = {"model.hidden_layers": 2, "model.hidden": 16}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FittedRun:
    return pipeline.fit(
        "mlp", "digits", epochs=2, batch_size=64, gpus="cpu", quiet=True, options=NETWORK,
        run_dir=tmp_path_factory.mktemp("run") / "run",
    )  # fmt: skip


def ask(*arguments: Any) -> tuple[int, str]:
    """Exit status and all output."""
    done = CliRunner().invoke(main, list(map(str, arguments)))
    return done.exit_code, done.output


def asked(*arguments: Any) -> dict[str, Any]:
    status, said = ask(*arguments, "--json")
    assert status == 0, said
    return dict(json.loads(said))


@pytest.mark.parametrize(("checkpoint", "row"), [("last", 1), ("best", 1), (EPOCH, 0)])
def test_its_own_test_set_gives_the_numbers_of_its_own_tests(
    run: FittedRun, checkpoint: Any, row: int
) -> None:
    found = asked(run.path, "--checkpoint", checkpoint)
    assert {key: run.history[row]["test"][key] for key in ("loss", "error_pct")} == {
        key: found[key] for key in ("loss", "error_pct")
    }
    assert (found["step"], found["examples"]) == (EPOCH * (row + 1), 360)
    assert sum(map(sum, found["confusion"])) == 360


@pytest.mark.parametrize("given", [True, False])
def test_how_far_it_is_is_said_beside_what_is_found(
    run: FittedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    monkeypatch.setattr("launch.display.plain_view.PLAIN_EVERY_S", 0.0)
    monkeypatch.setattr("pipeline.trained.network._AT_ONCE", 64)
    test = load_batches(run._trained.config.data, 1).test
    x, y = test.take(np.arange(200), None)
    np.savez(tmp_path / "some.npz", X=x, y=y)
    data = ["--data", str(tmp_path / "some.npz")] if given else []
    done = CliRunner().invoke(main, [str(run.path), "--json", *data])
    n = 200 if given else 360
    assert json.loads(done.stdout)["examples"] == n
    assert done.stderr.splitlines()[:2] == [f"evaluating: {k} of {n}" for k in (64, 128)]
    assert done.stderr.splitlines()[-1] == f"evaluating: {n} of {n}"


def test_tables_say_what_the_numbers_are(run: FittedRun) -> None:
    status, said = ask(run.path, "--every-depth", "--exit-at", "0.5")
    assert status == 0
    error = run.history[-1]["test"]["error_pct"]
    assert f"at step {2 * EPOCH}, on its own test set: 360 examples, error {error:.2f} %" in said
    for words in (
        "precision",
        "class \\ taken for",
        "0 linear 64→16",
        "2 output 16→10",
        "all exits",
    ):
        assert words in said


ODD = [
    "[/]",
    "[red]a",
    "[bold]a",
    "new\nline",
    "\x1b[31m",
    "bad\udcff",
    "x" * 30 + "a",
    "x" * 30 + "b",
]


def test_names_are_shown_as_they_are_in_a_line_and_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    n = len(ODD)
    confusion = tuple(tuple(int(k == taken) for taken in range(n)) for k in range(n))
    report(Evaluation(n, 0.5, 0.0, confusion), ODD, [], "[/]")
    said = capsys.readouterr().out
    names = ["[/]", "[red]a", "[bold]a", r"'new\nline'", r"'\x1b[31m'", r"'bad\udcff'"]
    names += [f"xxxxxxxx…xxxxxx{end}" for end in "ab"]
    rows = [line.split() for line in said.splitlines() if line]
    assert [row[0] for row in rows[2 : 2 + n]] == names
    assert rows[2 + n][-n:] == [row[0] for row in rows[3 + n :]] == names


@pytest.mark.parametrize(("classes", "width"), [(10, 40), (25, 400)])
def test_what_is_too_wide_is_left_out_and_said_to_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], classes: int, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    confusion = tuple(tuple(40 * (k == taken) for taken in range(classes)) for k in range(classes))
    names = [f"digit-{k}" for k in range(classes)]
    report(Evaluation(400, 0.5, 0.0, confusion), names, [], "run")
    assert " ".join(capsys.readouterr().out.split()).endswith(
        "Which classes were taken for which is too wide to be shown here: see --json."
    )


@pytest.mark.parametrize(("width", "columns"), [(120, ["digit-8", "digit-9"]), (80, ["8", "9"])])
def test_classes_are_numbered_where_their_names_are_too_long(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    width: int,
    columns: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    confusion = tuple(tuple(40 * (k == taken) for taken in range(10)) for k in range(10))
    found = Evaluation(400, 0.5, 0.0, confusion)
    report(found, [f"digit-{k}" for k in range(10)], [], "run")
    *_, head, first, _, _, _, _, _, _, _, _, last = capsys.readouterr().out.splitlines()
    assert head.startswith("class \\ taken for")
    assert head.split()[-2:] == columns
    for line, k in ((first, 0), (last, 9)):
        name, *counts = line.removeprefix(f"{k} " if width == 80 else "").split()
        assert (name, counts[k]) == (f"digit-{k}", "40")


def test_other_examples_come_as_arrays_or_as_folders_of_images(
    run: FittedRun, tmp_path: Path
) -> None:
    """The same images, so the same numbers."""
    network = run._trained
    test = load_batches(network.config.data, 1).test
    x, y = test.take(np.arange(100), None)
    np.savez(tmp_path / "some.npz", X=x, y=y)
    for k, (image, label) in enumerate(zip(x, y, strict=True)):
        (tmp_path / "some" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(tmp_path / "some" / str(label) / f"{k}.png")
    found = [asked(run.path, "--data", tmp_path / name) for name in ("some.npz", "some")]
    assert found[0]["examples"] == found[1]["examples"] == 100
    assert found[0]["confusion"] == found[1]["confusion"]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"])
    assert found[0]["error_pct"] == run.evaluate((x, y))["error_pct"]


@pytest.mark.parametrize(
    ("parts", "share", "classes", "says"),
    [
        (["x_train", "x_test"], {}, 2, "15 test examples instead of 20"),
        (["x_train", "x_test"], {}, 3, "15 test examples instead of 20"),
        (["X"], {"validation": 0.2}, 2, "12 validation examples instead of 16"),
        (["X"], {"validation": 0.2}, 3, "12 validation examples instead of 16"),
        # on its test set, which it has never seen, and of which nothing is known
        (["x_train", "x_test"], {"validation": 0.2}, 3, "3 classes of shape (4,), not 2 of (4,)"),
    ],
)
@pytest.mark.parametrize("command", [main, launch.report.command.main], ids=["eval", "report"])
def test_data_that_are_others_by_now_are_refused(
    command: click.Command,
    parts: list[str],
    share: dict[str, Any],
    classes: int,
    says: str,
    tmp_path: Path,
) -> None:
    draws = np.random.default_rng(1)

    def write(n: int, classes: int) -> None:
        arrays: dict[str, Any] = {}
        for x, size in zip(parts, (4 * n, n), strict=False):
            arrays[x] = draws.normal(size=(size, 4)).astype(np.float32)
            arrays[x.replace("x", "y").replace("X", "y")] = np.arange(size) % classes
        np.savez(tmp_path / "own.npz", **arrays)

    write(20, 2)
    given = {"epochs": 1, "batch_size": 10, "gpus": "cpu", "quiet": True, "options": NETWORK}
    run = pipeline.fit("mlp", tmp_path / "own.npz", **given, **share, run_dir=tmp_path / "run").path
    assert ask(run)[0] == 0
    write(15, classes)
    out = [] if command is main else ["--out", str(tmp_path / "page.html")]
    done = CliRunner().invoke(command, [str(run), *out])
    said = done.stderr if command is main else unescape((tmp_path / "page.html").read_text("utf-8"))
    assert done.exit_code == (2 if command is main else 0)
    assert f"this run's examples are others than it was tested on ({says}" in said
    assert "bring them back, or name these with --data" in said
    assert ask(run, "--data", tmp_path / "own.npz")[0] == (0 if classes == 2 else 2)


def test_a_run_that_validates_is_evaluated_on_its_test_set(tmp_path: Path) -> None:
    given = {"epochs": 1, "batch_size": 64, "gpus": "cpu", "quiet": True, "validation": 0.1}
    run = pipeline.fit(
        "mlp", "digits", **given, options={"model.hidden": 8}, run_dir=tmp_path / "run"
    )
    found = asked(run.path)
    assert (found["examples"], found["data"]) == (360, "its own test set")
    x = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    np.savez(tmp_path / "own.npz", X=x, y=np.arange(100) % 3)
    own = pipeline.fit(
        "mlp", tmp_path / "own.npz", **given, options={"model.hidden": 8}, run_dir=tmp_path / "own"
    )
    found = asked(own.path)
    assert (found["examples"], found["loss"]) == (10, own.history[0]["validation"]["loss"])
    assert found["data"] == "its own validation share"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--checkpoint", "7"], "--checkpoint 7: there are checkpoints of steps 23, 46: use one"),
        (["--exit-at", "0.5"], "--exit-at goes with --every-depth"),
        (["--data", "nowhere"], "--data nowhere: there is no such file or folder"),
        (["--data", "wide.npz"], "--data wide.npz: X has shape (3, 5); (n, 1, 8, 8) is needed"),
        (["--data", "more.npz"], "--data more.npz: y holds the label 10, and the network"),
        (["--data", "few.npz"], "--data few.npz: has 3 classes, and the run 10"),
        (
            ["--data", "real.npz"],
            "--data real.npz: y holds float32, and the network knows 10",
        ),
        (["--data", "bare.npz"], "--data bare.npz: needs x_test and y_test (or X and y), and ho"),
        (["--data", "number.npz"], "--data number.npz: has 11 classes, and the run 10"),
        (["--data", "part.npz"], "--data part.npz: classes 3.5: give the names of at least 2 cla"),
        (["--data", "text.npz"], "--data text.npz: is damaged or no .npz file"),
        (["--data", "odd"], "--data odd: has folders that are none of the run's 10 classes: cat"),
        (["--data", "empty"], "--data empty: has no image in a folder of a class"),
        (["--data", "bad"], "--data bad: bad/3/0.png: can't be decoded as an image"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    run: FittedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("wide.npz", X=np.zeros((3, 5), np.uint8), y=np.array([0, 1, 2]))
    np.savez("more.npz", X=np.zeros((2, 1, 8, 8), np.uint8), y=np.array([0, 10]))
    np.savez(
        "few.npz", X=np.zeros((2, 1, 8, 8), np.uint8), y=np.array([0, 2]), classes=["a", "b", "c"]
    )
    np.savez("real.npz", X=np.zeros((2, 1, 8, 8), np.uint8), y=np.array([0.5, 1.0]))
    of_two = {"X": np.zeros((2, 1, 8, 8), np.uint8), "y": np.array([0, 2])}
    np.savez("number.npz", **of_two, classes=11)
    np.savez("part.npz", **of_two, classes=3.5)
    np.savez("bare.npz", classes=np.array(["a", "b"]))
    (tmp_path / "text.npz").write_text("no archive")
    for folder in ("odd/cat", "empty/3", "bad/3"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bad" / "3" / "0.png").write_bytes(b"no image")
    status, said = ask(run.path, *options)
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {says}")


READERS = (
    main,
    launch.export.main,
    launch.predict.main,
    launch.report.command.main,
)
"""Commands that only read a run."""


def refused(command: click.Command, path: Path) -> str:
    """What a command says in a line of a run that it can't read."""
    inputs = ["image.png"] if command is launch.predict.main else []
    done = CliRunner().invoke(command, [str(path), *inputs])
    assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
    return done.output.removeprefix("error: ").rstrip()


@pytest.mark.parametrize("command", READERS)
def test_a_folder_without_a_run_is_named_with_what_to_do(
    run: FittedRun, tmp_path: Path, command: click.Command
) -> None:
    which = "name the folder of a run, as pipeline-launch said at its end"
    no, empty, begun = tmp_path / "no", tmp_path / "empty", tmp_path / "begun"
    assert refused(command, no) == f"RUN {no}: there is no such folder: {which}"
    empty.mkdir()
    assert refused(command, empty) == f"RUN {empty}: holds no run: {which}"
    (empty / "file").touch()
    assert refused(command, empty / "file") == f"RUN {empty / 'file'}: is no folder: {which}"
    begun.mkdir()
    copy(run.path / "config.yaml", begun)
    resume = f"pipeline-launch --resume --run-dir {begun}"
    assert refused(command, begun) == (
        f"RUN {begun}: this run has no folder checkpoints, and so no network: bring it back, or, "
        f"where nothing was trained yet, go on with it: {resume}"
    )
    (begun / "checkpoints").mkdir()
    assert refused(command, begun) == (
        f"RUN {begun}: this run has no complete checkpoint yet; to go on with it: {resume}"
    )


@pytest.mark.parametrize("command", READERS)
def test_a_checkpoint_of_another_network_is_named_with_what_to_do(
    run: FittedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: click.Command
) -> None:
    x = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    given = {"epochs": 1, "batch_size": 10, "gpus": "cpu", "quiet": True, "options": NETWORK}
    np.savez(tmp_path / "own.npz", X=x, y=np.arange(20) % 2)
    mixed = pipeline.fit("mlp", tmp_path / "own.npz", **given, run_dir=tmp_path / "mixed").path
    rmtree(mixed / "checkpoints")
    copytree(run.path / "checkpoints", mixed / "checkpoints")
    monkeypatch.chdir(tmp_path)
    said = refused(command, Path("mixed"))
    newest = f"mixed/checkpoints/step-{2 * EPOCH:08}"
    assert said.startswith(f"{newest}: is of another network than that of the data in mixed: ")
    assert "in the checkpoint, " in said
    assert said.endswith("; bring back the run's own, or name another by --checkpoint")


@pytest.mark.parametrize("command", READERS)
def test_a_checkpoint_of_another_network_for_the_same_data_is_named(
    run: FittedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: click.Command
) -> None:
    """Whose tensors fit each other."""
    monkeypatch.chdir(tmp_path)
    copytree(run.path, "mixed")
    text = Path("mixed/config.yaml").read_text(encoding="utf-8")
    assert "hidden: 16\n" in text
    Path("mixed/config.yaml").write_text(text.replace("hidden: 16\n", "hidden: 8\n"), "utf-8")
    said = refused(command, Path("mixed"))
    assert said.removeprefix(f"mixed/checkpoints/step-{2 * EPOCH:08}: ") == (
        "is of another network than that of mixed/config.yaml: model.hidden is 16 there and 8 "
        "here; bring back the run's own, or name another by --checkpoint"
    )


def test_objects_that_no_command_has_are_named(tmp_path: Path) -> None:
    x, y = np.zeros((20, 4), np.float32), np.arange(20) % 2
    given = {"epochs": 1, "batch_size": 10, "gpus": "cpu", "quiet": True}
    run = pipeline.fit("mlp", (x, y), **given, run_dir=tmp_path / "run")
    assert ask(run.path)[1].startswith("error: the data of this run are Python objects")
    np.savez(tmp_path / "some.npz", X=x, y=y)
    found = asked(run.path, "--data", tmp_path / "some.npz")
    assert found["examples"] == 20
    np.savez(tmp_path / "some.npz", x_test=x, y_test=y)
    assert asked(run.path, "--data", tmp_path / "some.npz") == found
