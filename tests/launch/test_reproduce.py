"""pipeline-reproduce: entries are trained once, kept, and compared with the paper."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from support import REPOSITORY
from support.processes import contents, final_digests

from launch.engines.local import LocalEngine
from launch.job import Options
from launch.machine.provenance import is_provenance, provenance, read_starts, write_starts
from launch.paper.configs import config_text
from launch.paper.report import RESULTS, difference, report_text, write_report
from launch.paper.results import (
    Record,
    best_record,
    has_last_test,
    keep_record,
    read_records,
    record_of,
)
from launch.paper.table import read_tables, select
from launch.paper.tasks import Request, make_task
from launch.reproduce import main, reproduce
from launch.resume import what_differs
from launch.run_directory import hold
from pipeline.config.config_file import load_config
from pipeline.errors import ConfigError
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from click.testing import Result
    from support.processes import Launcher

    from launch.paper.table import Entry, Table


TINY_PAPER = """\
everywhere:
  data.batch_size: [32, section 4]
  runtime.seed: [1, none]
columns:
  glob: {settings: {loss.name: [glob, section 4]}}
  predsim: {settings: {loss.name: [predsim, section 3.4]}}
networks:
  small:
    model.name: [mlp, the table]
    model.hidden_layers: [2, the table]
    model.hidden: [16, the table]
datasets:
  digits:
    title: Digits
    settings:
      data.name: [digits, section 4.1]
      data.train_limit: [100, section 4.1]
      data.test_limit: [40, section 4.1]
      schedule.epochs: [4, section 4]
      schedule.milestones: [[2, 3], section 4]
tables:
  1:
    title: Digits, a few of them
    dataset: digits
    rows:
      mlp:
        label: 2x16 MLP
        par: 1k
        network: small
        errors: {glob: 9.00, predsim: 8.50}
        settings: {model.dropout: [0.1, section 4.1]}
