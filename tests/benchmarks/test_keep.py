"""Results of measurements: kept whole, or not at all; what can't be kept is not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from support.processes import TINY

from benchmarks import keep, links, memory, ready, recovery, scaling, steptime, throughput
from benchmarks.lib import lineup
from benchmarks.lib.machine import (
    RESULTS,
    check_can_be_kept,
    keep_so_far,
    read_result,
    write_result,
)
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from benchmarks.lib.machine import Extent

COMMAND = "python -m benchmarks.mine"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("benchmarks.lib.machine.RESULTS", tmp_path / "results")
    return tmp_path / "results"


def kept(rounds: int) -> dict[str, Any]:
    return {"command": COMMAND, "rounds": rounds}


def check(name: str, extent: Extent | None = None, *, table: bool = False) -> None:
    def extent_of(result: dict[str, Any]) -> Extent:
        return {"a": result["rounds"]}

    check_can_be_kept(name, "mine", extent or {}, extent_of, table=table)


def test_what_is_measured_takes_the_place_of_what_was_when_it_is_whole(results: Path) -> None:
    write_result("mine", kept(5))
    keep_so_far("mine", kept(1))
    assert read_result("mine", "mine") == kept(5)
    assert json.loads((results / "mine.partial.json").read_text("utf-8")) == kept(1)
    write_result("mine", kept(2))
    assert read_result("mine", "mine") == kept(2)
    assert [path.name for path in results.iterdir()] == ["mine.json"]


@pytest.mark.usefixtures("results")
def test_less_takes_the_place_of_no_more() -> None:
    check("mine", {"a": 1})
    write_result("mine", kept(3))
    check("mine", {"a": 3})
    check("mine", {"a": 4, "b": 1})
    with pytest.raises(ConfigError, match=r"now \(a: 3 × there, 2 × now\): keep this under a name"):
        check("mine", {"a": 2, "b": 9})
    with pytest.raises(ConfigError, match=r"a: 3 × there, 0 × now"):
        check("mine", {"b": 9})


@pytest.mark.usefixtures("results")
def test_another_benchmarks_result_is_neither_replaced_nor_read() -> None:
    write_result("mine", {**kept(1), "command": "python -m benchmarks.other"})
    with pytest.raises(ConfigError, match=r"mine\.json is not of benchmarks\.mine; give another"):
        check("mine", {"a": 1})


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    ("name", "shown", "advised"),
    [
        ("../up", "../up", "up"), ("", "''", "mine"), ("a/b/c", "a/b/c", "c"),
        ("a.json", "a.json", "a"), ("two words", "'two words'", "two_words"), ("..", "..", "mine"),
        ("v1.5/", "v1.5/", "v1_5"), ("--x", "--x", "x"),
    ],
)  # fmt: skip
def test_names_are_plain_words(name: str, shown: str, advised: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(name)
    assert str(caught.value) == f"--name {shown}: expected a plain word, as {advised}"
    check(advised)


@pytest.mark.usefixtures("results")
def test_a_table_needs_its_place_beforehand() -> None:
    check("links", table=True)
    with pytest.raises(ConfigError, match=r"0 sections mine; write one for .*, or give --no-table"):
        check("mine", table=True)


def test_a_folder_that_can_not_be_made_is_named(results: Path) -> None:
    results.write_text("in the way", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"results: can't be made: File exists"):
        check("mine")


@pytest.mark.parametrize(
    ("name", "extent_of", "thing", "times"),
    [
        ("links", links._extent_of_kept, "256 MiB", 7),
        ("memory", memory._extent_of_kept, "vgg19", 1),
        ("ready", ready._extent_of_kept, "runs", 5),
        ("recovery", recovery._extent_of_kept, "kills", 10),
        ("scaling", scaling._extent_of_kept, "vgg8b, 4 stages on the CPU", 2),
        ("steptime", steptime._extent_of_kept, "rounds", 3),
        ("throughput_mlp", lineup._extent_of_kept, "mlp: plain sim fp32", 5),
    ],
)
def test_results_that_are_kept_say_how_much_they_hold(
    name: str, extent_of: Callable[[dict[str, Any]], Extent], thing: str, times: int
) -> None:
    result = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    assert extent_of(result)[thing] >= times


THROUGHPUT = ["--network", "mlp", "--losses", "pred", "--precision", "fp32", "--no-table"]


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (throughput.main, ["--gpus", "7"], "this machine has no CUDA device 7"),
        (throughput.main, [*THROUGHPUT, "--set", "nonsense"], "expected SECTION.KEY=VALUE"),
        (throughput.main, [*THROUGHPUT, "--set", "loss.name=sim"], "loss.name is what contenders"),
        (throughput.main, [*THROUGHPUT, "--set", "optimizer.name=sgd"], "optimizer.name is what"),
        (throughput.main, [*THROUGHPUT, "--set", "model.hidden_layers=9"], "contenders are called"),
        (throughput.main, [*THROUGHPUT, "--set", "data.size=32"], "data.size is what contenders"),
        (throughput.main, [*THROUGHPUT, "--threads", "0"], "0 is not in the range x>=1"),
        (throughput.main, [*THROUGHPUT, "--seconds", "-1"], "-1.0 is not in the range x>0.0"),
        (throughput.main, [*THROUGHPUT, "--stages", "9"], "--stages 9: every stage needs"),
        (throughput.main, [*THROUGHPUT, "--losses", ""], "use some of pred,sim,predsim"),
        (throughput.main, [*THROUGHPUT, "--name", "../zz"], "expected a plain word, as zz"),
        (throughput.main, ["--report"], "throughput.json: there is no such result"),
        (scaling.main, ["--network", "mlp", "--stages", "9"], "--stages 9: every stage needs"),
        (keep.main, [str(Path(__file__).parent), "mine", "--command", "x"], "metrics.jsonl: a run"),
        (keep.main, [str(Path(__file__).parent), "a/b", "--command", "x"], "NAME a/b: expected a"),
        (scaling.main, ["--network", "mlp", "--gpus", "7"], "this machine has no CUDA device 7"),
        (scaling.main, ["--network", "mlp", "--set", "nonsense"], "expected SECTION.KEY=VALUE"),
        (scaling.main, ["--stages", "a"], "'a': use numbers of stages, as 1,2,3"),
        (scaling.main, ["--stages", "0"], "'0': use numbers of stages, as 1,2,3"),
        (scaling.main, ["--rounds", "0"], "0 is not in the range x>=1"),
        (scaling.main, ["--report"], "scaling.json: there is no such result"),
        (throughput.main, ["--disk", __file__, *THROUGHPUT], f"{Path(__file__).name}: can't be"),
        (recovery.main, ["--disk", __file__], f"{Path(__file__).name}: can't be made: File"),
        (steptime.main, ["--report"], "steptime.json: there is no such result"),
        (memory.main, ["--device", "nonsense"], "--device nonsense: expected cpu, or"),
        (memory.main, ["--report", "--name", "../zz"], "expected a plain word, as zz"),
        (memory.main, ["--device", "cuda:99"], "cuda:99: this machine has no CUDA device 99"),
        (links.main, ["--gpu", "99"], "cuda:99: this machine has no CUDA device 99"),
        (links.main, ["--gpu", "-1"], "-1 is not in the range x>=0"),
        (links.main, ["--size", "0"], "0.0 is not in the range"),
        (ready.main, ["--runs", "0"], "0 is not in the range x>=1"),
    ],
)
def test_what_a_user_did_wrong_is_said_in_a_line(main: object, words: list[str], said: str) -> None:
    found = CliRunner().invoke(main, words)  # type: ignore[arg-type]
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())


# --- what a run measured ------------------------------------------------------------------


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


def keeping(folder: Path) -> Result:
    return CliRunner().invoke(keep.main, [str(folder), "mine", "--command", "x"])


def test_a_finished_run_is_kept(finished: Path, results: Path) -> None:
    assert keeping(finished).exit_code == 0
    result = json.loads((results / "mine.json").read_text("utf-8"))
    assert (result["test_error_pct"], len(result["epochs"])) == (3.0, 3)
    assert result["stages"] == [{"blocks": [0, 1, 2, 3]}]


def test_a_run_takes_no_benchmarks_place(finished: Path, results: Path) -> None:
    kept = results / "mine.json"
    for command, status in (("pipeline-launch x.yaml", 0), ("python -m benchmarks.links", 2)):
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps({"command": command}), encoding="utf-8")
        refused = keeping(finished)
        assert refused.exit_code == status
    assert "is of benchmarks.links; give another NAME" in " ".join(refused.output.split())


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
