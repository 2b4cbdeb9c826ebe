"""pipeline-reproduce: train rows of the paper's tables, keep what they give, compare.

select cells ─▶ for each entry: config, run directory ─▶ launcher ─▶ paper.json ─▶ PAPER.md
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from launch.cli import launch_options
from launch.command import DONE, NumberRange, command, complain, run_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from launch.paper.table import Cell, Entry, Table
    from launch.paper.tasks import Request, Task
    from launch.run_directory import HeldRun
    from pipeline.errors import Option


def reproduce(tables: Sequence[Table], request: Request) -> int:
    """Train the selected entries one after another; the exit status of the first that is
    interrupted.

    Everything is checked before the first of them starts. Each finished entry is at once in
    the results.

    Raises:
        ConfigError: for the first thing that is wrong.
        PipelineError: what ended the first run that fails.
    """
    from launch.paper.results import has_last_test
    from launch.paper.tasks import RUNS_OPTION, check_results, make_tasks
    from launch.run_directory import hold
    from pipeline.errors import RUN_DIR, as_option, worded

    def word(option: Option) -> str:
        return RUNS_OPTION if option == RUN_DIR else as_option(option)

    tasks = make_tasks(tables, request)
    check_results(request.results)

    def say(line: str) -> None:
        if request.launch.view != "quiet":
            _say(line)

    for number, task in enumerate(tasks, 1):
        say(f"[{number}/{len(tasks)}] {task.entry.title}  {task.run_dir}")
        if has_last_test(task.run_dir, task.job.config):
            say(_keep(tables, task.entry, task.run_dir, request.results))
            continue
        with worded(word), hold(task.run_dir) as run:
            status = _train(task, run, request.command)
            if status != DONE:
                return status
            say(_keep(tables, task.entry, run.path, request.results))
    return DONE


def show_plans(tables: Sequence[Table], request: Request) -> int:
    """Print the plan of each selected entry, as pipeline-launch --dry-run does; leave nothing.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    from launch.launcher import launch
    from launch.paper.tasks import make_tasks

    with TemporaryDirectory(prefix="pipeline-") as folder:
        tasks = make_tasks(tables, replace(request, runs=Path(folder)))
        for number, task in enumerate(tasks, 1):
            before = "" if number == 1 else "\n"
            _say(f"{before}[{number}/{len(tasks)}] {task.entry.title}\n")
            status = launch(task.options)
            if status != DONE:
                return status
    return DONE


def _train(task: Task, run: HeldRun, command: str) -> int:
    """Train a task to its end in its folder; `command` goes into its provenance."""
    from launch.engines.interrupts import INTERRUPTED
    from launch.paper.results import has_last_test
    from launch.paper.tasks import RUNS_OPTION
    from launch.series import how_to_go_on, train_one
    from pipeline.errors import CutShortError, InterruptedRunError, StageFailedError

    if has_last_test(run.path, task.job.config):
        return DONE  # another command trained it before this one locked the folder
    try:
        train_one(task.job, run, replace(task.options, command=command), RUNS_OPTION)
    except (InterruptedRunError, KeyboardInterrupt) as error:
        return complain(how_to_go_on(error, run, "entries", command), INTERRUPTED)
    except CutShortError as error:
        advised = f"{error.summary}; to go on, with the remaining entries:\n  {command}"
        raise StageFailedError(advised, error.remote_traceback) from error
    return DONE


def _keep(tables: Sequence[Table], entry: Entry, run_dir: Path, results: Path) -> str:
    """Record a finished run and write the report; returns a line with its result."""
    from launch.paper.report import RESULTS, write_report
    from launch.paper.results import alone_in, keep_record, record_of

    record = record_of(entry, run_dir)
    with alone_in(results):
        keep_record(results / RESULTS, record)
        report = write_report(tables, results, _say, {entry.figure})
    return f"{entry.key}: test error {record.error_pct:.2f} %, kept in {report}"


