"""What a run that is done says last, word by word; the commands in it work."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import launch.cli
import launch.evaluate
from launch.last_lines import last_lines
from pipeline.config.sections import build_config
from pipeline.data.facts import DataFacts, data_facts
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
    facts: DataFacts | None = None,
    tests: BestSoFar = BestSoFar(7, 2.25, 9),  # noqa: B008  frozen
    **schedule: Any,
) -> list[str]:
    run = tmp_path / "run"
    (run / "checkpoints" / ("best" if best else "step-00000009")).mkdir(parents=True)
    (run / "metrics.jsonl").write_text(f"{{}}\n{json.dumps(line)}\n")
    sections: dict[str, Any] = {"model": {"name": "mlp"}, "loss": {"name": "predsim"}}
    config = build_config(
        {**sections, "data": {"name": "digits"}, "schedule": {"epochs": 9, **schedule}}, "test"
    )
    state = RunState(best=tests, kept=tests)
    found = facts or data_facts(config.data)
    with Folder.open(run) as folder:
        said = last_lines(folder, config, found, state, ["pipeline-launch", "--resume"])
    return [each.replace(str(run), "RUN") for each in said]


def test_what_was_reached_where_it_lies_and_how_to_go_on(tmp_path: Path) -> None:
    assert lines(tmp_path) == [
        "test error 2.50 % after epoch 9; best 2.25 % after epoch 7, in checkpoints/best",
        f"RUN: {WHERE}",
        "to go on: pipeline-eval RUN --checkpoint best   pipeline-report RUN   pipeline-predict "
        "RUN IMAGE --checkpoint best   pipeline-launch --resume --set schedule.epochs=18",
    ]


def test_without_a_best_checkpoint_none_is_named(tmp_path: Path) -> None:
    said = lines(tmp_path, best=False)
    assert said[0] == "test error 2.50 % after epoch 9"
    assert said[2].startswith("to go on: pipeline-eval RUN   pipeline-report RUN   pipeline-p")


def test_numbers_have_a_loss_and_come_from_a_file(tmp_path: Path) -> None:
    facts = DataFacts((4,), 0, 10, 10, dtype="float32", target_dtype="float32")
    line = {"event": "epoch", "epoch": 9, "validation": {"loss": 0.125, "error_pct": None}}
    said = lines(tmp_path, line, facts=facts, tests=BestSoFar(2, 0.1, 9))
    assert said[0] == (
        "validation loss 0.1250 after epoch 9; best 0.1000 after epoch 2, in checkpoints/best"
    )
    assert "pipeline-predict RUN FILE.npz " in said[2]


@pytest.mark.parametrize(
    ("schedule", "ends"),
    [
        ({"patience": 2}, "--resume --set schedule.patience=null"),
        ({"patience": 3}, "--resume --set schedule.epochs=18"),
        ({"greedy": True}, "pipeline-predict RUN IMAGE --checkpoint best"),
    ],
)
def test_it_trains_longer_by_what_has_ended_it(
    tmp_path: Path, schedule: dict[str, Any], ends: str
) -> None:
    assert lines(tmp_path, **schedule)[2].endswith(ends)


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
    evaluates, _, _, resumes = map(shlex.split, said)
    found = CliRunner().invoke(launch.evaluate.main, evaluates[1:])
    assert found.exit_code == 0, found.output
    again = CliRunner().invoke(launch.cli.main, resumes[1:])
    assert again.output.splitlines()[-3].startswith("test error ")
    assert " after epoch 2; best " in again.output.splitlines()[-3]
    quiet = CliRunner().invoke(
        launch.cli.main, [*resumes[1:-1], "schedule.epochs=3", "--view", "quiet"]
    )
    assert (quiet.exit_code, quiet.output) == (0, "")
