"""Error, images/s and memory of every rule, and of what a user would pick instead:
python -m benchmarks.frontier

Errors are the referee's (`results/referee`). Speed and memory are measured here, way by way: each
rule in one process and in pipelines; global backprop in one process with one thread and with one a
core, also checkpointed and in parts; DistributedDataParallel; 1F1B. `--draw` draws the pictures
again from what is kept.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from benchmarks.lib.command_line import SECONDS, counts_of, provenance_now, with_usage_errors
from benchmarks.lib.contenders import NEVER, Contender, Task, timed_epochs
from benchmarks.lib.report import Finding, Report
from benchmarks.lib.result_files import (
    RESULTS,
    keep_so_far,
    kept_results,
    make_writable,
    write_result,
)
from benchmarks.lib.watched import watched
from launch.display.format import markdown, size_text
from launch.drawing import (
    HOW_TO_GET_IT,
    can_draw,
    errors_axis,
    new_figure,
    speeds_axis,
    write_svg,
)
from launch.grid.results import mean_and_sd
from launch.referee.referee import check_data
from launch.referee.rows import Rows
from launch.referee.table import read_table
from launch.run_directory import folder_named
from pipeline.config.config_file import config_from, dump_config
from pipeline.config.sections import config_tree
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.lib.report import Result
    from launch.referee.rows import Row

FIGURES = Path(__file__).parent / "figures"
_MICRO_BATCHES = (1, 2)
"""Into how many 1F1B divides a batch."""
_SHARED = ("mlp", "cnn3", "vgg8b_quarter")
"""Networks of the referee that 1F1B knows by the same name."""
_STEPS, _EPOCHS = 40, 4
_START_UP_S = 900.0
_INCHES = (9.0, 6.0)
_BACKPROP, _LOCAL = "tab:blue", "tab:orange"


class Way(NamedTuple):
    """How something is trained: `rule` of the referee's table whose error counts; the `words` of a
    module; `config`: as YAML, with so many `images` an epoch; `is_run`: whether that leaves a run's
    folder, else it prints its speed."""

    label: str
    rule: str
    words: tuple[str, ...]
    config: str = ""
    images: int = 0
    is_run: bool = True

    @property
    def is_local(self) -> bool:
        """Whether it is none of global backprop."""
        return not self.rule.startswith("backprop")


def ways_of(
    network: str,
    rows: Mapping[str, Row],
    stages: Sequence[int],
    cores: int,
    seconds: float,
    data: str | None = None,
) -> Iterator[Way]:
    """All ways to train a network, by the referee's rows of its rules; `data`: the folder of the
    data sets."""
    ours = ("launch.cli", "--view", "quiet", "--gpus", "cpu")
    for rule, row in rows.items():
        threads = sorted({1, cores}) if rule.startswith("backprop") else [1]
        for count in threads:
            label = f"{rule}, {count} thread{'s' * (count > 1)}"
            yield Way(label, rule, (*ours, "--single"), *_timed_config(row, count, data))
        if not rule.startswith("backprop"):
            for count in stages:
                words = (*ours, "--stages", str(count))
                yield Way(f"{rule}, {count} processes", rule, words, *_timed_config(row, 1, data))
    if "backprop" not in rows:
        return
    rival = ("benchmarks.rivals.ddp", "--processes", str(cores))
    config = _timed_config(rows["backprop"], 1, data)
    label = f"DistributedDataParallel, {cores} processes"
    yield Way(label, "backprop", rival, *config, is_run=False)
    for micro in _MICRO_BATCHES if network in _SHARED else ():
        one = Contender("1f1b", "glob", "fp32", cores, micro)
        task = Task(network, one, None, 1, seconds, ("model.dropout=0.0",))
        label = f"1F1B, {cores} processes in {micro}"
        yield Way(label, "backprop", ("benchmarks.rivals.onef1b", task.text()), is_run=False)


def _timed_config(row: Row, threads: int, data: str | None) -> tuple[str, int]:
    """A run's config, for a few steps of the same images; images of an epoch."""
    own = row.config_here(data)
    images = _STEPS * own.data.batch_size
    images = min(images, own.data.train_limit or images)
    changes = {
        "schedule.epochs": _EPOCHS,
        "data.train_limit": images,
        "runtime.threads_per_stage": threads,
        "runtime.eval_every_epochs": 0,
        "runtime.checkpoint_every_steps": NEVER,
    }
    return dump_config(config_from(config_tree(own), row.path, (), changes)), images


