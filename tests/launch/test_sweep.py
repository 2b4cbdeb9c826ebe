"""pipeline-sweep: every run once, whatever ends it; and means that say of how many they are."""

from __future__ import annotations

import csv
import json
from contextlib import contextmanager
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from support.processes import TINY, contents, final_digests, launch, until

from launch.grid.at_once import train_at_once
from launch.grid.combinations import Combination, Grid, axis_of, grid_of, seeds_of
from launch.grid.results import Outcome, Result, in_words, result_in, rows_of
from launch.grid.sweeps import Planned, Request, checked, sweep_of
from launch.grid.table import plain_lines, screen_table
from launch.job import Options
from launch.machine.provenance import read_starts
from launch.sweep import main
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result as Done

pytestmark = pytest.mark.usefixtures("torch_settings")
SMALL = TINY.replace("epochs: 3, milestones: [1]", "epochs: 2")
"""2 epochs of 4 steps."""
HOW = ("--single", "--gpus", "cpu", "--view", "quiet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with small.yaml."""
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*arguments: str) -> Done:
    return CliRunner().invoke(main, [*arguments, *HOW])


def refused(*arguments: str) -> str:
    """What a wrong command says."""
    done = ask(*arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done.exception
    return done.stderr.removeprefix("error: ").rstrip()


def runs_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def statuses(folder: Path) -> list[str]:
    return [run["status"] for run in runs_of(folder)]


def last_error(run_dir: Path) -> float:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["test"]["error_pct"])


# --- the whole way ------------------------------------------------------------------------


def test_a_sweep_is_trained_once_tabulated_and_extended(here: Path) -> None:
    given = ("small.yaml", "--over", "loss.name=pred,glob", "--run-dir", "all")
    assert ask(*given, "--seeds", "1-2").exit_code == 0
    names = [f"loss.name={loss},seed={seed}" for seed in (1, 2) for loss in ("pred", "glob")]
    assert [run["folder"] for run in runs_of(here / "all")] == names
    before = {name: final_digests(here / "all" / name) for name in names}
    assert before[names[0]] != before[names[2]]

    errors = [last_error(here / "all" / name) for name in (names[1], names[3])]
    table = json.loads((here / "all/table.json").read_text(encoding="utf-8"))
    (_, glob) = table["rows"]
    assert (glob["settings"], glob["n"], glob["of"]) == ({"loss.name": "glob"}, 2, 2)
    found = glob["last_error_pct"]
    assert found["mean"] == pytest.approx(mean(errors))
    assert found["sd"] == pytest.approx(stdev(errors))
    page = (here / "all/table.md").read_text(encoding="utf-8")
    assert f"| glob | 2 | {mean(errors):.2f} ± {stdev(errors):.2f} |" in page
    assert "Without a result" not in page

    assert ask("--run-dir", "all", "--seeds", "3").exit_code == 0
    assert statuses(here / "all") == ["finished"] * 6
    assert {name: final_digests(here / "all" / name) for name in names} == before
    assert "| glob | 3 |" in (here / "all/table.md").read_text(encoding="utf-8")


def test_a_finished_sweep_starts_nothing(here: Path, request: pytest.FixtureRequest) -> None:
    given = ("small.yaml", "--seeds", "1-2", "--set", "schedule.patience=1", "--run-dir", "all")
    assert ask(*given, "--set", "optimizer.lr=1e-9").exit_code == 0
    found = result_in(here / "all/seed=1")
    assert found
    assert found.epochs == 2, "patience ends it, or its epochs do"
    before = contents(here / "all/seed=1")
    request.getfixturevalue("nothing_starts")
    assert ask("--run-dir", "all").exit_code == 0
    assert contents(here / "all/seed=1") == before


def test_an_interrupted_sweep_goes_on_where_it_was(here: Path) -> None:
    @contextmanager
    def noted() -> Iterator[Callable[[], bool]]:
        """Ctrl-C after the first epoch of the second run."""
        yield (here / "cut/loss.name=sim,seed=1/metrics.jsonl").exists

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("launch.training.interrupts_noted", noted)
        done = ask("small.yaml", "--over", "loss.name=pred,sim,predsim", "--run-dir", "cut")
    assert done.exit_code == 130
    assert "a checkpoint was written; to go on, with the remaining runs:" in done.stderr
    assert done.stderr.endswith("\n  pipeline-sweep --run-dir cut --single --gpus cpu\n")
    assert statuses(here / "cut") == ["finished", "interrupted", "not run"]
    page = (here / "cut/table.md").read_text(encoding="utf-8")
    assert "| predsim | 0 of 1 | – |" in page
    assert "Without a result:\n\n- loss.name=sim,seed=1: interrupted\n- loss.name=predsim" in page

    assert ask("--run-dir", "cut").exit_code == 0
    assert statuses(here / "cut") == ["finished"] * 3
    whole = {"single": True, "overrides": ("loss.name=sim",)}
    assert launch(here / "small.yaml", here / "whole", **whole) == 0
    assert final_digests(here / "cut/loss.name=sim,seed=1") == final_digests(here / "whole")