"""
"""4 epochs of 4 steps."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose paper has one tiny table."""
    (tmp_path / "tiny_paper.yaml").write_text(TINY_PAPER, encoding="utf-8")
    monkeypatch.setattr("launch.paper.table.TABLE", tmp_path / "tiny_paper.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tables(here: Path) -> tuple[Table, ...]:
    """The tables of the tiny paper."""
    return read_tables()


def request_of(selector: str, *overrides: str, **given: Any) -> Request:
    options = Options(None, gpus="cpu", view="quiet", overrides=overrides)
    return Request(selector, options, command=f"pipeline-reproduce {selector}", **given)


def entry_of(tables: Sequence[Table], selector: str) -> Entry:
    (cell,) = select(tables, selector)
    return cell.entry


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def refused(*arguments: str) -> str:
    """The one line that a wrong command gives."""
    result = run(*arguments)
    assert result.exit_code == 2, result.exception
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip()


def record(entry: str = "digits/mlp_predsim", **given: Any) -> Record:
    """A record as of a whole run."""
    whole: dict[str, Any] = {
        "entry": entry, "epochs": 4, "changes": {}, "error_pct": 8.25, "images_per_s": 1000.4,
        "stages": 2, "devices": ["cpu"], "threads_per_stage": 1,
        "starts": [start("0c1cfec")],
        "train": [50.0, 20.0, 10.0, 5.0], "test": [40.0, None, 9.0, 8.25],
    }  # fmt: skip
    return Record(**{**whole, **given})


START: dict[str, Any] = {
    "command": "pipeline-reproduce 1", "processor": "A processor", "cores": 2, "gpus": [],
    "versions": {"local-loss-pipeline": "0.1.0"}, "commit": "", "uncommitted_changes": False,
}  # fmt: skip


def start(commit: str, *, changed: bool = False, gpus: Sequence[str] = ()) -> dict[str, Any]:
    return {**START, "gpus": list(gpus), "commit": commit, "uncommitted_changes": changed}


def finished_run(loss: str) -> Path:
    """The run directory of an entry as a finished run leaves it, as far as results need it."""
    entry = entry_of(read_tables(), f"1/mlp/{loss}")
    folder = Path(f"runs/paper/digits/mlp_{loss}")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config_text(entry, CELLS), encoding="utf-8")
    lines = [
        {
            "event": "epoch", "epoch": epoch, "images_per_s": 100.0 * epoch,
            "train": {"error_pct": 10 / epoch}, "test": {"error_pct": 20 / epoch},
            "stages": [{"device": "cpu"}],
        }
        for epoch in range(1, entry.epochs + 1)
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


CELLS = select(read_tables(), "1/mlp/pred")
"""Whatever cell: its selector stands in the comments of a config."""


# --- the whole way ------------------------------------------------------------------------


@pytest.mark.processes
def test_a_row_is_trained_kept_and_not_trained_again(
    tables: Sequence[Table], here: Path, sockets_gone: None
) -> None:
    assert reproduce(tables, request_of("1/mlp")) == 0
    records = {one.entry: one for one in read_records(here / "benchmarks" / RESULTS)}
    assert set(records) == {"digits/mlp_glob", "digits/mlp_predsim"}
    for key, stages in (("digits/mlp_glob", 1), ("digits/mlp_predsim", 2)):
        found = records[key]
        assert (found.epochs, found.stages, found.changes) == (4, stages, {})
        assert found.single == (key == "digits/mlp_glob")
        assert len(found.train) == len(found.test) == 4
        assert found.error_pct == pytest.approx(found.test[-1])
        assert [one["command"] for one in found.starts] == ["pipeline-reproduce 1/mlp"]
        assert (here / "runs/paper" / f"{key}.yaml").exists()
    report = (here / "benchmarks/PAPER.md").read_text(encoding="utf-8")
    assert "| 2x16 MLP | predsim | 8.50 |" in report
    assert "(figures/digits_mlp.svg)" in report
    before = final_digests(here / "runs/paper/digits/mlp_predsim")
    kept = (here / "benchmarks" / RESULTS).read_bytes()
    assert reproduce(tables, request_of("1/mlp")) == 0
    assert final_digests(here / "runs/paper/digits/mlp_predsim") == before
    assert (here / "benchmarks" / RESULTS).read_bytes() == kept


@pytest.mark.processes
def test_a_shorter_run_has_its_own_folder_and_record(tables: Sequence[Table], here: Path) -> None:
    keep_record(here / "benchmarks" / RESULTS, record("digits/mlp_glob"))
    assert reproduce(tables, request_of("1/mlp/glob", epochs_scale=0.5)) == 0
    run = here / "runs/paper/digits/mlp_glob-2_epochs"
    schedule = load_config(run / "config.yaml").schedule
    assert (schedule.epochs, schedule.milestones) == (2, (1,))
    assert {one.epochs for one in read_records(here / "benchmarks" / RESULTS)} == {2, 4}


PLANTED = """
from pathlib import Path
from support.processes import hold_feed
hold_feed({step})
import launch.paper.table
launch.paper.table.TABLE = Path("tiny_paper.yaml")
from launch.reproduce import main
main()
"""


@pytest.mark.processes
def test_an_interrupted_row_goes_on_where_it_was(
    tables: Sequence[Table], here: Path, launcher: Callable[..., Launcher]
) -> None:
    """Ctrl-C ends the command: no further entry starts; the same command again finishes all."""
    words = ("1/mlp", "--view", "quiet", "--runs", "cut")
    held = launcher(*words, program=PLANTED.format(step=6))
    held.wait_for("held")
    held.press_ctrl_c()
    assert held.exit_status() == 130
    assert "interrupted after step 6: a checkpoint was written; to go on, " in held.stderr
    assert "with the remaining entries:\n  pipeline-reproduce 1/mlp" in held.stderr
    assert not (here / "cut/digits/mlp_predsim").exists()
    assert not (here / "benchmarks" / RESULTS).exists()

    request = request_of("1/mlp", runs=Path("cut"))
    task = make_task(tables, entry_of(tables, "1/mlp/glob"), request)
    assert task.options.resume
    assert not has_last_test(task.run_dir, task.job.config)
    assert reproduce(tables, request) == 0
    assert reproduce(tables, request_of("1/mlp", runs=Path("whole"))) == 0
    for name in ("mlp_glob", "mlp_predsim"):
        both = [final_digests(here / runs / "digits" / name) for runs in ("cut", "whole")]
        assert both[0] == both[1]
    assert len(read_starts(here / "cut/digits/mlp_glob")) == 2
    assert len(read_starts(here / "cut/digits/mlp_predsim")) == 1


def test_ctrl_c_before_an_entry_has_begun(
    tables: Sequence[Table], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def at_once(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalEngine, "warm_up", at_once)
    assert reproduce(tables, request_of("1/mlp")) == 130
    assert capsys.readouterr().err == (
        "interrupted: there is no complete checkpoint; to go on, with the remaining entries:\n"
        "  pipeline-reproduce 1/mlp\n"
    )


# --- what is there already ----------------------------------------------------------------


@pytest.mark.usefixtures("nothing_starts")
def test_a_finished_run_is_only_looked_at(tables: Sequence[Table], here: Path) -> None:
    """A run of another command may be put in the place: its provenance is not known."""
    finished_run("predsim")
    more = ("runtime.threads_per_stage=2", "data.root=/elsewhere", "data.download=false")
    assert reproduce(tables, request_of("1/mlp/predsim", *more)) == 0
    (found,) = read_records(here / "benchmarks" / RESULTS)
    assert (found.error_pct, found.images_per_s, found.starts) == (5.0, 250.0, [])
    assert found.train == [10.0, 5.0, 3.3333, 2.5]
    report = (here / "benchmarks/PAPER.md").read_text(encoding="utf-8")
    assert "| 5.00 | -3.50 | 1k |" in report
    assert "| 4 | 250 | not recorded | not recorded |" in report


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("change", "now", "before"),
    [
        ("model.dropout=0.2", "0.2", "0.1"), ("runtime.seed=2", "2", "1"),
        ("runtime.precision=bf16", "bf16", "fp32"), ("schedule.epochs=5", "5", "4"),
        ("optimizer.lr=0.1", "0.1", "0.0005"),
    ],
)  # fmt: skip
def test_another_run_in_the_place_is_named(here: Path, change: str, now: str, before: str) -> None:
    finished_run("predsim")
    key = change.partition("=")[0]
    says = refused("1/mlp/predsim", "--set", change, "--gpus", "cpu")
    assert says == (
        f"runs/paper/digits/mlp_predsim: holds a run with {key} {before}, but {now} is asked for: "
        "choose another folder with --runs, or move that run away"
    )


@pytest.mark.usefixtures("nothing_starts")
def test_results_that_were_removed_are_recorded_anew(tables: Sequence[Table], here: Path) -> None:
    finished_run("predsim")
    for _ in range(2):
        assert reproduce(tables, request_of("1/mlp/predsim")) == 0
        (here / "benchmarks" / RESULTS).unlink()


@pytest.mark.processes
def test_a_greedy_run_ends_with_its_last_phase(tables: Sequence[Table], here: Path) -> None:
    """3 blocks learn one after another: 3 times the epochs."""
    greedy = request_of("1/mlp/predsim", "schedule.greedy=true", epochs_scale=0.25)
    greedy = replace(greedy, launch=replace(greedy.launch, single=True))
    assert reproduce(tables, greedy) == 0
    (found,) = read_records(here / "benchmarks" / RESULTS)
    assert (found.epochs, len(found.test), found.single) == (1, 3, True)
    assert found.changes == {"schedule.greedy": [False, True]}
    entry = entry_of(tables, "1/mlp/predsim")
    task = make_task(tables, entry, greedy)
    assert has_last_test(task.run_dir, task.job.config)
    lines = (task.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (task.run_dir / "metrics.jsonl").write_text(
        lines[0], encoding="utf-8"
    )  # cut after its first phase
    assert not has_last_test(task.run_dir, task.job.config)
    with pytest.raises(ConfigError, match="is not finished"):
        record_of(entry, task.run_dir)


@pytest.mark.parametrize(
    ("loss", "plan", "single"),
    [
        ("predsim", '{"single": true, "stages": []}', True),
        ("predsim", '{"stages": []}', False),
        ("predsim", None, False),
        ("glob", '{"stages": []}', True),
        ("glob", None, True),
    ],
)
def test_plans_of_older_runs_do_not_say_how_many_processes(
    tables: Sequence[Table], here: Path, loss: str, plan: str | None, single: bool
) -> None:
    entry = entry_of(tables, f"1/mlp/{loss}")
    directory = finished_run(loss)
    if plan is not None:
        (directory / "plan.json").write_text(plan, encoding="utf-8")
    assert record_of(entry, directory).single == single


def test_a_damaged_plan_is_named(tables: Sequence[Table], here: Path) -> None:
    entry = entry_of(tables, "1/mlp/predsim")
    directory = finished_run("predsim")
    for text in ("", "[]"):
        (directory / "plan.json").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"plan\.json: is no plan of a run: "):
            record_of(entry, directory)


def test_a_run_is_finished_when_its_last_epoch_was_tested(
    tables: Sequence[Table], here: Path
) -> None:
    entry = entry_of(tables, "1/mlp/predsim")
    directory = finished_run("predsim")
    assert record_of(entry, directory).error_pct == 5.0
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20], encoding="utf-8")
    with pytest.raises(ConfigError, match="is not finished"):
        record_of(entry, directory)


