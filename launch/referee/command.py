"""pipeline-referee: every rule and global backprop on the same networks, and a table of what they
give.

rows that are there ─▶ what is left, in order ─▶ a process each ─▶ rows, REFEREE.md
"""

from __future__ import annotations

import shlex
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from launch.command import (
    DONE,
    NumberRange,
    PathType,
    command,
    complain,
    options_given,
    run_command,
)
from launch.completion import complete_setting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from launch.referee.rows import Rows
    from launch.referee.tasks import Request

_OF_A_REPETITION = {"--repeat", "--data", "--jobs", "--gpus", "--table", "--out"}
"""Options that `--repeat` heeds."""


def referee(request: Request) -> int:
    """Carry out what is left of a request; the exit status: failed where a run has failed,
    interrupted where that ended it.

    Raises:
        ConfigError: for the first thing that is wrong, before anything is started.
    """
    from launch.child_commands import carry_out
    from launch.display.streams import wait_for_no_reader
    from launch.engines.interrupts import INTERRUPTED
    from launch.referee.referee import Referee, check_rows
    from launch.referee.rows import Rows

    rows = Rows(request.out)
    check_rows(request, rows)
    check(request)
    wait_for_no_reader()
    with _held(request, rows):
        at_work = Referee(request, rows, _say)
        _say(f"about {at_work.hours_left():.1f} h of work are left")
        at_work.write()
        is_whole = carry_out(at_work.next_one, at_work.ended, request.jobs)
        at_work.write()
    _say(f"{request.out / 'REFEREE.md'}: written")
    if not is_whole:
        said = f"interrupted; to go on, with what is left:\n  {request.command}"
        return complain(said, INTERRUPTED)
    for task, why in at_work.missing.items():
        _say(f"missing: {task.path}: {why}")
    return at_work.status


def show_plan(request: Request) -> int:
    """Print what would be trained, and how long that is expected to take; start nothing.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    from launch.display.format import markdown
    from launch.referee.expected import ASSUMED_RATE, Expectation
    from launch.referee.referee import check_rows
    from launch.referee.rows import Rows
    from launch.referee.tasks import tasks_of

    rows = Rows(request.out)
    check_rows(request, rows)
    check(request, with_data=False)
    expected = Expectation(request, rows)
    lines, whole, tasks = [], 0.0, tasks_of(request)
    for network, rule in request.pairs:
        own = [one for one in tasks if (one.network, one.rule) == (network, rule)]
        left = [one for one in own if rows.of(one) is None]
        seconds = sum(map(expected.seconds, left))
        whole += seconds
        kinds = [f"{sum(one.kind == kind for one in left)}" for kind in ("search", "train")]
        speed = f"{expected.images_per_s(network, rule):,.0f}"
        speed += "" if expected.is_measured(network, rule) else " ?"
        done = f"{len(own) - len(left)} of {len(own)}"
        lines.append([network.name, rule.name, done, *kinds, speed, f"{seconds / 60:.1f}"])
    columns = ["network", "rule", "done", "searches", "seeds", "images/s", "minutes"]
    _say(markdown(columns, lines, ("network", "rule")))
    hours = whole / 3600
    at_once = f"; {request.jobs} at once, about {hours / request.jobs:.1f} h" * (request.jobs > 1)
    _say(f"{sum(rows.of(one) is None for one in tasks)} of {len(tasks)} tasks are left: about "
         f"{hours:.1f} h of one core{at_once}")  # fmt: skip
    if not all(expected.is_measured(*pair) for pair in request.pairs):
        _say(
            f"?: not measured yet; {ASSUMED_RATE / 1e9:g} G multiply-adds a second are assumed, "
            "which can be wrong by a factor of two. The command measures it in its first minutes."
        )
    for network in dict.fromkeys(net for net, _ in request.pairs if net.for_gpus):
        _say(f"{network.name}: is for GPUs: on a CPU it takes days")
    return DONE


def check(request: Request, *, with_data: bool = True) -> None:
    """See that all can be trained, and the data are there, which may be fetched.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    from launch.referee.referee import check_config, check_data
    from launch.referee.tasks import Task, config_of

    configs = {
        f"{network.name}/{rule.name}": config_of(Task(network, rule, "train"), request)
        for network, rule in request.pairs
    }
    for name, config in configs.items():
        check_config(name, config, request.gpus)
    if with_data:
        check_data(configs.values())


