"""Measured against predicted speed, by stages and devices: does the closed form tell the truth?

    python -m benchmarks.scaling            # on the CPU: MLP and VGG8B x 0.25, 1 to 4 stages
    python -m benchmarks.scaling --network vgg11b_3x --gpus 0 --gpus 0-1 --gpus 0-3

Each round trains with each number of stages on each set of devices, and measures what the blocks
cost before and after: a prediction is the mean of those from either, since other work on the
machine slows now the one, now the other. Medians over rounds.
"""

from __future__ import annotations

import json
import os
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from io import StringIO
from itertools import product
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import click

from benchmarks.lib.command_line import counts_of, provenance_now, with_usage_errors
from benchmarks.lib.contenders import NEVER
from benchmarks.lib.report import Finding, Report
from benchmarks.lib.result_files import RESULTS, keep_so_far, make_writable, write_result
from launch.command import status_of
from launch.display.format import markdown
from launch.engines.interrupts import INTERRUPTED
from launch.job import Options
from launch.launcher import launch
from launch.plan.checks import make_job
from launch.run_job import engine_for
from launch.trial_run import trial_run
from pipeline.errors import ConfigError
from pipeline.run.metrics import METRICS_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.lib.report import Result

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


WITHIN = 0.10
"""Asked of the prediction."""


class Division(NamedTuple):
    """So many stages on these devices, as `--gpus` names them."""

    stages: int
    gpus: str = "cpu"

    @property
    def name(self) -> str:
        """A label: `2 stages on GPUs 0-1`."""
        where = "the CPU" if self.gpus == "cpu" else f"GPUs {self.gpus}"
        return f"{self.stages} {'stage' if self.stages == 1 else 'stages'} on {where}"


@dataclass(frozen=True)
class Round:
    """Images per second of one network, divided in one way, in one round."""

    predicted: float
    measured: float

    @property
    def off_by(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.measured - 1


Found: TypeAlias = dict[Division, Round]
"""In one round."""


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
    """Images/s, from costs measured in this round."""
    job = make_job(options)
    assert job.known_speed, "the costs have been measured"
    found = job.known_speed.timing.prospect(job.plan, job.config.runtime.max_in_flight)
    return found.images_per_s


def measure_costs(options: Options) -> None:
    """Of the blocks, and of so many stages beside each other."""
    with engine_for(single=False) as engine:
        trial = trial_run(make_job(replace(options, measure=True)), engine)
    if trial.not_kept:
        raise ConfigError(trial.not_kept)


def measured(options: Options) -> float:
    """Images/s that a run reaches, the median of its later epochs."""
    assert options.run_dir is not None, "a new one for each run"
    with redirect_stderr(StringIO()) as said:  # how to resume a run whose folder goes at once
        status = status_of(lambda: launch(options))
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
            most = max(other.stages for other in divisions if other.gpus == one.gpus)
            if one.gpus not in {before.gpus for before in divisions[:number]}:
                measure_costs(replace(options, stages=most))
            before = predicted(options)
            run_dir = Path(folder) / f"run-{number}"
            speed = measured(replace(options, run_dir=run_dir, view="quiet"))
            measure_costs(replace(options, stages=most))
            after = predicted(options)
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
    return (
        f"{network:6} {one.name}: predicted {found.predicted:8.0f}, measured "
        f"{found.measured:8.0f} images/s ({found.off_by:+.1%})"
    )


def kept_rows(rounds: Sequence[Found]) -> list[dict[str, Any]]:
    """Of each division all rounds, as plain JSON values."""
    return [{**one._asdict(), "rounds": [asdict(found[one]) for found in rounds]}
            for one in rounds[0]]  # fmt: skip


def rows_in(result: Result) -> list[tuple[str, Division, list[Round]]]:
    """What a kept result holds. The first ones were on the CPU and don't say it."""
    return [
        (network, Division(row["stages"], row.get("gpus", "cpu")),
         [Round(one["predicted"], one["measured"]) for one in row["rounds"]])
        for network in NETWORKS
        for row in result.get(network, ())
    ]  # fmt: skip


def findings(result: Result) -> list[Finding]:
    """How far predictions are off, by network and division."""
    told = []
    for network, division, rounds in rows_in(result):
        off = median(one.off_by for one in rounds)
        what = f"{network}, {division.name}, predicted / measured"
        told.append(Finding(what, f"{off:+.1%}", f"±{WITHIN:.0%}", abs(off) <= WITHIN))
    return told


def table(result: Result) -> str:
    """Images/s predicted and measured, by network, devices and stages."""
    columns = ["network", "devices", "stages", "predicted", "measured", "off by", "single rounds"]
    rows = []
    for network, (stages, gpus), rounds in rows_in(result):
        predicted = median(one.predicted for one in rounds)
        measured = median(one.measured for one in rounds)
        errors = [one.off_by for one in rounds]
        rows.append([
            network, gpus, str(stages), f"{predicted:,.0f}", f"{measured:,.0f}",
            f"{median(errors):+.1%}", f"{min(errors):+.1%} to {max(errors):+.1%}",
        ])  # fmt: skip
    return markdown(columns, rows, texts={"network", "devices"})


REPORT = Report(
    "Scaling",
    "Images/s that `pipeline-launch --dry-run --measure` predicts, and what a run reaches: medians "
    "over the rounds, each by itself; what predictions are off by is the median of the rounds' "
    "quotients.",
    findings,
    table,
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
@with_usage_errors
def main(
    networks: tuple[str, ...],
    stages: tuple[int, ...],
    specs: tuple[str, ...],
    overrides: tuple[str, ...],
    rounds: int,
    images: int | None,
) -> None:
    """Compare predicted with measured images/s; keep benchmarks/results/scaling-….json."""
    tasks = [Task(one, images or IMAGES[one], overrides) for one in networks or ON_A_CPU]
    divisions = [Division(count, spec) for spec in specs for count in stages]
    check(tasks, divisions)
    make_writable(RESULTS)
    name = "scaling" if set(specs) == {"cpu"} else "scaling_cuda"
    result = provenance_now()
    for task in tasks:
        found: list[Found] = []
        for _ in range(rounds):
            found.append(one_round(task, divisions))
            result[task.network] = kept_rows(found)
            keep_so_far(name, result)
    REPORT.show(result, write_result(name, result))


if __name__ == "__main__":
    main()