# --- wrong usage --------------------------------------------------------------------------


@pytest.mark.usefixtures("here", "nothing_starts")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "which entries? give TABLE[/ROW[/LOSS]], as 1/mlp/predsim; --list shows all"),
        ("2", "2: there is no table 2; tables: 1"),
        ("1/vgg", "1/vgg: Table 1 has no row vgg; rows: mlp"),
        ("--list 1/vgg", "1/vgg: Table 1 has no row vgg; rows: mlp"),
        ("1 --set model.hiden=8", "--set model.hiden=8: unknown key"),
        ("1 --stages 9 --gpus cpu", "--stages 9: "),
        ("1 --gpus 0-x", "--gpus 0-x: "),
        ("1 --engine ray", "--engine ray: this command trains on this machine alone"),
        ("1 --runs /proc/foo", "--runs /proc/foo: can't be written: "),
        ("1 --runs tiny_paper.yaml/x", "--runs tiny_paper.yaml/x: can't be written: "),
        ("1 --dry-run --set model.hiden=8", "--set model.hiden=8: unknown key"),
        (
            "1 --set runtime.eval_every_epochs=0",
            "runtime.eval_every_epochs 0: a result needs the test of the last epoch",
        ),
        ("1 --results /proc/foo", "--results /proc/foo: can't be written: "),
        ("1 --results tiny_paper.yaml/x", "--results tiny_paper.yaml/x: can't be written: "),
        ("--report --results /proc/foo", "--results /proc/foo: can't be written: "),
    ],
)
def test_wrong_usage(arguments: str, says: str) -> None:
    assert refused(*arguments.split()).startswith(says)


