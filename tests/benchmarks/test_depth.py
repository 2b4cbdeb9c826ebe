"""What is kept of each depth is what the run's own tests count, and is told as such."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from benchmarks.depth import THRESHOLDS, findings, main, table

if TYPE_CHECKING:
    from pathlib import Path

SHORT = (
    "schedule.epochs=1", "schedule.milestones=[]", "data.train_limit=100", "data.test_limit=40",
    "runtime.eval_depths=true",
)  # fmt: skip


@pytest.mark.usefixtures("torch_settings")
def test_a_network_is_trained_asked_and_kept(tmp_path: Path, results: Path) -> None:
    words = ["--network", "digits", "--runs", str(tmp_path / "runs")]
    for change in SHORT:
        words += ["--set", change]
    for _ in range(2):  # and not trained again
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
    assert "nothing to do" in done.output
    first, second = (json.loads(path.read_text("utf-8")) for path in results.glob("*.json"))
    assert first["depths"] == second["depths"]
    line = (tmp_path / "runs/digits/metrics.jsonl").read_text("utf-8")
    tested = json.loads(line)["test"]
    assert [(one["block"], one["error_pct"]) for one in first["depths"]] == [
        (one["block"], one["error_pct"]) for one in tested["depths"]
    ]
    assert first["error_pct"] == tested["error_pct"] == first["depths"][-1]["error_pct"]
    assert first["examples"] == 40
    (start,) = second["starts"]
    assert set(start) == {"command", "commit", "uncommitted_changes"}
    assert [exits["at"] for exits in first["exits"]] == list(THRESHOLDS)
    assert all(sum(exits["leave_pct"]) == pytest.approx(100) for exits in first["exits"])


RESULT: dict[str, Any] = {
    "title": "a network",
    "config": {"loss": {"name": "pred"}, "schedule": {"epochs": 3}, "runtime": {"seed": 7}},
    "starts": [{"command": "pipeline-launch x", "commit": "abc1234", "uncommitted_changes": True}],
    "examples": 2000,
    "error_pct": 3.0,
    "depths": [
        {"block": 0, "name": "conv", "error_pct": 9.0, "ensemble_error_pct": 9.0},
        {"block": 1, "name": "conv", "error_pct": 2.5, "ensemble_error_pct": 4.0},
        {"block": 2, "name": "output", "error_pct": 3.0, "ensemble_error_pct": 2.0},
    ],
    "exits": [
        {
            "at": 0.9,
            "error_pct": 3.5,
            "leave_pct": [50.0, 0.0, 50.0],
            "their_error_pct": [1.0, None, 6.0],
        }
    ],
}


def test_findings_and_table() -> None:
    assert [(one.what, one.found) for one in findings(RESULT)] == [
        ("the last block", "3.00 %"),
        ("the best block", "1 of 2: 2.50 %"),
        ("the best ensemble, of all up to block", "2 of 2: 2.00 %"),
        ("leave before the last block, at 0.9", "50.0 %; error of all 3.50 %"),
    ]
    first, _, *rows = table(RESULT).splitlines()
    assert first == (
        "**a network**, loss `pred`: one run of 3 epochs, seed 7, by `pipeline-launch x` at commit "
        "abc1234+; 2,000 test images"
    )
    assert rows[3:] == [
        "| 1 conv | 2.50 | 4.00 | 0.0 | – |",
        "| 2 output | 3.00 | 2.00 | 50.0 | 6.00 |",
        "| all exits |  |  | 100.0 | 3.50 |",
    ]


def test_an_unknown_network_is_refused() -> None:
    done = CliRunner().invoke(main, ["--network", "digits,lenet"])
    assert done.exit_code == 2
    assert "--network lenet: there are digits, mnist_mlp, cifar10_vgg8b_quarter" in done.output