def lap(way: Way, seconds: float) -> dict[str, Any]:
    """Images/s and peak memory of one way, or why it failed."""
    with TemporaryDirectory(prefix="frontier-") as folder:
        config, run = Path(folder) / "config.yaml", Path(folder) / "run"
        words = list(way.words)
        if way.is_run:
            words += ["--run-dir", str(run)]
        if way.config:
            config.write_text(way.config, encoding="utf-8")
            words.append(str(config))
        found = watched(words, 10 * seconds + _START_UP_S)
        if found.failed:
            return {"failed": found.failed}
        speed = timed_epochs(run, way.images) if way.is_run else json.loads(found.said)
    return {"images_per_s": speed["images_per_s"], "peak_bytes": found.peak_bytes}


def front(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels of those that no other beats: none is at least as fast with at most the error and the
    memory, and better in one of them."""

    def beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        pairs = [
            (other["images_per_s"], one["images_per_s"]),
            (one["error_pct"], other["error_pct"]),
            (one["peak_bytes"], other["peak_bytes"]),
        ]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    return [one["label"] for one in points if not any(beats(other, one) for other in points)]


def points_of(result: Result) -> list[dict[str, Any]]:
    """Medians of the rounds, for all that has an error and a speed."""
    points = []
    for one in result["ways"]:
        laps = [each for each in one["rounds"] if "images_per_s" in each]
        if laps and one["error_pct"] is not None:
            numbers = {key: median(each[key] for each in laps) for key in laps[0]}
            points.append({**{k: v for k, v in one.items() if k != "rounds"}, **numbers})
    return points


def findings(result: Result) -> list[Finding]:
    """What is on the front; the best local way beside the best of global backprop."""
    points = points_of(result)
    local = [one for one in points if one["is_local"]]
    others = [one for one in points if not one["is_local"]]
    found = [Finding("not beaten in error, images/s and memory", "; ".join(front(points)))]
    for key, what, best in (
        ("images_per_s", "images/s", max),
        ("error_pct", "error, %", min),
        ("peak_bytes", "memory", min),
    ):
        for kind, own in (("local", local), ("backprop", others)):
            if own:
                one = best(own, key=lambda point: point[key])
                number = size_text(one[key]) if key == "peak_bytes" else f"{one[key]:,.4g}"
                found.append(Finding(f"{what}: the best {kind}", f"{number}, {one['label']}"))
    return found


def table(result: Result) -> str:
    """A row for each way, by error; what failed."""
    points = sorted(points_of(result), key=lambda point: point["error_pct"])
    on_front = set(front(points))
    rows = [
        [
            one["label"] + " *" * (one["label"] in on_front),
            f"{one['error_pct']:.2f}",
            f"{one['images_per_s']:,.0f}",
            size_text(one["peak_bytes"]),
        ]
        for one in points
    ]
    text = f"**{result['title']}**\n\n"
    text += markdown(["trained by", "error, %", "images/s", "memory"], rows, ["trained by"])
    failed = [
        f"- {one['label']}: {each['failed']}\n"
        for one in result["ways"]
        for each in one["rounds"][:1]
        if "failed" in each
    ]
    return text + ("\nFailed:\n\n" + "".join(failed) if failed else "")


REPORT = Report(
    "The frontier",
    "Error against images/s and memory, on the CPU. Errors are the referee's, after its short "
    "trainings ([REFEREE.md](REFEREE.md)); that of DistributedDataParallel and 1F1B is global "
    "backprop's, though their batch norms see parts of a batch: they were timed, not trained. "
    "Memory is the peak of the proportional set size of all processes together, PyTorch and images "
    "included. Batches of 1F1B lie ready, those of all others are read and augmented. *: no other "
    "way is at least as good in all three.",
    findings,
    table,
)


def draw(result: Result, path: Path) -> None:
    """Error over images/s, both logarithmic; the area of a point is its memory. Numbers stand for
    the ways, which are listed beside, by error."""
    points = sorted(points_of(result), key=lambda one: (one["error_pct"], -one["images_per_s"]))
    on_front = set(front(points))
    figure = new_figure(_INCHES)
    axes, names = figure.subplots(1, 2, width_ratios=(3, 1))
    most = max(one["peak_bytes"] for one in points)
    for number, one in enumerate(points, 1):
        color = _LOCAL if one["is_local"] else _BACKPROP
        at = one["images_per_s"], one["error_pct"]
        area = 400 * one["peak_bytes"] / most
        is_on_front = one["label"] in on_front
        axes.scatter(*at, s=area, color=color, alpha=0.9 if is_on_front else 0.3, linewidths=0)
        axes.annotate(str(number), at, ha="center", va="center", fontsize=6)
        weight = "bold" if is_on_front else "normal"
        height = 1 - number / (len(points) + 1)
        names.text(0, height, f"{number}  {one['label']}", color=color, weight=weight, fontsize=6)
    names.set_axis_off()
    speeds_axis(axes)
    errors_axis(axes)
    axes.set_xlabel("images/s")
    axes.set_ylabel("test error, %")
    axes.grid(visible=True, linewidth=0.3)
    figure.suptitle(
        f"{result['title']}: global backprop blue, local rules orange; area: memory, the largest "
        f"{size_text(most)}; bold: beaten by none in error, speed and memory",
        fontsize=8,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_svg(figure, path)


def rows_of(network: str, folder: Path) -> dict[str, list[Row]]:
    """The referee's rows of runs that count, by rule."""
    found = Rows(folder).trainings(network)
    if not found:
        raise ConfigError(
            f"--networks {network}: there are no rows of it in {folder}: pipeline-referee "
            f"--networks {network} makes them"
        )
    return found


@click.command()
@click.option(
    "--networks",
    "--network",
    "names",
    default="mlp,cnn3",
    show_default=True,
    help="Of the referee.",
)
@click.option("--stages", callback=counts_of, default="2,3", show_default=True, metavar="N,M")
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=8.0, type=SECONDS, show_default=True, help="Of each rival.")
@click.option("--data", metavar="DIR", help="Folder of the data sets. [default: data]")
@click.option("--rows", default="benchmarks", show_default=True, help="As pipeline-referee --out.")
@click.option("--draw", "only_draw", is_flag=True, help="Draw what is kept; measure nothing.")
@with_usage_errors
def main(
    names: str,
    stages: tuple[int, ...],
    rounds: int,
    seconds: float,
    data: str | None,
    rows: str,
    only_draw: bool,
) -> None:
    """Measure, print, draw, and keep benchmarks/results/frontier_NETWORK-….json."""
    table_ = read_table()
    networks = table_.named_networks(names)
    if not can_draw():
        raise ConfigError(f"pictures need {HOW_TO_GET_IT}")
    if only_draw:
        for kept in kept_results():
            if kept.name in {f"frontier_{network.name}" for network in networks}:
                draw(kept.tree, FIGURES / f"{kept.name}.svg")
        return
    if data is not None:  # ways run in the folder of the clone
        data = str(folder_named("--data", data).resolve())
    make_writable(RESULTS)
    cores = len(os.sched_getaffinity(0))
    asked = {network.name: rows_of(network.name, Path(rows)) for network in networks}
    check_data(row.config_here(data) for own in asked.values() for (row, *_) in own.values())
    for network in networks:
        own = asked[network.name]
        first = {rule: found[0] for rule, found in own.items()}
        errors = {rule: mean_and_sd(row.error_pct for row in found) for rule, found in own.items()}
        ways = list(ways_of(network.name, first, stages, cores, seconds, data))
        kept_ways: list[dict[str, Any]] = [
            {
                "label": way.label, "rule": way.rule, "is_local": way.is_local, "rounds": [],
                "error_pct": errors[way.rule].mean, "sd": errors[way.rule].sd,
                "n": errors[way.rule].n,
            }
            for way in ways
        ]  # fmt: skip
        result = {**provenance_now(), "title": network.title, "ways": kept_ways}
        for number in range(1, rounds + 1):
            for way, one in zip(ways, kept_ways, strict=True):
                found = lap(way, seconds)
                one["rounds"].append(found)
                said = found.get("failed") or (
                    f"{found['images_per_s']:9,.0f} images/s  {size_text(found['peak_bytes'])}"
                )
                print(f"{number}/{rounds}  {way.label:44} {said}", flush=True)
                keep_so_far(f"frontier_{network.name}", result)
        path = write_result(f"frontier_{network.name}", result)
        draw(result, FIGURES / f"frontier_{network.name}.svg")
        REPORT.show(result, path)


if __name__ == "__main__":
    main()