@pytest.mark.usefixtures("nothing_starts")
def test_results_are_looked_at_before_anything_starts(here: Path) -> None:
    path = here / "benchmarks" / RESULTS
    path.parent.mkdir(parents=True)
    path.write_text("{}", encoding="utf-8")
    assert refused("1", "--gpus", "cpu", "--view", "quiet").startswith(f"benchmarks/{RESULTS}: ")
    path.unlink()
    (here / "benchmarks/figures").touch()
    says = refused("1", "--gpus", "cpu", "--view", "quiet")
    assert says.startswith("--results benchmarks: can't be written: ")


@pytest.mark.usefixtures("nothing_starts")
def test_a_file_in_the_place_of_a_run(here: Path) -> None:
    (here / "runs/paper/digits").mkdir(parents=True)
    (here / "runs/paper/digits/mlp_glob").touch()
    says = refused("1/mlp/glob", "--gpus", "cpu", "--view", "quiet")
    assert says.startswith("--runs runs/paper: can't be written: ")
    assert "digits/mlp_glob" in says
    with (
        pytest.raises(ConfigError, match=r"--run-dir .*mlp_glob: can't be opened: .*; choose"),
        hold(here / "runs/paper/digits/mlp_glob"),
    ):
        pass


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '[{"command": "x"}]', json.dumps([START | {"cores": "two"}]),
     json.dumps([START | {"gpus": [1]}])],
)  # fmt: skip
def test_damaged_provenance_is_named(here: Path, text: str) -> None:
    """Before anything starts: that of the second entry, too."""
    finished_run("glob")
    (finished_run("predsim") / "provenance.json").write_text(text, encoding="utf-8")
    says = refused("1", "--gpus", "cpu", "--view", "quiet")
    assert says.startswith("runs/paper/digits/mlp_predsim/provenance.json: is no list of proven")
    assert "repair it, or move it away" in says
    assert not (here / "benchmarks").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("scale", ["0", "-1", "many", "1000", "nan", "inf"])
