"""How fast processes train that share batches out: python -m benchmarks.data_parallel

Local learning by `--data-parallel N`, and global backprop by DistributedDataParallel (`rivals/
ddp.py`), in as many processes: the same layers, batches, augmentation and shares. In turn, so that
what the machine does falls on both; a ratio is that within a round. Beside the speed stands the
test error after the same epochs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from benchmarks.lib.command_line import provenance_now, with_usage_errors
from benchmarks.lib.contenders import BATCH, NEVER, finished
from benchmarks.lib.report import Finding, Report, in_turn, ratio_findings, speeds
from benchmarks.lib.result_files import RESULTS, keep_so_far, make_writable, write_result
from launch.display.format import markdown
from pipeline.errors import ConfigError
from pipeline.run.metrics import METRICS_FILE, tested

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.lib.contenders import Lap
    from benchmarks.lib.report import Result

AT_LEAST = 1.3
OURS, RIVAL = "--data-parallel, pred", "DistributedDataParallel, glob"
_CONFIGS = Path(__file__).parents[1] / "configs"


class Task(NamedTuple):
    """A network's file in configs/, what of that is changed, and how many images an epoch has."""

    config: str
    changes: tuple[str, ...]
    images: int


TASKS = {
    "mlp": Task("mnist_mlp", (), 32_000),
    "vgg8b_quarter": Task("vgg8b", ("model.feat_mult=0.25",), 6_400),
}


def lap(task: Task, way: str, processes: int, epochs: int, settings: Sequence[str]) -> Lap:
    """Images/s of all epochs but the first, and the test error; or why it failed."""
    changes = (
        f"loss.name={'pred' if way == OURS else 'glob'}", f"data.batch_size={BATCH}",
        f"data.train_limit={task.images}", "data.test_limit=5000", f"schedule.epochs={epochs}",
        f"runtime.eval_every_epochs={epochs}", f"runtime.checkpoint_every_steps={NEVER}",
        "schedule.milestones=[]", *task.changes, *settings,
    )  # fmt: skip
    words = [word for change in changes for word in ("--set", change)]
    config = str(_CONFIGS / f"{task.config}.yaml")
    if way == RIVAL:
        asked = ["benchmarks.rivals.ddp", *words, "--processes", str(processes), config]
        answer = finished(asked, 60.0)
        return answer if isinstance(answer, dict) else dict(json.loads(answer))
    with TemporaryDirectory(prefix="data-parallel-") as folder:
        run = Path(folder) / "run"
        asked = ["launch.cli", *words, "--data-parallel", str(processes)]
        asked += ["--gpus", "cpu", "--view", "quiet"]
        answer = finished([*asked, "--run-dir", str(run), config], 60.0)
        return answer if isinstance(answer, dict) else _of_run(run)


def _of_run(run: Path) -> Lap:
    lines = list(map(json.loads, (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()))
    seconds = [line["seconds"] for line in lines[1:]]
    images = sum(line["images_per_s"] * line["seconds"] for line in lines[1:])
    return {
        "images_per_s": round(images / sum(seconds), 1),
        "seconds": round(sum(seconds), 3),
        "epochs_images_per_s": [line["images_per_s"] for line in lines[1:]],
        "error_pct": tested(lines[-1])[1]["error_pct"],
        "busy": [stage["busy"] for stage in lines[-1]["stages"]],
    }


def findings(result: Result) -> list[Finding]:
    """Ours beside the rival, by network."""
    return ratio_findings(result, OURS, RIVAL, AT_LEAST)


def table(result: Result) -> str:
    """Images/s and test errors of all, medians."""
    rows = []
    for network, ways in result["networks"].items():
        for way, laps in ways.items():
            done = [one for one in laps if "failed" not in one]
            failed = [one["failed"] for one in laps if "failed" in one]
            cells = [f"failed: {failed[0]}", ""] if not done else [
                f"{median(speeds(done)):,.0f}", f"{median(one['error_pct'] for one in done):.2f} %",
            ]  # fmt: skip
            rows.append([network, way, *cells])
    headings = ["network", "way", "images/s", f"test error after {result['epochs']} epochs"]
    return markdown(headings, rows, headings[:2])


REPORT = Report(
    "Data-parallel",
    "Images/s of processes that share batches of 128 out, fp32, one thread each: medians of the "
    "rounds, and ratios within them. Both are fed real images; test errors are of 5,000.",
    findings,
    table,
)


@click.command()
@click.option("--network", multiple=True, type=click.Choice(list(TASKS)), help="[default: all]")
@click.option("--processes", default=2, show_default=True, type=click.IntRange(2))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(2))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As data.root=DIR.")
@with_usage_errors
def main(
    network: tuple[str, ...], processes: int, rounds: int, epochs: int, settings: tuple[str, ...]
) -> None:
    """Measure, print and keep benchmarks/results/data_parallel-….json."""
    for one in settings:  # a rival has no bf16, nor other optimizers or losses
        if not one.startswith("data."):
            raise ConfigError(f"--set {one}: both are trained alike: set keys of data alone")
    make_writable(RESULTS)
    names = network or tuple(TASKS)
    networks: dict[str, dict[str, list[Lap]]] = {name: {OURS: [], RIVAL: []} for name in names}
    result: dict[str, Any] = {
        **provenance_now(), "batch_size": BATCH, "processes": processes, "epochs": epochs,
        "load_average": [], "networks": networks,
    }  # fmt: skip
    for number in range(1, rounds + 1):
        result["load_average"].append(round(os.getloadavg()[0], 2))
        for name, ways in networks.items():
            for way, laps in in_turn(ways, number):
                found = lap(TASKS[name], way, processes, epochs, settings)
                laps.append(found)
                failed, speed = found.get("failed"), found.get("images_per_s", 0)
                said = f"failed: {failed}" if failed else (
                    f"{speed:9,.0f} images/s  {found['error_pct']:.2f} % errors"
                )  # fmt: skip
                print(f"{name} {number}/{rounds}  {way:30} {said}", flush=True)
        keep_so_far("data_parallel", result)
    REPORT.show(result, write_result("data_parallel", result))


if __name__ == "__main__":
    main()
