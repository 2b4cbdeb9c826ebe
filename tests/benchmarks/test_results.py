"""RESULTS.md is what the command writes from the kept files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.lib.report import Finding, Report
from benchmarks.lib.result_files import Kept, kept_results
from benchmarks.results import BY_HAND, PAGE, machine, page, part, results_of

WHERE = {
    "command": "python -m benchmarks.mine", "processor": "a processor", "cores": 2,
    "gpus": ["a GPU"], "python": "3.11.7", "versions": {"torch": "2.14.1"}, "commit": "abc1234",
    "uncommitted_changes": False,
}  # fmt: skip


def test_the_page_is_that_of_the_kept_results() -> None:
    by_hand = json.loads(BY_HAND.read_text("utf-8"))
    assert PAGE.read_text("utf-8") == page(kept_results(), by_hand), (
        "write it anew: python -m benchmarks.results"
    )


def kept(name: str = "mine", **tree: Any) -> Kept:
    return Kept(Path(f"{name}-2026-11-29-abc1234.json"), name, "2026-11-29", {**WHERE, **tree})


def test_runs_of_a_name_stand_side_by_side() -> None:
    report = Report("Mine", "", lambda result: result["found"])
    first = kept(found=[Finding("speed", "1.10", "≥ 1", True), Finding("size", "3 MB")])
    second = kept(found=[Finding("speed", "0.90", "≥ 1", False)], uncommitted_changes=True)
    lines = part(report, [first, second]).splitlines()
    assert lines[3] == (
        "| [run 2](results/mine-2026-11-29-abc1234.json) | `python -m benchmarks.mine` "
        "| a processor, 2 cores | torch 2.14.1, Python 3.11.7 | 2026-11-29 | abc1234+ |"
    )
    assert lines[5:] == [
        "| what | asked | run 1 | run 2 |",
        "| --- | --- | ---: | ---: |",
        "| speed | ≥ 1 | 1.10 | **0.90** |",
        "| size |  | 3 MB | – |",
    ]


def test_what_was_measured_on_gpus_names_them() -> None:
    assert machine(kept("mine_cuda_bf16")) == "a GPU"
    assert machine(kept(stages=[{"device": "cuda:0"}])) == "a GPU"
    assert machine(kept(stages=[{"device": "cpu"}])) == "a processor, 2 cores"


def test_results_belong_to_the_command_that_measured_them() -> None:
    mine, trained = kept(command="python -m benchmarks.links"), kept(command="pipeline-launch x")
    assert results_of("links", [mine, trained]) == [mine]
    assert results_of(None, [mine, trained]) == [trained]
