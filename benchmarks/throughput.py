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

from benchmarks.lib.command_line import SECONDS, counts_of, provenance_now, with_usage_errors
from benchmarks.lib.contenders import BATCH, LOSSES, NETWORKS, PRECISIONS, raced, trained
from benchmarks.lib.lineup import DEFAULTS, Options, check, contenders
from benchmarks.lib.report import Finding, Report
from benchmarks.lib.result_files import RESULTS, keep_so_far, make_writable, write_result
from benchmarks.lib.speeds import Row, findings, network_text, rows_of
from launch.machine.gpus import devices
from pipeline.config.sections import config_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.lib.contenders import Lap, Task
    from benchmarks.lib.report import Result

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


def measure(network: str, options: Options, name: str) -> dict[str, Any]:
    """All rounds of a network; what was found so far is kept after each."""
    rows = [Row(contender) for contender in contenders(options)]
    config = config_tree(options.task(network, rows[0].contender).config())
    result = {
        **provenance_now(), "device": options.device, "threads": options.threads,
        "batch_size": BATCH,
    }  # fmt: skip
    for number in range(1, options.rounds + 1):
        for row in rows:
            found = lap(options.task(network, row.contender), row, options.disk)
            row.laps.append(found)
            failed, speed = found.get("failed"), found.get("images_per_s", 0)
            said = f"failed: {failed}" if failed else f"{speed:9,.0f} images/s"
            turn = f"{network} {number}/{options.rounds}"
            print(f"{turn}  {row.contender.name:28} {said}", flush=True)
        kept = [row.tree() for row in rows]
        result["networks"] = [{"network": network, "config": config, "contenders": kept}]
        keep_so_far(name, result)
    return result


def all_findings(result: Result) -> list[Finding]:
    """What `benchmarks.lib.speeds` finds in a kept result."""
    (tree,) = result["networks"]
    return findings(tree["network"], result["device"], rows_of(tree["contenders"]))


REPORT = Report(
    "Throughput",
    "Images/s are medians of the rounds; a ratio is the median of the quotients within rounds. A "
    "pipeline and 1F1B count with the numbers of stages and micro-batches that are best.",
    all_findings,
    lambda result: network_text(result["networks"][0]),
)


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
    type=SECONDS,
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
@with_usage_errors
def main(
    network: tuple[str, ...], precision: tuple[str, ...], losses: tuple[str, ...],
    stages: tuple[int, ...], rounds: int, seconds: float, gpus: str | None, threads: int,
    changes: tuple[str, ...], disk: Path,
) -> None:  # fmt: skip
    """Measure, print and keep benchmarks/results/throughput_NETWORK-….json, on GPUs
    throughput_NETWORK_cuda-….json; the runs lie in DISK meanwhile."""
    networks = network or DEFAULTS[devices(gpus)[0].partition(":")[0]]
    options = Options(
        networks, precision, losses, stages, rounds, seconds, gpus, threads, changes, disk
    )
    check(options)
    for folder in (RESULTS, disk):
        make_writable(folder)
    if left_out := set(stages) - {1, *options.rival_stages}:
        print(f"left out: 1F1B in {sorted(left_out)} stages, which needs as many GPUs", flush=True)
    for one in networks:
        name = f"throughput_{one}" + "_cuda" * (options.device == "cuda")
        result = measure(one, options, name)
        REPORT.show(result, write_result(name, result))


if __name__ == "__main__":
    main()
