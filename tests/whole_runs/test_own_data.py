"""Runs on data of a user's own: the same in one process, in several, and resumed; refused where
the data are others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.own_data import DATA, FACTORY, floats, labels, shifted
from support.processes import final_digests, launch
from support.run_in_threads import Job, check_resumed, train_pipelined, train_single, trained_alike

from pipeline.learning.augment import Preprocess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")

SHIFTED = {
    "factory": FACTORY, "kwargs": {"data": "shifted"}, "batch_size": 8, "validation": 0.25,
    "normalise": "measured", "crop_padding": 1, "flip": True, "cutout": 2,
}  # fmt: skip
MLP = {"name": "mlp", "hidden_layers": 2, "hidden": 16}


def rows(shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    x = floats(24, shape)
    return (x if dtype == "float32" else (40 * x).clip(0, 255).astype(dtype)), labels(24)


DATA["rows"] = rows
CASES: dict[str, dict[str, Any]] = {
    "float images": {"data": SHIFTED},
    "float features": {
        "model": MLP,
        "data": {
            "factory": FACTORY,
            "kwargs": {"data": "rows", "shape": [9], "dtype": "float32"},
            "batch_size": 7,
            "validation": 0.2,
        },
    },
    "bytes in two dimensions": {
        "model": MLP,
        "data": {
            "factory": FACTORY,
            "kwargs": {"data": "rows", "shape": [5, 4], "dtype": "uint8"},
            "batch_size": 7,
            "mean": [0.5],
            "std": [0.25],
            "validation": 0.2,
        },
    },
}


@pytest.mark.parametrize("case", CASES)
def test_own_data_train_the_same_in_a_pipeline_and_resumed(
    case: str, folder: Callable[[], Path]
) -> None:
    sections = {**CASES[case], "checkpoint_every_steps": 1}
    single = trained_alike(folder, 2, **sections)
    check_resumed(single, folder, 2, 1, **sections)
    for line in single.lines():
        assert "test" not in line
        assert line["validation"]["loss"] > 0


@pytest.mark.parametrize("train", [train_single, train_pipelined])
def test_floats_begin_where_kernels_round_alike(
    train: Callable[[Job], None], folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, at multiples of 64 bytes; numpy's arrays begin at any multiple of 16."""
    begins = list[int]()

    def noting(preprocess: Preprocess, x: Tensor, *at: int) -> Tensor:
        begins.append(x.data_ptr() % 64)
        return x

    monkeypatch.setattr(Preprocess, "train", noting)
    data = {key: SHIFTED[key] for key in ("factory", "kwargs")}
    train(Job(folder(), 2, data={**data, "batch_size": 5}))
    assert begins == [0] * 16


def test_without_a_test_part_nothing_is_tested(folder: Callable[[], Path]) -> None:
    data = {key: SHIFTED[key] for key in ("factory", "kwargs", "batch_size")}
    job = Job(folder(), 2, data=data)
    train_pipelined(job)
    assert [line["test"] for line in job.lines()] == [None, None]


# --- by the command -----------------------------------------------------------------------

