"""pipeline-referee with real processes: a small table, and one gone on with from its rows alone."""

from __future__ import annotations

import json
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from support.processes import final_digests

from launch.child_commands import Ended
from launch.engines.interrupts import INTERRUPTED
from launch.referee import repeat
from launch.referee.command import main
from launch.referee.rows import Row
from pipeline.errors import DATA_ROOT, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

TABLE = """\
search: {optimizer.lr: [2e-3]}
networks:
  small:
    title: Small
    epochs: 2
    search_epochs: 1
    config: {model: {name: mlp, hidden_layers: 2, hidden: 32}, data: {name: digits}}
rules:
  pred: {title: Pred, config: {loss: {name: pred}}}
  backprop: {title: Backprop, config: {loss: {name: glob}}, search_of: pred}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "table.yaml").write_text(TABLE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


WORDS = ("--table", "table.yaml", "--seeds", "1", "--jobs", "2", "--gpus", "cpu")


@pytest.mark.processes
@pytest.mark.timeout(600)  # four processes, each of which imports torch
def test_a_table_is_made_and_gone_on_with_from_its_rows_alone(here: Path) -> None:
    done = CliRunner().invoke(main, [*WORDS, "--rules", "pred"])
    assert done.exit_code == 0, done.output
    page = (here / "benchmarks" / "REFEREE.md").read_text()
    assert "| proven | optimizer.lr 0.002 | A |" in page
    assert "Missing" not in page
    file = here / "benchmarks" / "results" / "referee" / "small" / "pred.jsonl"
    rows = {row["path"]: row for row in map(json.loads, file.read_text().splitlines())}
    trained = rows["small/pred/seed=1"]["result"]
    assert [depth["block"] for depth in trained["depths"]] == [0, 1, 2]
    assert (
        trained["blocks_sha256"]["0"] == final_digests(here / "runs/referee/small/pred/seed=1")[0]
    )
    assert rows["small/pred/search-optimizer.lr=0.002"]["result"]["tested_on"] == "validation"
    rmtree(here / "runs")
    again = CliRunner().invoke(main, [*WORDS, "--rules", "pred"])
    assert (again.exit_code, "[1/" in again.stdout) == (0, False)
    assert (here / "benchmarks" / "REFEREE.md").read_text() == page
    words = ["--table", "table.yaml", "--gpus", "cpu", "--repeat", "small"]
    repeated = CliRunner().invoke(main, words)
    assert repeated.exit_code == 0, repeated.output
    assert (
        f"small/pred/seed=1: the same bits: error {trained['error_pct']:.2f} %" in repeated.stdout
    )
    assert "1 of 1 training came to the same bits" in repeated.stdout
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rules", "prd"), "--rules 'prd': there are pred, backprop; did you mean pred?"),
        (("--networks", "mlp"), "--networks 'mlp': there are small"),
        (("--seeds", "3-1"), "--seeds 3-1: 3-1 names no seeds"),
        (("--set", "data.batch=3"), "--set data.batch=3"),
        (("--set", "loss.name=sim", "--set", "loss.rule=DGL"), "loss.name"),
        (("--table", "none.yaml"), "none.yaml: there is no such file"),
        (("--out", ""), "--out '': is empty"),
        (("--repeat", "small"), "leave --seeds away"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_leaves_nothing(
    words: tuple[str, ...], said: str, here: Path
) -> None:
    done = CliRunner().invoke(main, [*WORDS, *words])
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert [path.name for path in here.iterdir()] == ["table.yaml"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("small/pred", "--repeat small/pred: there is no training (seed=N) of that in benchm"),
        (",", "--repeat ',': names no row: give one, as mlp/pred/seed=1"),
    ],
)
def test_what_is_no_row_can_not_be_repeated(names: str, said: str, here: Path) -> None:
    done = CliRunner().invoke(main, ["--table", "table.yaml", "--repeat", names])
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"error: {said}" in done.stderr
    assert [path.name for path in here.iterdir()] == ["table.yaml"]


KEPT: dict[str, Any] = {
    "path": "mlp/gone/seed=2",
    "result": {
        "images_per_s": 1.0, "peak_memory_bytes": 1, "device": "cpu", "depths": [], "epochs": 1,
        "error_pct": 5.0, "blocks_sha256": {"0": "a"},
    },
    "config": {
        "model": {"name": "mlp"}, "loss": {"name": "pred"}, "schedule": {"epochs": 1},
        "data": {"name": "mnist", "root": "elsewhere"},
    },
    "starts": [{
        "command": "", "processor": "A", "cores": 1, "gpus": [], "versions": {}, "commit": "",
        "uncommitted_changes": False,
    }],
}  # fmt: skip


def kept_row(here: Path) -> None:
    """Of a rule that no table has."""
    file = here / "benchmarks/results/referee/mlp/gone.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(KEPT))


def test_a_row_needs_no_table_and_its_data_are_looked_for_here(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_row(here)
    looked: list[str] = []

    def load(data: Any, seed: int) -> None:
        looked.append(data.root)
        raise ConfigError("data are not there: name the folder (", DATA_ROOT, ")")

    monkeypatch.setattr("pipeline.data.batches.load_batches", load)
    for words in ([], ["--data", "there"]):
        done = CliRunner().invoke(main, ["--repeat", "mlp", *words])
        assert done.exit_code == 2
        assert done.stderr == "error: data are not there: name the folder (--data DIR)\n"
    assert looked == ["data", "there"]


def test_what_came_to_other_bits_fails_and_what_was_interrupted_is_not_counted(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_row(here)
    monkeypatch.setattr(repeat, "check_data", lambda configs: None)
    anew = Row(KEPT["path"], {}, (), {**KEPT["result"], "blocks_sha256": {"0": "b"}})
    monkeypatch.setattr(repeat, "row_of_run", lambda *given: anew)
    words: list[str] = []
    ends = iter((0, INTERRUPTED))

    def carry_out(next_one: Any, ended: Any, jobs: int) -> bool:
        path, asked = next_one(False)
        words.append(" ".join(asked))
        status = next(ends)
        ended(Ended(path, status, "", "", 1.0))
        return status == 0

    monkeypatch.setattr(repeat, "carry_out", carry_out)
    others, interrupted = (
        CliRunner().invoke(main, ["--repeat", "mlp/gone/seed=2"]) for _ in range(2)
    )
    assert (others.exit_code, interrupted.exit_code) == (1, INTERRUPTED)
    assert "mlp/gone/seed=2: not the same: error 5.00 % against error 5.00 %" in others.stdout
    assert "0 of 1 training came to the same bits" in others.stdout
    assert "mlp/gone/seed=2: interrupted, 1 s" in interrupted.stdout
    assert "0 of 0 trainings came to the same bits" in interrupted.stdout
    assert interrupted.stderr == "interrupted\n"
    assert "--gpus cpu" in words[0]  # as the row was made, where a GPU is the default, too


def test_a_dry_run_says_what_is_left_and_leaves_nothing(here: Path) -> None:
    done = CliRunner().invoke(main, [*WORDS, "--dry-run"])
    assert done.exit_code == 0
    assert "| small | pred | 0 of 4 | 1 | 1 |" in done.stdout
    assert "6 of 6 tasks are left: about 0.0 h of one core; 2 at once" in done.stdout
    assert [path.name for path in here.iterdir()] == ["table.yaml"]