def test_a_scale_is_a_positive_number(scale: str) -> None:
    result = run("1", "--epochs-scale", scale)
    assert result.exit_code == 2
    assert "--epochs-scale" in result.stderr


def test_a_clone_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "local-loss-pipeline":
            raise PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr("launch.machine.provenance.version", version)
    where = provenance("command")
    assert (where["versions"]["local-loss-pipeline"], where["versions"]["torch"]) == ("", "1")
    assert is_provenance(where)


@pytest.mark.usefixtures("here")
def test_what_is_refused_leaves_no_provenance(here: Path) -> None:
    """The data set is not there: the run has never begun."""
    words = ("--set", "data.name=mnist", "--set", "data.download=false", "--single")
    assert "mnist" in refused("1/mlp/glob", "--gpus", "cpu", "--view", "quiet", *words).lower()
    assert read_starts(here / "runs/paper/digits/mlp_glob") == []


def test_where_another_is_at_work_nothing_is_touched(here: Path) -> None:
    directory = finished_run("glob")
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text(lines[0], encoding="utf-8")
    write_starts(Folder.open(directory), [start("0c1cfec")])
    before = contents(directory)
    with hold(directory):
        says = refused("1/mlp/glob", "--gpus", "cpu", "--view", "quiet")
    assert says == "--runs runs/paper/digits/mlp_glob: another run is at work in it"
    assert contents(directory) == before