def test_a_failed_run_ends_no_other_and_is_told(here: Path) -> None:
    given = ("small.yaml", "--over", "optimizer.lr=1e30,1e-3", "--run-dir", "all")
    done = ask(*given)
    assert done.exit_code == 1
    assert "error: the loss of block 0 is not finite at batch 2" in done.stderr
    assert statuses(here / "all") == ["failed", "finished"]
    page = (here / "all/table.md").read_text(encoding="utf-8")
    assert "| 1.0e+30 | 0 of 1 | – |" in page
    assert "- optimizer.lr=1.0e+30,seed=1: failed: the loss of block 0 is not finite" in page
    assert ask("--run-dir", "all").exit_code == 1  # and is tried once more


@pytest.mark.processes
def test_runs_at_once_are_those_of_one_after_another(here: Path) -> None:
    given = ("small.yaml", "--over", "optimizer.lr=1e30,1e-3", "--run-dir", "all", "--jobs", "2")
    done = ask(*given)
    assert done.exit_code == 1, done.stderr
    assert "error: optimizer.lr=1.0e+30,seed=1: the loss of block 0 is not finite" in done.stderr
    assert statuses(here / "all") == ["failed", "finished"]
    whole = {"single": True, "overrides": ("optimizer.lr=1e-3",)}
    assert launch(here / "small.yaml", here / "whole", **whole) == 0
    run = here / "all/optimizer.lr=0.001,seed=1"
    assert final_digests(run) == final_digests(here / "whole")
    (start,) = read_starts(run)
    words = "pipeline-launch --run-dir all/optimizer.lr=0.001,seed=1 "
    assert start["command"].startswith(words), "whole, to repeat it"


@pytest.mark.processes
def test_a_signal_ends_all_runs_at_once_with_checkpoints(here: Path) -> None:
    """It comes as the first, which fails, is told; the other would train for hours."""
    options = Options(None, single=True, gpus="cpu", overrides=("schedule.epochs=100000",))
    over = ("optimizer.lr=1e30,1e-3",)
    request = Request(here / "small.yaml", over, "1", here / "all", options, jobs=2)
    asked = sweep_of(request)
    told: list[tuple[str, int]] = []

    def ended(one: Planned, status: int, why: str) -> None:
        told.append((one.run.name, status))
        if len(told) == 1:
            log = here / "all/optimizer.lr=0.001,seed=1/metrics.jsonl"
            until(log.exists, "the first epoch of the other run")
            raise KeyboardInterrupt

    (here / "all").mkdir()
    assert not train_at_once(asked, checked(asked, request), here / "all", 2, ended)
    assert told[0] == told[1] == ("optimizer.lr=1.0e+30,seed=1", 1)
    assert told[2:] == [("optimizer.lr=0.001,seed=1", 130)]
    assert final_digests(here / "all/optimizer.lr=0.001,seed=1")


@pytest.mark.parametrize(
    "option", [("--data-parallel", "2"), ("--stages", "2", "--replicas", "0:2")]
)
def test_what_options_say_of_the_config_is_there_when_a_sweep_goes_on(
    here: Path, option: tuple[str, ...]
) -> None:
    given = ("small.yaml", "--seeds", "1-2", "--run-dir", "all", *option)
    assert ask(*given).exit_code == 0
    before = contents(here / "all/seed=1")
    again = ask("--run-dir", "all", "--seeds", "1-3", *option)
    assert again.exit_code == 0, again.stderr
    assert statuses(here / "all") == ["finished"] * 3
    assert contents(here / "all/seed=1") == before
    other = ask("--run-dir", "all")
    assert other.exit_code == 2
    assert "holds a run with parallel." in other.stderr


def test_a_result_that_is_gone_does_not_shrink_n_in_silence(here: Path) -> None:
    assert ask("small.yaml", "--seeds", "1-2", "--run-dir", "all").exit_code == 0
    (here / "all/seed=2/metrics.jsonl").unlink()
    assert ask("--run-dir", "all").exit_code == 1
    page = (here / "all/table.md").read_text(encoding="utf-8")
    assert "| 1 of 2 |" in page
    assert "- seed=2: finished: its metrics.jsonl has no lines" in page


def test_runs_are_listed_and_nothing_is_written(here: Path) -> None:
    before = contents(here)
    done = ask("small.yaml", "--seeds", "1-2", "--over", "loss.name=pred,sim", "--dry-run")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "small: 2 of loss.name × 2 seeds = 4 runs, one after another, seed by seed",
        "[1/4] loss.name=pred,seed=1",
        "[2/4] loss.name=sim,seed=1",
        "[3/4] loss.name=pred,seed=2",
        "[4/4] loss.name=sim,seed=2",
    ]
    assert contents(here) == before


