"""Measured against predicted speed, by stages and devices: does the simulation tell the truth?

    python -m benchmarks.scaling            # on the CPU: MLP and VGG8B x 0.25, 1 to 4 stages
    python -m benchmarks.scaling --network vgg11b_3x --gpus 0 --gpus 0-1 --gpus 0-3 --name mine

Each round trains with each number of stages on each set of devices, and measures what the blocks
cost before and after: a prediction is the mean of those from either, since other work on the
machine slows now the one, now the other. Medians over rounds.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from itertools import product
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from benchmarks.lib.contenders import NEVER
from benchmarks.lib.machine import (
    check_can_be_kept,
    keep_so_far,
    read_result,
    told_in_a_line,
    write_result,
)
from benchmarks.lib.scaling_report import Division, Round, division_of, report, rows_in, summary
from benchmarks.lib.tables import counts_of, no_table
from launch.engines.interrupts import INTERRUPTED
from launch.job import Options
from launch.launcher import launch
from launch.machine.provenance import provenance
from launch.plan.checks import make_job
from pipeline.run.metrics import METRICS_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.lib.machine import Extent
    from benchmarks.lib.scaling_report import Found

EPOCHS = 3
"""The first one warms up, the median of the others counts."""
NETWORKS = {
    "mlp": """\
model: {name: mlp, hidden_layers: 4, hidden: 1024, dropout: 0.1}
loss: {name: predsim}
data: {name: synthetic, channels: 1, size: 28, classes: 10, train_images: IMAGES, test_images: 128}
""",
    "vgg8b": """\
model: {name: vgg8b, feat_mult: 0.25, dropout: 0.05}
loss: {name: predsim, dim_in_decoder: 2048}
data: {name: synthetic, channels: 3, size: 32, classes: 10, train_images: IMAGES, test_images: 128}
""",
    "vgg11b_3x": """\