@contextmanager
def _held(request: Request, rows: Rows) -> Iterator[None]:
    """Keeps other commands from the same rows."""
    from launch.run_directory import hold
    from pipeline.errors import worded

    with worded(lambda option: "--out"), hold(rows.folder) as folder:
        folder.check_writable()
        yield


def _say(line: str) -> None:
    print(line, flush=True)


@command
@click.option("--networks", metavar="NAMES", help="As mlp,cnn3. [default: mlp,cnn3]")
@click.option("--rules", metavar="NAMES", help="As backprop,pred,DGL. [default: all]")
@click.option(
    "--seeds", default="1-3", show_default=True, metavar="SEEDS", help="As 1-3, or 1,2,7."
)
@click.option("--data", metavar="DIR", help="Folder of the data sets. [default: data]")
@click.option(
    "--budget",
    "hours",
    type=NumberRange(min=0, min_open=True),
    metavar="HOURS",
    help="Begin nothing that would not be done by then.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    metavar="N",
    help="Runs at once, of one thread each; speed is measured with one alone before.",
)
@click.option(
    "--gpus", metavar="SPEC", help="The device: 0, or cpu. [default: the first GPU, else cpu]"
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_setting,
    help="Override a value in the configs of all runs, as data.train_limit=1000. Repeatable.",
)
@click.option(
    "--table",
    metavar="FILE",
    type=PathType(dir_okay=False),
    help="Rules that are added to the shipped launch/referee/referee.yaml, or a whole table.",
)
@click.option(
    "--out",
    metavar="DIR",
    default="benchmarks",
    show_default=True,
    help="Where REFEREE.md and results/referee/ are.",
)
@click.option(
    "--runs",
    metavar="DIR",
    default="runs/referee",
    show_default=True,
    help="Where the folders of the runs are.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print what is left and how long it takes; start nothing."
)
@click.option(
    "--repeat",
    metavar="ROWS",
    help="Train kept rows again, as mlp/pred/seed=1, or all of mlp/pred, and compare the bits.",
)
def main(
    networks: str | None,
    rules: str | None,
    seeds: str,
    data: str | None,
    hours: float | None,
    jobs: int,
    gpus: str | None,
    overrides: tuple[str, ...],
    table: Path | None,
    out: str,
    runs: str,
    dry_run: bool,
    repeat: str | None,
) -> None:
    """Train every local rule and global backprop on the same networks, and compare.

    For each rule and network: speed and memory; each of a few learning rates on a tenth of the
    training images kept back; then a training on all of them for each seed. What is there is not
    trained again, and what was interrupted is resumed.

    \b
    pipeline-referee --dry-run                              what is left, and how long it takes
    pipeline-referee --jobs 2 --budget 3                    as much as goes into 3 hours
    pipeline-referee --networks cnn6 --rules backprop,pred  some of it
    pipeline-referee --repeat mlp/pred/seed=1               see that a figure of the table repeats

    \b
    Exit status: 0 done; 1 a run failed (the others are trained), or a row did not repeat; 2 wrong
    usage or config; 130 interrupted (checkpoints were written, but none of --repeat).
    """

    def body() -> int:
        from launch.grid.combinations import seeds_of
        from launch.referee.repeat import repeat as repeat_rows
        from launch.referee.table import read_table
        from launch.referee.tasks import Request
        from launch.run_directory import folder_named
        from pipeline.errors import ConfigError

        known = read_table(table)
        request = Request(
            known,
            known.named_networks(networks),
            known.named_rules(rules),
            seeds_of(seeds),
            overrides,
            None if data is None else str(folder_named("--data", data)),
            gpus,
            jobs,
            hours,
            folder_named("--out", out),
            folder_named("--runs", runs),
            shlex.join(["pipeline-referee", *sys.argv[1:]]),
        )
        if repeat is None:
            return (show_plan if dry_run else referee)(request)
        for option in options_given():
            if option not in _OF_A_REPETITION:
                raise ConfigError(f"--repeat goes by the rows' own configs: leave {option} away")
        return repeat_rows(repeat, request, _say)

    run_command(body)


if __name__ == "__main__":
    main()
