"""How many images a second each way to train learns from: python -m benchmarks.throughput

Single mode, the pipeline with several numbers of stages, global backprop in single mode, and what
they are measured against (`rivals/`): 1F1B over as many processes, a plain implementation, and the
bound, products alone. Each is a process or more of its own, in turn, so that what the machine does
falls on all of them:

    how fast is each of ours, roughly? | A B C … | A B C … | A B C …      a network's rounds
                                                 '- a ratio is that within a round

What comes before the steady state is not counted: of ours the first epoch, of rivals the warm-up.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.lib.contenders import BATCH, NETWORKS, raced, trained
from benchmarks.lib.figures import draw_throughput
from benchmarks.lib.lineup import (
    DEFAULTS,
    LOSSES,
    PRECISIONS,
    Options,
    check,
    contenders,
    default_name,
)
from benchmarks.lib.machine import (
    RESULTS,
    keep_so_far,
    machine,
    make_writable,
    read_result,
    told_in_a_line,
    write_result,
)
from benchmarks.lib.speeds import Row, answers, network_text, rows_of
from benchmarks.lib.tables import README, counts_of, no_table, write_section
from launch.machine.gpus import devices
from launch.machine.provenance import provenance
from pipeline.config.sections import config_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.lib.contenders import Lap, Task

EPOCH_S = 4.0
"""About how long an epoch of ours is to last; the first is not counted."""
PROBE_STEPS, PROBE_EPOCHS = 8, 3


def size_of_run(images_per_s: float, seconds: float) -> tuple[int, int]:
    """Steps of an epoch and epochs of a run of ours that is timed for so long."""
    epoch_s = min(EPOCH_S, seconds / 2)
    steps = max(1, round(images_per_s * epoch_s / BATCH))
    return steps, 1 + max(1, round(seconds / epoch_s))


def lap(task: Task, row: Row, disk: Path) -> Lap:
    """Time a contender; ours after a short run, the first time, to see how long epochs are."""
    if not task.contender.is_ours:
        return raced(task)
    speed = row.speed
    if speed is None:
        probe = trained(task, PROBE_STEPS, PROBE_EPOCHS, disk)
        if "failed" in probe:
            return probe
        speed = probe["images_per_s"]
    return trained(task, *size_of_run(speed, task.seconds), disk)


def race(network: str, options: Options, keep: Callable[[dict[str, Any]], None]) -> None:
    """All rounds of a network; what was found so far is kept after each."""
    rows = [Row(contender) for contender in contenders(options)]
    config = config_tree(options.task(network, rows[0].contender).config())
    for number in range(1, options.rounds + 1):
        for row in rows:
            row.laps.append(lap(options.task(network, row.contender), row, options.disk))
            print(f"{network} {number}/{options.rounds}  {_said(row)}", flush=True)
        found = [row.tree() for row in rows]
        keep({"network": network, "config": config, "contenders": found})


def _said(row: Row) -> str:
    newest = row.laps[-1]
    speed = newest.get("images_per_s")
    said = f"failed: {newest['failed']}" if speed is None else f"{speed:9,.0f} images/s"
    return f"{row.contender.name:28} {said}"


def measure(options: Options) -> dict[str, Any]:
    """Measure all networks, and keep results/NAME.partial.json as it grows."""
    if left_out := set(options.stages) - {1, *options.rival_stages}:
        print(f"left out: 1F1B in {sorted(left_out)} stages, which needs as many GPUs", flush=True)
    where = provenance(options.command)
    result: dict[str, Any] = {
        **where, "device": options.device, "threads": options.threads, "batch_size": BATCH,
        "networks": [],
    }  # fmt: skip
    for network in options.networks:
        before = list(result["networks"])

        def keep(tree: dict[str, Any], before: list[Any] = before) -> None:
            result["networks"] = [*before, tree]
            keep_so_far(options.name, result)

        race(network, options, keep)
    return result


def report(result: dict[str, Any], name: str) -> str:
    """The tables of a result as Markdown."""
    cores, commit = result["cores"], result["commit"] + "+" * result["uncommitted_changes"]
    where = machine(result, result["device"])
    words = (
        f"From [`results/{name}.json`](results/{name}.json): `{result['command']}`; {where}, "
        f"{cores} cores; torch {result['versions']['torch']}; commit {commit}. Images/s are "
        "medians of the rounds; × is the median of the quotients within rounds, 1F1B with its best "
        "numbers of stages and micro-batches.\n"
    )
    picture = f"![Images/s of each contender](figures/{name}.svg)\n"
    texts = [network_text(tree, result["device"]) for tree in result["networks"]]
    return "\n".join([words, *texts, picture])


def show(result: dict[str, Any]) -> None:
    """All medians, and whether they are what is asked for."""
    for tree in result["networks"]:
        rows = rows_of(tree["contenders"])
        print(f"\n{NETWORKS[tree['network']].title}")
        for row in rows:
            speeds = [speed for speed in row.speeds if speed is not None]
            spread = f"{min(speeds):,.0f} … {max(speeds):,.0f}" if speeds else row.failure
            print(f"{row.contender.name:28} median {row.speed or 0:9,.0f}   {spread}")
        for answer in answers(tree["network"], result["device"], rows):
            met = "yes" if answer.met else "NO"
            print(f"{answer.asked}: {answer.found:.2f}, {met}")


def _list_of(allowed: Sequence[str]) -> Callable[..., tuple[str, ...]]:
    def read(context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...]:
        words = () if text is None else tuple(text.split(","))
        if wrong := [word for word in words if word not in allowed]:
            raise click.BadParameter(f"{wrong[0]!r}: use some of {','.join(allowed)}")
        return words

    return read


@click.command()
@click.option(
    "--network",
    callback=_list_of(tuple(NETWORKS)),
    metavar="A,B",
    help=f"Of {', '.join(NETWORKS)}. [default: mlp,vgg8b_quarter, with GPUs vgg8b,vgg11b_3x]",
)
@click.option("--precision", callback=_list_of(PRECISIONS), default="fp32,bf16", show_default=True)
@click.option("--losses", callback=_list_of(LOSSES), default="pred,sim,predsim", show_default=True)
@click.option(
    "--stages",
    callback=counts_of,
    default="1,2,3",
    show_default=True,
    metavar="N,M",
    help="Of the pipeline and, above 1, of 1F1B, which needs as many GPUs.",
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--seconds",
    default=20.0,
    type=click.FloatRange(0.0, min_open=True),
    help="How long each is timed.  [default: 20]",
)
@click.option("--gpus", help="As for pipeline-launch.")
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Of each process on the CPU.",
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Of the config.")
@click.option("--disk", default="runs", show_default=True, type=click.Path(path_type=Path))
@click.option("--name", help="Of the file and the section. [default: throughput, on GPUs …_cuda]")
@click.option("--report", "only_report", is_flag=True, help="Write the tables again from the file.")
@no_table
@told_in_a_line
def main(
    network: tuple[str, ...], precision: tuple[str, ...], losses: tuple[str, ...],
    stages: tuple[int, ...], rounds: int, seconds: float, gpus: str | None, threads: int,
    changes: tuple[str, ...], disk: Path, name: str | None, only_report: bool, no_table: bool,
) -> None:  # fmt: skip
    """Measure, print and keep benchmarks/results/throughput.json, and the tables in
    benchmarks/README.md; the runs lie in DISK meanwhile."""
    device = devices(gpus)[0].partition(":")[0]
    networks = network or DEFAULTS[device]
    name = name or default_name(device)
    if not only_report:
        options = Options(
            networks, precision, losses, stages, rounds, seconds, gpus, threads, changes, disk, name
        )
        check(options, table=not no_table)
        make_writable(disk)
        write_result(name, measure(options))
    result = read_result(name, "throughput")
    show(result)
    print(f"kept in {RESULTS / name}.json")
    if not no_table:
        draw_throughput(result["networks"], name)
        write_section(README, name, report(result, name))


if __name__ == "__main__":
    main()