model: {name: vgg11b, feat_mult: 3, dropout: 0.3}
loss: {name: predsim, dim_in_decoder: 4096}
data: {name: synthetic, channels: 3, size: 32, classes: 10, train_images: IMAGES, test_images: 128}
""",
}
ON_A_CPU = ("mlp", "vgg8b")
"""The last one is for GPUs: a CPU takes minutes for a batch."""
IMAGES = {"mlp": 12_800, "vgg8b": 1_920, "vgg11b_3x": 12_800}
"""Of an epoch: some seconds of work, where these networks are meant to be trained."""
_OWN = ", ".join(f"{network} {images:,}" for network, images in IMAGES.items())
COMMON = f"""\
schedule: {{epochs: {EPOCHS}, milestones: []}}
runtime: {{eval_every_epochs: 0, checkpoint_every_steps: {NEVER}}}
"""
"""Without snapshots, which a prediction knows nothing of."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is divided: a network of `NETWORKS` that trains on so many images an epoch.
    `overrides`: `--set` each."""

    network: str
    images: int
    overrides: tuple[str, ...] = ()

    def options(self, one: Division, folder: Path) -> Options:
        """To train it so divided; its config is written there."""
        config = folder / f"{self.network}.yaml"
        config.write_text(NETWORKS[self.network].replace("IMAGES", str(self.images)) + COMMON)
        return Options(config, stages=one.stages, gpus=one.gpus, overrides=self.overrides)


def predicted(options: Options) -> float:
    """Images/s that the simulation says, from costs measured now or in this round."""
    job = make_job(options)
    assert job.foresight, "the costs have been measured"
    found = job.foresight.timing.prospect(job.plan, job.config.runtime.max_in_flight)
    return found.images_per_s


def measured(options: Options) -> float:
    """Images/s that a run reaches, the median of its later epochs."""
    assert options.run_dir is not None, "a new one for each run"
    with redirect_stderr(StringIO()) as said:  # how to resume a run whose folder goes at once
        status = launch(options)
    if status == INTERRUPTED:
        raise click.Abort
    if status:
        reason = said.getvalue().strip().partition("\n")[0]
        raise click.ClickException(f"a run with {options.stages} stages failed: {reason}")
    lines = (options.run_dir / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    return float(median(json.loads(line)["images_per_s"] for line in lines[1:]))


def one_round(task: Task, divisions: Sequence[Division]) -> Found:
    """Measure costs, train, measure again, train with the next division and so on."""
    with TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        found: Found = {}
        for number, one in enumerate(divisions):
            options = task.options(one, Path(folder))
            is_new = one.gpus not in {before.gpus for before in divisions[:number]}
            before = predicted(replace(options, measure=is_new))
            run_dir = Path(folder) / f"run-{number}"
            speed = measured(replace(options, run_dir=run_dir, view="quiet"))
            after = predicted(replace(options, measure=True))
            found[one] = Round(mean((before, after)), speed)
            print(_line(task.network, one, found[one]), flush=True)
        return found


def check(tasks: Sequence[Task], divisions: Sequence[Division]) -> None:
    """Asked before anything is measured.

    Raises:
        ConfigError: where a network can't be divided in one of these ways.
    """
    with TemporaryDirectory() as folder:
        for task, one in product(tasks, divisions):
            make_job(task.options(one, Path(folder)))


def _line(network: str, one: Division, found: Round) -> str:
    error = 100 * (found.predicted / found.measured - 1)
    return (
        f"{network:6} {one.name}: predicted {found.predicted:8.0f}, measured "
        f"{found.measured:8.0f} images/s ({error:+.1f} %)"
    )


@click.command()
@click.option("--network", "networks", multiple=True, type=click.Choice(list(NETWORKS)))
@click.option("--stages", default="1,2,3,4", show_default=True, callback=counts_of, metavar="N,M")
@click.option(
    "--gpus",
    "specs",
    multiple=True,
    default=("cpu",),
    show_default=True,
    metavar="SPEC",
    help="Devices, as in pipeline-launch; repeat it for several sets of them.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Of the config.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--images", type=click.IntRange(128), help=f"Of an epoch.  [default: {_OWN}]")
@click.option("--name", default="scaling", show_default=True, help="Of the file in results/.")
@click.option("--report", "only_report", is_flag=True, help="Write the table again from the file.")
@no_table
@told_in_a_line
def main(
    networks: tuple[str, ...],
    stages: tuple[int, ...],
    specs: tuple[str, ...],
    overrides: tuple[str, ...],
    rounds: int,
    images: int | None,
    name: str,
    only_report: bool,
    no_table: bool,
) -> None:
    """Compare predicted with measured images/s."""
    if not only_report:
        chosen = networks or ON_A_CPU
        tasks = [Task(network, images or IMAGES[network], overrides) for network in chosen]
        divisions = [Division(count, spec) for spec in specs for count in stages]
        check(tasks, divisions)
        extent = {_case(task.network, one): rounds for task, one in product(tasks, divisions)}
        check_can_be_kept(name, "scaling", extent, _extent_of_kept, table=not no_table)
        print(f"kept in {write_result(name, measure(tasks, divisions, rounds, name))}")
    report(read_result(name, "scaling"), NETWORKS, name, table_too=not no_table)


def _extent_of_kept(result: Mapping[str, Any]) -> Extent:
    return {
        _case(network, division_of(row)): len(row["rounds"])
        for network, rows in rows_in(result, NETWORKS).items()
        for row in rows
    }


def _case(network: str, one: Division) -> str:
    return f"{network}, {one.name}"


def measure(
    tasks: Sequence[Task], divisions: Sequence[Division], rounds: int, name: str
) -> dict[str, Any]:
    """Every network, round by round; what was found so far is kept after each."""
    result = provenance("python -m benchmarks.scaling " + " ".join(sys.argv[1:]))
    for task in tasks:
        found: list[Found] = []
        for _ in range(rounds):
            found.append(one_round(task, divisions))
            result[task.network] = summary(found)
            keep_so_far(name, result)
    return result


if __name__ == "__main__":
    main()
