"""pipeline-sweep: the same training with several seeds and values, and a table of what they gave.

all runs checked ─▶ each in order: begin, or go on, to its end ─▶ tables, written anew after each
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from launch.cli import launch_options
from launch.command import DONE, FAILED, PathType, command, complain, run_command, status_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from launch.grid.results import Outcome
    from launch.grid.sweeps import Planned, Request, Sweep
    from launch.run_directory import HeldRun


def sweep(request: Request, *, dry_run: bool = False) -> int:
    """Train all runs of a sweep; the exit status: failed where one of them has no result,
    interrupted where that ended it.

    Raises:
        ConfigError: saying all that is wrong, before anything is started.
    """
    from launch.display.streams import wait_for_no_reader
    from launch.grid.sweeps import checked, sweep_in, sweep_of
    from pipeline.errors import ConfigError

    asked = sweep_of(request)
    runs = checked(asked, request)
    if dry_run or request.launch.view != "quiet":
        print(_in_order(asked, runs, request.jobs), flush=True)
    if dry_run:
        for number, one in enumerate(runs, 1):
            known = "  finished" if one.is_finished else "  begun" if one.is_begun else ""
            print(f"[{number}/{len(runs)}] {one.run.name}{known}")
        return DONE
    before = None if request.run_dir is None else sweep_in(request.run_dir)
    wait_for_no_reader()
    with _held(asked, request.run_dir) as folder:
        if sweep_in(folder.path) != before:
            raise ConfigError(f"--run-dir {folder.path}: another command has just changed it")
        folder.check_writable()
        return _carried_out(asked.keep(folder), runs, folder, request)


def _held(asked: Sweep, path: Path | None) -> AbstractContextManager[HeldRun]:
    from launch.run_directory import hold, hold_new

    return hold_new(f"{asked.name}-sweep") if path is None else hold(path)


def _in_order(asked: Sweep, runs: list[Planned], jobs: int) -> str:
    done = sum(one.is_finished for one in runs)
    begun = sum(one.is_begun for one in runs) - done
    known = [f"{done} finished"] * bool(done) + [f"{begun} begun"] * bool(begun)
    there = f" ({', '.join(known)})" if known else ""
    how = "one after another" if jobs == 1 else f"{jobs} at once"
    return f"{asked.name}: {asked.grid.in_words()}{there}, {how}, seed by seed"


def _carried_out(sweep: Sweep, runs: list[Planned], folder: HeldRun, request: Request) -> int:
    from launch.engines.interrupts import INTERRUPTED
    from launch.grid.results import in_words
    from launch.grid.table import write_tables
    from launch.machine.provenance import provenance

    about = {**provenance(request.command), **sweep.about}
    outcomes = {one.run: _known(one, folder) for one in runs}

    def say(text: str) -> None:
        if request.launch.view != "quiet":
            print(text, flush=True)

    def write() -> None:
        try:
            write_tables(folder.folder, about, list(outcomes.values()))
        except OSError as error:  # as with a run's own files: training goes on
            say(f"{folder.path}: the tables can't be written: {error}")

    def keep(one: Planned, outcome: Outcome) -> None:
        outcomes[one.run] = outcome
        say(f"{titles[one.run]}: {in_words(outcome)}")
        write()

    titles = {one.run: f"[{k}/{len(runs)}] {one.run.name}" for k, one in enumerate(runs, 1)}
    left = [one for one in runs if not one.is_finished]
    write()
    if request.jobs > 1:
        status = _at_once(sweep, left, folder, request, keep)
    else:
        status = DONE
        for one in left:
            say(titles[one.run])
            keep(one, _trained(one, sweep, folder, request))
            if outcomes[one.run].status == "interrupted":
                status = INTERRUPTED
                break
    if status == INTERRUPTED:
        return status
    if request.launch.view != "quiet":
        _show(list(outcomes.values()), folder.path)
    return DONE if all(one.result for one in outcomes.values()) else FAILED


def _at_once(
    sweep: Sweep,
    left: list[Planned],
    folder: HeldRun,
    request: Request,
    keep: Callable[[Planned, Outcome], None],
) -> int:
    from launch.engines.interrupts import INTERRUPTED
    from launch.grid.at_once import train_at_once
    from launch.grid.results import Outcome

    def ended(one: Planned, status: int, why: str) -> None:
        if status == DONE:
            keep(one, _finished(one, folder))
        elif status == INTERRUPTED:
            keep(one, Outcome(one.run, "interrupted"))
        else:
            complain(f"{one.run.name}: {why}", status)
            keep(one, Outcome(one.run, "failed", None, why))

    if train_at_once(sweep, left, folder.path, request.jobs, ended):
        return DONE
    said = f"interrupted; to go on, with the remaining runs:\n  {_to_go_on(folder, request)}"
    return complain(said, INTERRUPTED)


def _known(one: Planned, folder: HeldRun) -> Outcome:
    """What is known of a run before this command has trained it."""
    from launch.grid.results import Outcome

    if one.is_finished:
        return _finished(one, folder)
    return Outcome(one.run, "unfinished" if one.is_begun else "not run")


def _finished(one: Planned, folder: HeldRun) -> Outcome:
    from launch.grid.results import Outcome, result_in

    result = result_in(folder.path / one.run.name)
    return Outcome(one.run, "finished", result, "" if result else "its metrics.jsonl has no lines")


def _trained(one: Planned, sweep: Sweep, folder: HeldRun, request: Request) -> Outcome:
    """Train a run to its end, or as far as it comes."""
    from launch.engines.interrupts import INTERRUPTED
    from launch.grid.results import Outcome
    from launch.run_directory import hold
    from launch.series import how_to_go_on, train_one
    from pipeline.errors import InterruptedRunError, one_line

    why = ""

    def body() -> int:
        nonlocal why
        try:
            job = one.job(sweep)
            with hold(folder.path / one.run.name) as run:
                try:
                    train_one(job, run, replace(one.options, command=request.command), "--run-dir")
                except (InterruptedRunError, KeyboardInterrupt) as error:
                    said = how_to_go_on(error, run, "runs", _to_go_on(folder, request))
                    return complain(said, INTERRUPTED)
        except Exception as error:
            why = one_line(error)
            raise
        return DONE

    status = status_of(body)
    if status == DONE:
        return _finished(one, folder)
    return Outcome(one.run, "interrupted" if status == INTERRUPTED else "failed", None, why)


def _to_go_on(folder: HeldRun, request: Request) -> str:
    from launch.launcher import placement

    jobs = ["--jobs", str(request.jobs)] if request.jobs > 1 else []
    words = ["pipeline-sweep", "--run-dir", str(folder.path), *jobs, *placement(request.launch)]
    return shlex.join(words)


def _show(outcomes: list[Outcome], path: Path) -> None:
    """The table, as a picture on a terminal, else in lines that are never wrapped."""
    from rich.console import Console

    from launch.grid.table import TABLES, not_counted, plain_lines, screen_table

    console = Console()
    print()
    if console.is_terminal:
        console.print(screen_table(outcomes), highlight=False)
    else:
        print(plain_lines(outcomes))
    for line in not_counted(outcomes):
        print(f"without a result: {line}")
    print(f"{path}: {', '.join(TABLES)}, and a folder for each run", flush=True)


@command
@click.argument("config", metavar="CONFIG.yaml", required=False, type=PathType())
@click.option("--seeds", metavar="SEEDS", help="As 1-5, or 1,2,7. [default: the config's own]")
@click.option(
    "--over",
    multiple=True,
    metavar="KEY=VALUE,…",
    help="Values of a key of the config, as loss.name=pred,sim; a value that is a list in "
    "brackets. Repeatable: every value of each key with every one of the others.",
)
@click.option(
    "--run-dir",
    metavar="DIR",
    help="The sweep's folder; of one that holds a sweep, that is gone on with: CONFIG.yaml may be "
    "left out, and seeds and values may be added. [default: runs/<config>-sweep-<date>-<time>]",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    metavar="N",
    help="Runs at once, each in a process of its own (or several, without --single), which shows "
    "nothing; they share devices and cores.",
)
@click.option("--dry-run", is_flag=True, help="Check and list all runs; start nothing.")
@launch_options
def main(
    config: Path | None,
    seeds: str | None,
    over: tuple[str, ...],
    run_dir: str | None,
    jobs: int,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train a config with several seeds and values, and tabulate mean ± standard deviation.

    \b
    pipeline-sweep configs/digits.yaml --seeds 1-5 --over loss.name=pred,sim,predsim
    pipeline-sweep --run-dir runs/digits-sweep-…       go on where it was interrupted

    Finished runs are not trained again, unfinished ones are resumed.

    \b
    Exit status: 0 done; 1 a run failed (the others are trained); 2 wrong usage or config;
    130 interrupted (a checkpoint was written).
    """

    def body() -> int:
        from launch.grid.sweeps import Request
        from launch.job import Options
        from launch.run_directory import folder_named

        request = Request(
            config,
            over,
            seeds,
            None if run_dir is None else folder_named("--run-dir", run_dir),
            Options(None, **options),
            shlex.join(["pipeline-sweep", *sys.argv[1:]]),
            jobs,
        )
        return sweep(request, dry_run=dry_run)

    run_command(body)


if __name__ == "__main__":
    main()