@pytest.mark.usefixtures("nothing_starts")
def test_what_another_command_finishes_meanwhile_is_not_trained_again(
    tables: Sequence[Table], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between this one's look and its lock."""
    folder = here / "runs/paper/digits/mlp_glob"
    before = {}

    def late(path: Path) -> Any:
        finished_run("glob")
        before.update(contents(folder))
        return hold(path)

    monkeypatch.setattr("launch.run_directory.hold", late)
    assert reproduce(tables, request_of("1/mlp/glob")) == 0
    assert contents(folder) == before
    assert [found.entry for found in read_records(here / "benchmarks" / RESULTS)] == [
        "digits/mlp_glob"
    ]


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("flag", ["--runs", "--results"])
@pytest.mark.parametrize("name", ["", "a\nb", "x" * 300, "tiny_paper.yaml"])
def test_a_folder_that_is_none(here: Path, flag: str, name: str) -> None:
    says = refused("1/mlp/glob", "--gpus", "cpu", "--view", "quiet", flag, name)
    assert says.startswith(f"{flag} ")
    assert not list(here.rglob("mlp_glob"))


def test_of_two_that_begin_at_once_one_trains(here: Path) -> None:
    """The other has its folder, but nothing is in it yet that a run could be known by."""
    with hold(here / "runs/paper/digits/mlp_glob") as run:
        write_starts(run.folder, [start("0c1cfec")])
        says = refused("1/mlp/glob", "--gpus", "cpu", "--view", "quiet")
        assert says == "--runs runs/paper/digits/mlp_glob: another run is at work in it"
        assert read_starts(run.path) == [start("0c1cfec")]


def test_glob_is_trained_in_one_process(tables: Sequence[Table], here: Path) -> None:
    request = request_of("1")
    request = replace(request, launch=replace(request.launch, stages=2))
    glob = make_task(tables, entry_of(tables, "1/mlp/glob"), request).options
    local = make_task(tables, entry_of(tables, "1/mlp/predsim"), request).options
    assert (glob.single, glob.stages) == (True, None)
    assert (local.single, local.stages) == (False, 2)


# --- what needs no training ---------------------------------------------------------------


@pytest.mark.usefixtures("nothing_starts")
def test_plans_are_shown_and_nothing_is_written(here: Path) -> None:
    before = contents(here)
    result = run("1/mlp", "--dry-run", "--gpus", "0-1", "--view", "quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    glob, predsim = result.stdout.split("[2/2] ")
    assert glob.startswith("[1/2] Digits, 2x16 MLP, glob\n")
    assert "Global backprop needs all blocks in one process (--single)" in glob
    assert predsim.startswith("Digits, 2x16 MLP, predsim\n")
    assert "cuda:1" in predsim
    assert "Speed: bound by stage" in predsim
    assert contents(here) == before


def test_the_list_shows_what_there_is(here: Path) -> None:
    keep_record(here / "benchmarks" / RESULTS, record())
    lines = run("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1/mlp/glob", "1/mlp/predsim"]
    assert "paper 9.00 %   not run" in lines[0]
    assert "paper 8.50 %   ours 8.25 % (4 epochs)" in lines[1]
    assert lines[1].endswith("configs/paper/digits/mlp_predsim.yaml")
    assert run("--list", "1/mlp/glob").stdout.splitlines() == lines[:1]


def test_configs_are_written_where_one_stands(here: Path) -> None:
    assert run("--write-configs").stdout == "2 configs changed\n"
    assert load_config(here / "configs/paper/digits/mlp_glob.yaml").model.hidden == 16


# --- results and report -------------------------------------------------------------------


def test_a_short_or_changed_run_takes_no_ones_place(
    tables: Sequence[Table], tmp_path: Path
) -> None:
    path = tmp_path / RESULTS
    wide = {"model.hidden": [16, 32]}
    kept = [
        record(),
        record(epochs=2, error_pct=20.0),
        record(epochs=8, error_pct=0.5),
        record(changes=wide, error_pct=1.0),
        record(changes={"runtime.precision": ["fp32", "bf16"]}, error_pct=2.0),
    ]
    for one in [record(error_pct=99.0), *kept]:
        keep_record(path, one)
    records = read_records(path)
    assert sorted(one.error_pct for one in records) == [0.5, 1.0, 2.0, 8.25, 20.0]
    entry = entry_of(tables, "1/mlp/predsim")
    assert best_record(entry, records) == kept[0]
    assert best_record(entry, kept[1:]) == kept[4]
    assert best_record(entry, kept[1:4]) == kept[2]
    assert best_record(entry, [kept[1], kept[3]]) == kept[1]
    assert best_record(entry, kept[3:4]) is None
    assert not list((tmp_path / "results").glob(".*"))


@pytest.mark.parametrize("text", ["", "[]", '{"records": [{"entry": 1}]}'])
def test_damaged_results_are_named(here: Path, text: str) -> None:
    path = here / "benchmarks" / RESULTS
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert refused("--report").startswith(f"benchmarks/{RESULTS}: is no file of the paper's res")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("entry", 1), ("epochs", "4"), ("epochs", True), ("epochs", 0), ("changes", []),
        ("changes", {"model.hidden": 3}), ("error_pct", "8.25"), ("error_pct", None),
        ("error_pct", float("nan")), ("images_per_s", "fast"), ("stages", 2.0),
        ("devices", "cpu"), ("devices", [0]), ("threads_per_stage", None), ("starts", {}),
        ("starts", [{"commit": 3}]), ("train", 1.0), ("test", ["8"]), ("single", "no"),
    ],
)  # fmt: skip
def test_results_of_a_wrong_type_are_named(here: Path, field: str, wrong: Any) -> None:
    path = here / "benchmarks" / RESULTS
    keep_record(path, record())
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["records"][0][field] = wrong
    path.write_text(json.dumps(tree), encoding="utf-8")
    for arguments in (("--report",), ("--list",)):
        says = refused(*arguments)
        assert says.startswith(f"benchmarks/{RESULTS}: is no file of the paper's res")
        assert f" {field} of " in says
        assert "repair it, or move it away" in says


def test_records_from_before_single_was_noted_are_read(tmp_path: Path) -> None:
    path = tmp_path / RESULTS
    keep_record(path, record())
    tree = json.loads(path.read_text(encoding="utf-8"))
    del tree["records"][0]["single"]
    path.write_text(json.dumps(tree), encoding="utf-8")
    assert read_records(path) == [record(single=False)]