def list_cells(cells: Iterable[Cell], results: Path) -> None:
    """Print a line for each cell: selector, the paper's error, ours, config."""
    from launch.paper.configs import CONFIGS, epochs_text
    from launch.paper.report import RESULTS
    from launch.paper.results import best_record, read_records

    records = read_records(results / RESULTS)
    for cell in cells:
        record = best_record(cell.entry, records)
        ours = "not run"
        if record:
            epochs = epochs_text(record.epochs, cell.entry.epochs)
            ours = f"ours {record.error_pct:.2f} % ({epochs} epochs)"
        paper = f"paper {cell.error} %"
        _say(f"{cell.selector:28} {paper:14} {ours:32} {CONFIGS}/{cell.entry.key}.yaml")


def _say(line: str) -> None:
    print(line, flush=True)


def run_request(request: Request, *, listing: bool, write: bool, report: bool) -> int:
    """Print the list, write the configs, write the report; if none is asked for, train.

    Raises:
        ConfigError: for the first thing that is wrong.
        PipelineError: what ended the first run that fails.
    """
    from launch.paper.configs import write_configs
    from launch.paper.report import write_report
    from launch.paper.results import alone_in
    from launch.paper.table import all_cells, read_tables, select
    from launch.paper.tasks import writing
    from pipeline.errors import ConfigError

    tables = read_tables()
    if listing:
        cells = select(tables, request.selector) if request.selector else all_cells(tables)
        list_cells(cells, request.results)
    if write:
        _say(f"{len(write_configs(tables, Path()))} configs changed")
    if report:
        with writing("--results", request.results), alone_in(request.results):
            _say(f"written: {write_report(tables, request.results, _say, None)}")
    if listing or write or report:
        return DONE
    if not request.selector:
        raise ConfigError(
            "which entries? give TABLE[/ROW[/LOSS]], as 1/mlp/predsim; --list shows all"
        )
    return (show_plans if request.launch.dry_run else reproduce)(tables, request)


@command
@click.argument("selector", metavar="TABLE[/ROW[/LOSS]]", required=False)
@click.option(
    "--epochs-scale",
    type=NumberRange(min=0, min_open=True, max=100),
    default=1.0,
    metavar="X",
    help="Train X times the paper's epochs, with the milestones at the same shares. [default: 1]",
)
@click.option(
    "--list", "listing", is_flag=True, help="Print all entries and results; start nothing."
)
@click.option("--dry-run", is_flag=True, help="Print the plan of each entry; start nothing.")
@click.option("--report", is_flag=True, help="Write PAPER.md and the curves from paper.json alone.")
@click.option("--write-configs", "write", is_flag=True, help="Write configs/paper from the tables.")
@click.option(
    "--runs",
    metavar="DIR",
    default="runs/paper",
    show_default=True,
    help="Where the run directories are: DIR/<data set>/<entry>.",
)
@click.option(
    "--results",
    metavar="DIR",
    default="benchmarks",
    show_default=True,
    help="Where PAPER.md, results/paper.json and figures/ are.",
)
@launch_options
def main(
    selector: str | None,
    epochs_scale: float,
    listing: bool,
    report: bool,
    write: bool,
    runs: str,
    results: str,
    **options: Any,
) -> None:
    """Train rows of Tables 1 to 9 of the paper (Nøkland & Eidnes, 2019), and compare.

    \b
    pipeline-reproduce 1                  all of Table 1
    pipeline-reproduce 1/mlp              one row: glob, pred, sim, predsim
    pipeline-reproduce 9/cifar10/glob+sim one number

    A run that was interrupted is resumed; a finished one is not trained again.

    \b
    Exit status: 0 done; 1 a run failed; 2 wrong usage or config;
    130 interrupted (a checkpoint was written).
    """

    def body() -> int:
        from launch.job import Options
        from launch.paper.tasks import Request
        from launch.run_directory import folder_named

        request = Request(
            selector or "",
            Options(None, **options),
            epochs_scale,
            folder_named("--runs", runs),
            folder_named("--results", results),
            shlex.join(["pipeline-reproduce", *sys.argv[1:]]),
        )
        return run_request(request, listing=listing, write=write, report=report)

    run_command(body)


if __name__ == "__main__":
    main()
