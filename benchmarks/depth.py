"""What each depth of a network gets right: python -m benchmarks.depth

Each network is trained once, in one process, then asked on its own test set: the error of every
block's classifier, of the ensemble of all blocks up to it, and of exits, where an example leaves at
the first block that gives its most likely class a probability of at least P.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from benchmarks.lib.command_line import provenance_now, with_usage_errors
from benchmarks.lib.report import Finding, Report
from benchmarks.lib.result_files import RESULTS, make_writable, write_result
from launch.command import DONE
from launch.display.format import NOTHING, markdown
from launch.job import Options
from launch.launcher import launch
from launch.machine.provenance import read_starts
from launch.read_run import own_examples, read_run
from launch.run_directory import folder_named, holds_run
from pipeline.config.sections import config_tree
from pipeline.errors import ConfigError
from pipeline.trained.evaluation import evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.lib.report import Result
    from launch.read_run import TrainedRun

THRESHOLDS = (0.5, 0.9, 0.99)
"""Probabilities at which examples leave."""
_OF_A_START = ("command", "commit", "uncommitted_changes")
"""What is kept of each command that trained a part of a run."""
_CONFIGS = Path(__file__).parents[1] / "configs"


class Network(NamedTuple):
    """What people call it, its file in configs/, what of that is changed."""

    title: str
    config: str
    changes: tuple[str, ...] = ()


NETWORKS = {
    "digits": Network("small VGG, digits", "digits"),
    "mnist_mlp": Network(
        "MLP 3 × 1024, MNIST", "mnist_mlp",
        ("schedule.epochs=10", "schedule.milestones=[5,7,8,9]"),
    ),
    "cifar10_vgg8b_quarter": Network(
        "VGG8B × 0.25, CIFAR-10", "vgg8b",
        (
            "model.feat_mult=0.25", "model.dropout=0.05", "loss.name=pred", "schedule.epochs=5",
            "schedule.milestones=[3,4]",
        ),
    ),
}  # fmt: skip
"""Trainings of minutes, the last of half an hour: far from what longer ones reach."""


def trained(network: Network, run_dir: Path, changes: Sequence[str], command: str) -> TrainedRun:
    """Train a network in its folder, or go on there; there is nothing to do where it is finished.

    Raises:
        ConfigError: where it was not trained to its end.
    """
    options = Options(
        _CONFIGS / f"{network.config}.yaml",
        single=True,
        gpus="cpu",
        overrides=(*network.changes, *changes),
        run_dir=run_dir,
        resume=holds_run(run_dir),
        view="plain",
        command=command,
    )
    if launch(options) != DONE:
        raise ConfigError(f"{run_dir}: is not trained to its end; the same command goes on there")
    return read_run(run_dir, "last")


def asked(network: Network, run: TrainedRun) -> dict[str, Any]:
    """What a trained network gets right, by depth."""
    found = {
        at: evaluate(run.network, own_examples(run)[1], by_depth=True, exit_at=at)
        for at in THRESHOLDS
    }
    whole = found[THRESHOLDS[0]]
    return {
        "title": network.title,
        "config": config_tree(run.network.config),
        "examples": whole.examples,
        "error_pct": whole.error_pct,
        "depths": [
            {
                "block": depth.block,
                "name": run.network.specs[depth.block].name,
                "error_pct": depth.error_pct,
                "ensemble_error_pct": depth.ensemble_error_pct,
            }
            for depth in whole.depths
        ],
        "exits": [
            {
                "at": at,
                "error_pct": one.exits_error_pct,
                "leave_pct": [depth.exit_pct for depth in one.depths],
                "their_error_pct": [depth.exit_error_pct for depth in one.depths],
            }
            for at, one in found.items()
        ],
    }


def findings(result: Result) -> list[Finding]:
    """The last block, the best one, the best ensemble, and what leaves early."""
    depths, last = result["depths"], len(result["depths"]) - 1
    found = [Finding("the last block", f"{result['error_pct']:.2f} %")]
    kinds = {"error_pct": "block", "ensemble_error_pct": "ensemble, of all up to block"}
    for key, what in kinds.items():
        best = min(depths, key=lambda depth: depth[key])
        text = f"{best['block']} of {last}: {best[key]:.2f} %"
        found.append(Finding(f"the best {what}", text))
    return found + [
        Finding(
            f"leave before the last block, at {exits['at']:g}",
            f"{100 - exits['leave_pct'][-1]:.1f} %; error of all {exits['error_pct']:.2f} %",
        )
        for exits in result["exits"]
    ]


def table(result: Result) -> str:
    """What was trained; a row for each block that predicts."""
    config, exits = result["config"], result["exits"]
    at = [f"{each['at']:g}" for each in exits]
    columns = ["block", "error %", "ensemble error %"]
    columns += [text for p in at for text in (f"leave at {p}, %", f"their error % ({p})")]
    rows = [
        [
            f"{depth['block']} {depth['name']}",
            f"{depth['error_pct']:.2f}",
            f"{depth['ensemble_error_pct']:.2f}",
            *_exits(exits, row),
        ]
        for row, depth in enumerate(result["depths"])
    ]
    every = [cell for each in exits for cell in ("100.0", f"{each['error_pct']:.2f}")]
    rows.append(["all exits", "", "", *every])
    epochs, seed = config["schedule"]["epochs"], config["runtime"]["seed"]
    trained_by = "".join(
        f", by `{start['command']}` at commit {start['commit']}{'+' * start['uncommitted_changes']}"
        for start in result["starts"]
    )
    return (
        f"**{result['title']}**, loss `{config['loss']['name']}`: one run of {epochs} epochs, seed "
        f"{seed}{trained_by}; {result['examples']:,} test images\n\n"
        f"{markdown(columns, rows, ['block'])}"
    )


def _exits(exits: Sequence[Result], row: int) -> list[str]:
    """The cells of a block: how many leave there, and how many of these are wrong."""
    cells = []
    for each in exits:
        wrong = each["their_error_pct"][row]
        cells += [f"{each['leave_pct'][row]:.1f}", NOTHING if wrong is None else f"{wrong:.2f}"]
    return cells


REPORT = Report(
    "By depth",
    "Errors on the test set after **short trainings, one run each**: of each block's own "
    "classifier, and of the mean of the log-probabilities of all blocks up to it (ensemble). "
    "Exits: an example leaves at the first block that gives its most likely class a probability of "
    "at least so much; the last takes the rest. Probabilities are as trained, not calibrated.",
    findings,
    table,
)


@click.command()
@click.option(
    "--network", "names", default=",".join(NETWORKS), show_default=True, help="Which, in turn."
)
@click.option(
    "--runs", default="runs/depth", show_default=True, help="Where runs are, or are trained."
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="As pipeline-launch.")
@with_usage_errors
def main(names: str, runs: str, changes: tuple[str, ...]) -> None:
    """Train, ask, print and keep benchmarks/results/depth_NETWORK-….json.

    A run that is there is not trained again; its provenance.json, where there is one, says by which
    command and at which commit it was.
    """
    if odd := [name for name in names.split(",") if name not in NETWORKS]:
        raise ConfigError(f"--network {odd[0]}: there are {', '.join(NETWORKS)}")
    make_writable(RESULTS)
    folder = folder_named("--runs", runs)
    for name in names.split(","):
        network, run_dir = NETWORKS[name], folder / name
        now = provenance_now()
        run = trained(network, run_dir, changes, now["command"])
        starts = [{key: start[key] for key in _OF_A_START} for start in read_starts(run_dir)]
        result = {**now, **asked(network, run), "starts": starts}
        REPORT.show(result, write_result(f"depth_{name}", result))


if __name__ == "__main__":
    main()