def test_no_other_writes_between_a_record_and_its_report(
    tables: Sequence[Table], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a report of fewer records could take the place of one of more."""
    found = []

    def look(*_: Any) -> None:
        records = read_records(here / "benchmarks" / RESULTS)
        descriptor = os.open(here / "benchmarks", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(len(records))
        finally:
            os.close(descriptor)

    monkeypatch.setattr("launch.paper.report.draw_figures", look)
    finished_run("predsim")
    assert reproduce(tables, request_of("1/mlp/predsim")) == 0
    assert run("--report").exit_code == 0
    assert found == [1, 1]


def test_the_report_compares(tables: Sequence[Table], tmp_path: Path) -> None:
    half = {"runtime.precision": ["fp32", "bf16"]}
    starts = [start("0c1cfec", gpus=["A GPU"]), start("a91b0ad", changed=True, gpus=["A GPU"])]
    records = [
        record(epochs=2, changes=half, starts=starts, devices=["cuda:0", "cuda:1"]),
        record(changes={"model.hidden": [16, 32]}, threads_per_stage=2, starts=[start("")]),
        record(changes={"model.hidden": [16, 64]}, single=True),
    ]
    lines = report_text(tables, records, tmp_path / "benchmarks").splitlines()
    rows = [line for line in lines if line.startswith("| 2x16 MLP")]
    assert rows[0].startswith("| 2x16 MLP | glob | 9.00 | not run | – | 1k | ")
    assert "| predsim | 8.50 | 8.25 (precision bf16) | -0.25 | 1k |" in rows[1]
    assert "| 2 of 4 | 1000 | 2 × A GPU; 2 processes | 0c1cfec, a91b0ad+ |" in rows[1]
    assert lines[-2:] == [
        "| digits/mlp_predsim | model.hidden: 32 | 8.25 | 4 | 1000 | "
        "A processor, 2 cores; 2 processes of 2 threads | 0.1.0 |",
        "| digits/mlp_predsim | model.hidden: 64 | 8.25 | 4 | 1000 | "
        "A processor, 2 cores; 1 process | 0c1cfec |",
    ]


@pytest.mark.parametrize(
    ("ours", "paper", "text"),
    [
        (0.68, "0.62", "+0.06"),
        (8.25, "8.50", "-0.25"),
        (30.0, "33.6", "-3.60"),
        (5, "5.00", "+0.00"),
    ],
)
def test_differences_have_a_sign(ours: float, paper: str, text: str) -> None:
    assert difference(ours, paper) == text


def test_report_and_pictures_come_from_the_results_alone(here: Path) -> None:
    keep_record(here / "benchmarks" / RESULTS, record())
    keep_record(here / "benchmarks" / RESULTS, record("digits/mlp_glob", epochs=1, train=[0.0]))
    assert run("--report").stdout == "written: benchmarks/PAPER.md\n"
    picture = here / "benchmarks/figures/digits_mlp.svg"
    text = picture.read_text(encoding="utf-8")
    assert "predsim 8.25 %" in text
    assert "glob, 1 of 4 epochs" in text
    elsewhere = here / "elsewhere/benchmarks"
    (elsewhere / "results").mkdir(parents=True)
    shutil.copy(here / "benchmarks" / RESULTS, elsewhere / RESULTS)
    assert run("--report", "--results", str(elsewhere)).exit_code == 0
    assert (elsewhere / "figures/digits_mlp.svg").read_text(encoding="utf-8") == text


def test_without_matplotlib_a_line_says_so(
    tables: Sequence[Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    keep_record(tmp_path / RESULTS, record())
    said: list[str] = []
    report = write_report(tables, tmp_path, said.append, None)
    assert len(said) == 1
    assert "pip install 'local-loss-pipeline[figures]'" in said[0]
    assert "svg" not in report.read_text(encoding="utf-8")


def test_without_results_there_is_nothing_to_draw(tables: Sequence[Table], tmp_path: Path) -> None:
    said: list[str] = []
    write_report(tables, tmp_path, said.append, None)
    assert said == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []


def test_what_can_not_change_a_result_is_no_difference(tmp_path: Path, tiny: Path) -> None:
    free = ("data.root=/x", "data.download=false", "runtime.threads_per_stage=4",
            "runtime.checkpoint_every_steps=2")  # fmt: skip
    assert what_differs(load_config(tiny), load_config(tiny, free)) == {}
    assert what_differs(load_config(tiny), load_config(tiny, ("loss.beta=0.5",))) == {
        "loss.beta": (0.99, 0.5)
    }


def test_the_report_in_the_repository_is_that_of_its_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a change of either: pipeline-reproduce --report."""
    monkeypatch.chdir(REPOSITORY)
    folder = Path("benchmarks")
    text = report_text(read_tables(), read_records(folder / RESULTS), folder)
    assert (folder / "PAPER.md").read_text(encoding="utf-8") == text
