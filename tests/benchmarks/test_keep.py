"""What a finished run measured is kept; a run that can't be is told why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from support.processes import TINY

from benchmarks import keep
from launch.machine.provenance import start_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result


@pytest.fixture
def finished(tmp_path: Path, results: Path) -> Path:
    """The folder of a run of three epochs, as far as keeping it needs it."""
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "config.yaml").write_text(TINY, encoding="utf-8")
    (folder / "plan.json").write_text('{"stages": [{"blocks": [0, 1, 2, 3]}]}', encoding="utf-8")
    write_epochs(folder, 3)
    return folder


def write_epochs(folder: Path, count: int, **last: object) -> None:
    lines = [
        {"event": "epoch", "epoch": epoch, "test": {"error_pct": 9.0 / epoch}}
        for epoch in range(1, count + 1)
    ]
    lines[-1].update(last)
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def keeping(folder: Path, name: str = "mine") -> Result:
    return CliRunner().invoke(keep.main, [str(folder), name, "--command", "x"])


def test_a_finished_run_is_kept(finished: Path, results: Path) -> None:
    assert keeping(finished).exit_code == 0
    (path,) = results.glob("mine-*.json")
    result = json.loads(path.read_text("utf-8"))
    assert (result["test_error_pct"], len(result["epochs"])) == (3.0, 3)
    assert result["stages"] == [{"blocks": [0, 1, 2, 3]}]


def test_where_it_was_trained_is_what_the_run_has_kept(finished: Path, results: Path) -> None:
    start = {**start_of("pipeline-launch mine.yaml", 0), "commit": "abc1234"}
    (finished / "provenance.json").write_text(json.dumps([start]), encoding="utf-8")
    assert "leave it out" in keeping(finished).output
    assert CliRunner().invoke(keep.main, [str(finished), "mine"]).exit_code == 0
    (path,) = results.glob("mine-*.json")
    result = json.loads(path.read_text("utf-8"))
    assert (result["command"], result["commit"]) == ("pipeline-launch mine.yaml", "abc1234")
    assert not {"time", "host", "after_step"} & result.keys()


def test_a_name_that_is_no_plain_word_is_refused(finished: Path) -> None:
    found = keeping(finished, "a/b")
    assert found.exit_code == 2
    assert "NAME a/b: expected a plain word, as mnist_mlp_pred" in found.output


def test_a_folder_without_metrics_is_no_run(tmp_path: Path) -> None:
    found = keeping(tmp_path)
    assert found.exit_code == 2
    assert "metrics.jsonl: a run keeps a line there" in " ".join(found.output.split())


def untested(folder: Path) -> None:
    write_epochs(folder, 3, test=None)


def half_a_line(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])


def interrupted(folder: Path) -> None:
    write_epochs(folder, 2)


def greedy(folder: Path) -> None:
    text = TINY.replace("epochs: 3", "greedy: true, epochs: 3")
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def without_plan(folder: Path) -> None:
    (folder / "plan.json").unlink()


def with_another_plan(folder: Path) -> None:
    (folder / "plan.json").write_text("[]", encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "said", "cure"),
    [
        (untested, "metrics.jsonl: the last epoch was not tested", "eval_every_epochs of at least"),
        (half_a_line, "metrics.jsonl:3: every line tells of an epoch, this one", "--resume"),
        (interrupted, "metrics.jsonl: ends with epoch 2 of 3, and only a finished", "--resume"),
        (greedy, "metrics.jsonl: ends with epoch 3 of 12, and only a finished", "--resume"),
        (without_plan, "plan.json: a run keeps its stages there", "--resume"),
        (with_another_plan, "plan.json: a run keeps its stages there", "--resume"),
    ],
)
def test_a_run_that_can_not_be_kept(
    finished: Path, results: Path, harm: Callable[[Path], None], said: str, cure: str
) -> None:
    harm(finished)
    found = keeping(finished)
    assert found.exit_code == 2, found.exception
    error = " ".join(found.output.split())
    assert f"Error: {finished}/{said}" in error
    assert cure in error
    assert not results.exists()


def test_a_run_that_was_planned_longer_is_kept(finished: Path) -> None:
    text = TINY.replace("epochs: 3", "epochs: 2")
    (finished / "config.yaml").write_text(text, encoding="utf-8")
    assert keeping(finished).exit_code == 0