CONFIG = f"""
model: {{name: mlp, hidden_layers: 1, hidden: 8}}
loss: {{name: pred}}
schedule: {{epochs: 1}}
data: {{factory: "{FACTORY}", kwargs: {{data: shifted}}, batch_size: 8, validation: 0.25}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def test_a_run_says_and_keeps_what_it_trains_on(config: Path, tmp_path: Path) -> None:
    assert launch(config, tmp_path / "run", single=True) == 0
    said = (tmp_path / "run/run.log").read_text()
    for words in (
        f"data {FACTORY}: 30 training and 10 validation examples of 4 classes\n",
        f"data {FACTORY}: examples are float32 of shape (2, 6, 6), targets int64 of shape ()\n",
        "  validation error ",
    ):
        assert words in said
    assert " test error" not in said
    kept = json.loads((tmp_path / "run/data.json").read_text())
    assert (kept["training_images"], kept["validates"]) == (30, True)


def test_patience_goes_by_the_validation_share_and_needs_something_to_test_on(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = ("schedule.epochs=9", "schedule.patience=1", "optimizer.lr=1e-12")
    assert launch(config, tmp_path / "run", single=True, overrides=early) == 0
    assert "ended early, after epoch 2 of 9" in (tmp_path / "run/run.log").read_text()
    nothing = (*early, "data.validation=null")
    assert launch(config, tmp_path / "other", single=True, overrides=nothing) == 2
    assert capsys.readouterr().err == (
        "error: schedule.patience 1 goes by tests, and there are no examples to test on: keep some "
        "of the training set by data.validation, as 0.1\n"
    )
    best = ("runtime.keep_best=test", "data.validation=null")
    assert launch(config, tmp_path / "other", single=True, overrides=best) == 2
    assert capsys.readouterr().err == (
        "error: runtime.keep_best test: there are no examples to test on: use last, or keep some "
        "of the training set by data.validation, as 0.1\n"
    )
    assert not (tmp_path / "other").exists()


def test_a_run_resumed_on_other_data_is_refused(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert launch(config, tmp_path / "run", single=True) == 0
    capsys.readouterr()
    monkeypatch.setitem(DATA, "shifted", lambda: shifted(change=0.5))
    more = ("schedule.epochs=2",)
    assert launch(config, tmp_path / "run", single=True, resume=True, overrides=more) == 2
    said = capsys.readouterr().err
    assert "--resume: the examples are others than the run began with (other training exam" in said
    accepted = said[said.index("data.accept=") :].split(")")[0]
    accept = (*more, accepted)
    assert launch(config, tmp_path / "run", single=True, resume=True, overrides=accept) == 0


def test_numbers_are_learned_by_global_backprop(tmp_path: Path) -> None:
    x = floats(64, (6,))
    DATA["numbers"] = lambda: (x, (x @ floats(6, (2,), seed=2)) / 6)
    path = tmp_path / "numbers.yaml"
    path.write_text(
        "model: {name: mlp, hidden: 32}\nloss: {name: glob}\nschedule: {epochs: 30}\n"
        f"data: {{factory: '{FACTORY}', kwargs: {{data: numbers}}, batch_size: 16, "
        "validation: 0.25, normalise: measured}\noptimizer: {lr: 0.02}\n"
    )
    assert launch(path, tmp_path / "run", single=True) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["validation"]["loss"] for line in lines]
    assert losses[-1] < 0.2 * losses[0]
    assert lines[-1]["validation"]["error_pct"] is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda: (floats() * float("nan"), labels()), "train: X has 2880 numbers that are NaN"),
        (lambda: (floats(), labels() + 1), "train: labels go from 1 to 4, but none is 0"),
        (lambda: (floats(), labels(39)), "train: 40 examples in X and 39 targets in y"),
        (lambda: (floats(1), labels(1)), "train: all labels are 0: there must be at least 2"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: None, "gives a NoneType; give (X, y)"),
    ],
)
@pytest.mark.usefixtures("nothing_starts")
def test_bad_data_end_the_command_before_anything_starts(
    given: Callable[[], Any],
    says: str,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DATA, "shifted", given)
    assert launch(config, tmp_path / "run", stages=1) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: data.factory {FACTORY}: {says}")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.processes
def test_only_the_process_that_feeds_calls_the_function(config: Path, tmp_path: Path) -> None:
    called: list[int] = []

    def counted() -> Any:
        called.append(1)
        return shifted()

    DATA["counted"] = counted
    both = [tmp_path / name for name in ("single", "pipelined")]
    more = ("data.kwargs.data=counted", "model.hidden_layers=2")
    assert launch(config, both[0], single=True, overrides=more) == 0
    assert launch(config, both[1], stages=2, overrides=more) == 0
    assert len(called) == 2
    assert final_digests(both[0]) == final_digests(both[1])


def test_a_file_may_be_moved_but_not_changed(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = shifted()
    old, new, other = (tmp_path / f"{name}.npz" for name in ("old", "new", "other"))
    for path, beside in ((old, {}), (other, {"mean": [0.0, 0.0], "std": [2.0, 2.0]})):
        np.savez(path, X=x, y=y, **beside)
    config.write_text(
        CONFIG.replace(f'factory: "{FACTORY}", kwargs: {{data: shifted}}', f"file: {old}")
    )
    assert launch(config, tmp_path / "run", single=True) == 0
    old.rename(new)
    longer = {"single": True, "resume": True}
    more = ("schedule.epochs=2", f"data.file={new}")
    assert launch(config, tmp_path / "run", overrides=more, **longer) == 0
    capsys.readouterr()
    more = ("schedule.epochs=3", f"data.file={other}")
    assert launch(config, tmp_path / "run", overrides=more, **longer) == 2
    assert "the examples are others than the run began with" in capsys.readouterr().err
