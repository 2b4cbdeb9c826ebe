"""What Ray costs where it places the stages: python -m benchmarks.engines

The same pipelines by `--engine local` and by `--engine ray`, on this machine, over the same
transport (tcp), in turn; a ratio is that within a round. Ray is started for each run, and its
processes have the priority of others (`RAY_worker_niceness=0`); those of a cluster that is there,
`--ray-address`, have what it was started with, which is nice 15 unless told otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from benchmarks.lib.command_line import provenance_now, with_usage_errors
from benchmarks.lib.contenders import NEVER, finished, timed_epochs
from benchmarks.lib.report import Finding, Report, ratio_findings, speeds
from benchmarks.lib.result_files import RESULTS, keep_so_far, make_writable, write_result
from launch.display.format import markdown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.lib.contenders import Lap
    from benchmarks.lib.report import Result

AT_LEAST = 0.95
WAYS = ("local", "ray")
_CONFIGS = Path(__file__).parents[1] / "configs"


class Task(NamedTuple):
    """A network's file in configs/, what of that is changed, images of an epoch, epochs; the first
    is not counted."""

    config: str
    changes: tuple[str, ...]
    images: int
    epochs: int


TASKS = {
    "digits": Task("digits", (), 1408, 40),
    "mnist_mlp": Task("mnist_mlp", ("loss.name=pred",), 12_800, 6),
}


def lap(task: Task, way: str, stages: int, address: str | None, settings: Sequence[str]) -> Lap:
    """Images/s of all epochs but the first; or why it failed."""
    changes = (
        *task.changes, f"data.train_limit={task.images}", f"schedule.epochs={task.epochs}",
        "schedule.milestones=[]", f"runtime.eval_every_epochs={task.epochs}",
        f"runtime.checkpoint_every_steps={NEVER}", "runtime.transport=tcp", *settings,
    )  # fmt: skip
    words = [word for change in changes for word in ("--set", change)]
    words += ["--engine", way, "--stages", str(stages), "--gpus", "cpu", "--view", "quiet"]
    if way == "ray" and address is not None:
        words += ["--ray-address", address]
    with TemporaryDirectory(prefix="engines-") as folder:
        run = Path(folder) / "run"
        config = str(_CONFIGS / f"{task.config}.yaml")
        answer = finished(["launch.cli", *words, "--run-dir", str(run), config], 60.0)
        return answer if isinstance(answer, dict) else timed_epochs(run, task.images)


def findings(result: Result) -> list[Finding]:
    """By network."""
    return ratio_findings(result, "ray", "local", AT_LEAST, "--engine {}")


def table(result: Result) -> str:
    """Images/s of all, medians."""
    rows = []
    for network, ways in result["networks"].items():
        for way, laps in ways.items():
            done = speeds(laps)
            failed = [one["failed"] for one in laps if "failed" in one]
            said = f"{median(done):,.0f}" if done else f"failed: {failed[0]}"
            rows.append([network, f"--engine {way}", said])
    headings = ["network", "way", "images/s"]
    return markdown(headings, rows, headings[:2])


REPORT = Report(
    "Engines",
    "Images/s of a pipeline whose processes Ray has started, beside one without Ray, both over tcp "
    "on one machine, fp32, one thread each: medians of the rounds, and ratios within them.",
    findings,
    table,
)


@click.command()
@click.option("--network", multiple=True, type=click.Choice(list(TASKS)), help="[default: all]")
@click.option("--stages", default=2, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--ray-address", help="Of a cluster that this machine is a node of.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As data.root=DIR.")
@with_usage_errors
def main(
    network: tuple[str, ...],
    stages: int,
    rounds: int,
    ray_address: str | None,
    settings: tuple[str, ...],
) -> None:
    """Measure, print and keep benchmarks/results/engines-….json."""
    make_writable(RESULTS)
    names = network or tuple(TASKS)
    networks: dict[str, dict[str, list[Lap]]] = {name: {way: [] for way in WAYS} for name in names}
    result: dict[str, Any] = {
        **provenance_now(), "stages": stages, "ray_address": ray_address, "load_average": [],
        "networks": networks,
    }  # fmt: skip
    for number in range(1, rounds + 1):
        result["load_average"].append(round(os.getloadavg()[0], 2))
        for name, ways in networks.items():
            # who comes first, too, takes turns
            for way in WAYS if number % 2 else WAYS[::-1]:
                found = lap(TASKS[name], way, stages, ray_address, settings)
                ways[way].append(found)
                failed, speed = found.get("failed"), found.get("images_per_s", 0)
                said = f"failed: {failed}" if failed else f"{speed:9,.0f} images/s"
                print(f"{name} {number}/{rounds}  --engine {way:5} {said}", flush=True)
        keep_so_far("engines", result)
    REPORT.show(result, write_result("engines", result))


if __name__ == "__main__":
    main()