# --- wrong usage --------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "which config? give CONFIG.yaml, or the folder of a sweep with --run-dir"),
        ("small.yaml", "what is to vary? give --seeds, as 1-5, or --over, as loss.name=pred,sim"),
        ("small.yaml --seeds 5-1", "--seeds 5-1: 5-1 names no seeds"),
        ("small.yaml --seeds 1,1", "--seeds 1,1: 1 is given twice"),
        ("small.yaml --seeds a", "--seeds a: expected seeds as 1-5, or 1,2,7"),
        ("small.yaml --seeds 0-9999 --over loss.beta=0,1", "a sweep of 2 of loss.beta × 10000 see"),
        ("small.yaml --over beta=1", "--over beta=1: expected SECTION.KEY=VALUE,VALUE, as loss.n"),
        ("small.yaml --over loss.beta=1,,2", "--over loss.beta=1,,2:1:4: YAML syntax: expected"),
        ("small.yaml --over loss.beta=1,1", "--over loss.beta=1,1: 1 is given twice"),
        ("small.yaml --over runtime.seed=1", "--over runtime.seed=1: give seeds by --seeds, as "),
        ("small.yaml --over loss.beta=0 --over loss.beta=1", "--over loss.beta: is given twice"),
        ("small.yaml --over loss.beta=0 --set loss.beta=1", "--set loss.beta=1: --over gives thi"),
        ("small.yaml --seeds 1 --set runtime.seed=1", "--set runtime.seed=1: --seeds gives this"),
        ("small.yaml --over loss.bta=0,1", "--over loss.bta: unknown key; "),
        (
            "small.yaml --over loss.beta=2,0",
            "loss.beta=2,seed=1: --over loss.beta: 2 is",
        ),
        ("none.yaml --seeds 1-3", "none.yaml: "),
        (
            "small.yaml --seeds 1 --run-dir odd2",
            "--run-dir odd2: holds table.csv, which a",
        ),
        (
            "small.yaml --seeds 1 --engine ray",
            "--engine ray: this command trains on this machine alone",
        ),
        ("small.yaml --seeds 1 --set runtime.eval_every_epochs=0", "runtime.eval_every_ep"),
        ("small.yaml --seeds 1 --run-dir run", "--run-dir run: holds a run; a sweep needs a fold"),
        ("--run-dir none", "--run-dir none: there is no such folder: name that of a sweep"),
        ("--run-dir run", "--run-dir run: holds a run; a sweep needs a folder of its own"),
        ("--run-dir empty", "--run-dir empty: holds no sweep: name that of a sweep to go on with"),
        ("--run-dir small.yaml", "--run-dir small.yaml: is no folder: name one for the sweep"),
        ("--run-dir odd", "odd/sweep.json: is no sweep of this command: "),
    ],
)
def test_wrong_usage_is_one_line(here: Path, arguments: str, says: str) -> None:
    (here / "run").mkdir()
    (here / "run/config.yaml").touch()
    (here / "empty").mkdir()
    (here / "odd2").mkdir()
    (here / "odd2/table.csv").touch()
    (here / "odd").mkdir()
    (here / "odd/sweep.json").write_text('{"over": 1}', encoding="utf-8")
    before = contents(here)
    said = refused(*arguments.split())
    assert said.startswith(says)
    assert "\n" not in said
    assert contents(here) == before


@pytest.mark.usefixtures("nothing_starts")
def test_all_that_is_wrong_is_said_at_once(here: Path) -> None:
    over = ("--over", "loss.name=pred,none", "--over", "data.batch_size=0,32")
    first, *others = refused("small.yaml", "--seeds", "1-2", *over).splitlines()
    assert first == "6 of 8 runs can't start:"
    assert [line.partition(": --over ")[0] for line in others] == [
        "  loss.name=pred,data.batch_size=0,seed=1 and 3 more",
        "  loss.name=none,data.batch_size=0,seed=1 and 3 more",
    ]


def test_another_config_is_refused_in_one_line(here: Path, request: pytest.FixtureRequest) -> None:
    assert ask("small.yaml", "--seeds", "1", "--run-dir", "all").exit_code == 0
    request.getfixturevalue("nothing_starts")
    before = contents(here)
    asks_for = "but 8 is asked for: choose another folder with --run-dir, or move that sweep away"
    for command in (["small.yaml"], []):
        said = refused(*command, "--run-dir", "all", "--set", "model.hidden=8")
        assert said == f"all: holds a sweep with model.hidden 16, {asks_for}"
    said = refused("--run-dir", "all", "--over", "loss.name=pred")
    assert said.startswith("--run-dir all: holds a sweep over seeds alone; its values and seeds")
    (here / "all/seed=1/config.yaml").write_text(SMALL.replace("16", "8"), encoding="utf-8")
    said = refused("--run-dir", "all")
    assert said.startswith("all/seed=1: holds a run with model.hidden 8, but 16 is asked")
    (here / "all/seed=1/config.yaml").write_bytes(before[here / "all/seed=1/config.yaml"] or b"")
    assert contents(here) == before


