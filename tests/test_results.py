"""Results of measurements: kept whole, or not at all; what can't be kept is not measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from benchmarks import links, memory, ready, scaling, steptime, throughput
from benchmarks.machine import check_can_be_kept, keep_so_far, read_result, write_result
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("benchmarks.machine.RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_what_is_measured_takes_the_place_of_what_was_when_it_is_whole(results: Path) -> None:
    write_result("mine", {"rounds": 5})
    keep_so_far("mine", {"rounds": 1})
    assert read_result("mine") == {"rounds": 5}
    assert json.loads((results / "mine.partial.json").read_text("utf-8")) == {"rounds": 1}
    write_result("mine", {"rounds": 2})
    assert read_result("mine") == {"rounds": 2}
    assert [path.name for path in results.iterdir()] == ["mine.json"]


def test_a_part_takes_no_wholes_place(results: Path) -> None:
    check_can_be_kept("mine", whole=False, table=False)
    write_result("mine", {})
    check_can_be_kept("mine", whole=True, table=False)
    with pytest.raises(ConfigError, match="holds more than would be measured now: keep this under"):
        check_can_be_kept("mine", whole=False, table=False)


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize("name", ["../up", "", "a/b", "a.json", "two words"])
def test_names_are_plain_words(name: str) -> None:
    with pytest.raises(ConfigError, match="expected a plain word"):
        check_can_be_kept(name, whole=True, table=False)


@pytest.mark.usefixtures("results")
def test_a_table_needs_its_place_beforehand() -> None:
    check_can_be_kept("links", whole=True)
    with pytest.raises(ConfigError, match="0 sections mine; write one for its table, the lines"):
        check_can_be_kept("mine", whole=True)


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path, results: Path) -> None:
    results.write_text("in the way", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"results: can't be made: File exists"):
        check_can_be_kept("mine", whole=True, table=False)


THROUGHPUT = ["--network", "mlp", "--losses", "pred", "--precision", "fp32", "--no-table"]


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (throughput.main, ["--gpus", "7"], "this machine has no CUDA device 7"),
        (throughput.main, [*THROUGHPUT, "--set", "nonsense"], "expected SECTION.KEY=VALUE"),
        (throughput.main, [*THROUGHPUT, "--set", "loss.name=sim"], "loss.name is what contenders"),
        (throughput.main, [*THROUGHPUT, "--set", "optimizer.name=sgd"], "optimizer.name is what"),
        (throughput.main, [*THROUGHPUT, "--threads", "0"], "0 is not in the range x>=1"),
        (throughput.main, [*THROUGHPUT, "--seconds", "-1"], "-1.0 is not in the range x>0.0"),
        (throughput.main, [*THROUGHPUT, "--stages", "9"], "--stages 9: every stage needs"),
        (throughput.main, [*THROUGHPUT, "--losses", ""], "use some of pred,sim,predsim"),
        (throughput.main, [*THROUGHPUT, "--name", "../zz"], "expected a plain word, as zz"),
        (throughput.main, ["--report"], "throughput.json: there is no such result"),
        (scaling.main, ["--stages", "a"], "'a': use numbers of stages, as 1,2,3"),
        (scaling.main, ["--stages", "0"], "'0': use numbers of stages, as 1,2,3"),
        (scaling.main, ["--rounds", "0"], "0 is not in the range x>=1"),
        (scaling.main, ["--report"], "scaling.json: there is no such result"),
        (steptime.main, ["--report"], "steptime.json: there is no such result"),
        (memory.main, ["--device", "nonsense"], "--device nonsense: expected cpu, or"),
        (memory.main, ["--device", "cuda:7"], "this machine has no CUDA device 7"),
        (links.main, ["--gpu", "7"], "this machine has no CUDA device 7"),
        (links.main, ["--size", "0"], "0.0 is not in the range"),
        (ready.main, ["--runs", "0"], "0 is not in the range x>=1"),
    ],
)
def test_what_a_user_did_wrong_is_said_in_a_line(main: object, words: list[str], said: str) -> None:
    found = CliRunner().invoke(main, words)  # type: ignore[arg-type]
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())
