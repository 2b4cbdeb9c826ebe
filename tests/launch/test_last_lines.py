"""What a run that is done says last, word by word; the commands in it work."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import launch.cli
import launch.evaluate
import launch.export
import launch.report.command
from launch.last_lines import last_lines
from pipeline.data.record import DataRecord, PartRecord
from pipeline.schedule.best import BestSoFar
from pipeline.storage.checkpoint import RunState
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

LINE: dict[str, Any] = {"event": "epoch", "epoch": 9, "test": {"loss": 0.25, "error_pct": 2.5}}
WHERE = "weights in checkpoints/, epochs in metrics.jsonl, all that was said in run.log"


def lines(
    tmp_path: Path,
    line: dict[str, Any] = LINE,
    *,
    best: bool = True,
    tests: BestSoFar = BestSoFar(7, 2.25, 9),  # noqa: B008  frozen
    data: DataRecord | None = None,
) -> list[str]:
    run = tmp_path / "run"
    (run / "checkpoints" / ("best" if best else "step-00000009")).mkdir(parents=True)
    (run / "metrics.jsonl").write_text(f"{{}}\n{json.dumps(line)}\n")
    with Folder.open(run) as folder:
        said = last_lines(folder, RunState(best=tests, kept=tests, data=data))
    return [each.replace(str(run), "RUN") for each in said]


def test_what_was_reached_where_it_lies_and_how_to_go_on(tmp_path: Path) -> None:
    assert lines(tmp_path) == [
        "test error 2.50 % after epoch 9; best 2.25 % after epoch 7, in checkpoints/best",
        f"RUN: {WHERE}",
        "to go on: pipeline-eval RUN --checkpoint best   pipeline-report RUN   "
        "pipeline-export RUN --checkpoint best",
    ]


def test_without_a_best_checkpoint_none_is_named(tmp_path: Path) -> None:
    said = lines(tmp_path, best=False)
    assert said[0] == "test error 2.50 % after epoch 9"
    assert said[2] == "to go on: pipeline-eval RUN   pipeline-report RUN   pipeline-export RUN"


@pytest.mark.parametrize(("tests", "named"), [(0, False), (5, True)])
def test_to_evaluate_is_named_where_there_is_a_test_set(
    tmp_path: Path, tests: int, named: bool
) -> None:
    data = DataRecord("npz", (), PartRecord((3, 2), "", 5), PartRecord((tests, 0), "", tests))
    (said,) = lines(tmp_path, {"event": "epoch", "epoch": 9}, best=False, data=data)[2:]
    assert ("pipeline-eval" in said) is named
    assert said.endswith("pipeline-report RUN   pipeline-export RUN")


def test_of_numbers_the_loss_is_said(tmp_path: Path) -> None:
    line = {"event": "epoch", "epoch": 9, "validation": {"loss": 0.125, "error_pct": None}}
    assert lines(tmp_path, line, tests=BestSoFar(2, 0.1, 9))[0] == (
        "validation loss 0.1250 after epoch 9; best 0.1000 after epoch 2, in checkpoints/best"
    )


def test_a_run_without_tests_says_so(tmp_path: Path) -> None:
    said = lines(tmp_path, {**LINE, "test": None}, best=False)
    assert said[0] == "trained 9 epochs, the last of which was not tested"


@pytest.mark.usefixtures("torch_settings")
def test_the_commands_work_as_they_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(
        "model: {name: mlp, hidden_layers: 1, hidden: 8}\nloss: {name: pred}\n"
        "data: {name: digits, batch_size: 64}\nschedule: {epochs: 1}\n"
    )
    begun = ["--single", "--gpus", "cpu", "--run-dir", "a run", "small.yaml"]
    done = CliRunner().invoke(launch.cli.main, begun)
    assert done.exit_code == 0, done.output
    said = done.output.splitlines()[-1].removeprefix("to go on: ").split("   ")
    commands = {
        "pipeline-eval": launch.evaluate.main,
        "pipeline-report": launch.report.command.main,
        "pipeline-export": launch.export.main,
    }
    for name, *given in map(shlex.split, said):
        found = CliRunner().invoke(commands.pop(name), given)
        assert found.exit_code == 0, found.output
    assert not commands
    quiet = CliRunner().invoke(
        launch.cli.main, [*begun[:-2], "quiet run", "small.yaml", "--view", "quiet"]
    )
    assert (quiet.exit_code, quiet.output) == (0, "")