# --- what is varied -----------------------------------------------------------------------


def test_seeds_go_first_and_the_last_key_in_turn() -> None:
    grid = grid_of(["loss.name=pred,sim", "optimizer.lr=1e-3,0.1"], seeds_of("2,5-6"))
    assert len(grid) == len(list(grid.combinations())) == 12
    names = [run.name for run in grid.combinations()]
    assert names[:3] == [
        "loss.name=pred,optimizer.lr=0.001,seed=2",
        "loss.name=pred,optimizer.lr=0.1,seed=2",
        "loss.name=sim,optimizer.lr=0.001,seed=2",
    ]
    assert [run.seed for run in grid.combinations()] == [2] * 4 + [5] * 4 + [6] * 4
    more = grid.with_more(Grid({"loss.name": ("glob", "sim"), "optimizer.lr": ("0.1",)}, (6, 1)))
    assert (more.axes["loss.name"], more.seeds) == (("pred", "sim", "glob"), (2, 5, 6, 1))


def test_values_are_yaml_and_folders_keep_apart() -> None:
    assert axis_of("schedule.milestones=[5, 7],[8]") == (
        "schedule.milestones",
        ("[5, 7]", "[8]"),
    )
    assert axis_of("model.factory='a:b,c'")[1] == ("a:b,c",)
    words = ("[5, 7]", "5,7", "a/b", "a:b", "é" * 300, "é" * 301)
    names = [Combination((("data.root", word),), 1).name for word in words]
    assert len(set(names)) == len(words)
    assert all("/" not in name and len(name.encode()) < 200 for name in names)
    assert names[0].startswith("data.root=5,7,seed=1-")


# --- tables -------------------------------------------------------------------------------


def outcomes() -> list[Outcome]:
    """Two combinations of two seeds: a run that predicts nothing, and one that failed."""
    runs = [Combination((("loss.rule", rule),), seed) for rule in "AB" for seed in (1, 2)]
    results = [
        Result(3, 10.0, 8.0, 2.0, 1.5, 12_345.6, 10.0),
        Result(3, 14.0, 8.0, 2.0, 1.5, None, 12.0),
        Result(3, None, None, 0.5, 0.25, 500.0, 1.0),
        None,
    ]
    status: Any = ["finished"] * 3 + ["failed"]
    why = ["", "", "", "stage 0: all is lost"]
    return [Outcome(*given) for given in zip(runs, status, results, why, strict=True)]


def test_every_mean_says_of_how_many_it_is() -> None:
    assert plain_lines(outcomes()).splitlines()[2:] == [
        "| A | 2 | 12.00 ± 2.83 | 8.00 ± 0.00 | 2.0000 ± 0.0000 | 1.5000 ± 0.0000 "
        "| 12,346 (n = 1) | 11.0 ± 1.4 |",
        "| B | 1 of 2 | – | – | 0.5000 | 0.2500 | 500 | 1.0 |",
    ]
    first, second = rows_of(outcomes())
    assert (first.is_whole, second.is_whole) == (True, False)
    assert screen_table(outcomes()).row_count == 2
    assert [in_words(one) for one in outcomes()] == [
        "last error 10.00 %, best 8.00 %",
        "last error 14.00 %, best 8.00 %",
        "last loss 0.5000, best 0.2500",
        "failed: stage 0: all is lost",
    ]


def test_the_best_of_a_greedy_run_is_that_of_its_last_phase(tmp_path: Path) -> None:
    lines = [
        {"event": "epoch", "epoch": epoch, "learner": learner, "seconds": 1.0,
         "test": {"loss": 0.1, "error_pct": error}}
        for epoch, learner, error in ((1, 0, 1.0), (2, 1, 5.0), (3, 1, 6.0))
    ]  # fmt: skip
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(f"{text}half a li", encoding="utf-8")
    found = result_in(tmp_path)
    assert found
    assert (found.last_error_pct, found.best_error_pct, found.seconds) == (6.0, 5.0, 3.0)
    assert result_in(tmp_path / "nowhere") is None


def test_a_sweep_of_one_key_is_not_extended_by_another() -> None:
    with pytest.raises(ConfigError, match="at most 10,000"):
        Grid({"loss.beta": ("0", "1")}, tuple(range(5001))).check_size()
