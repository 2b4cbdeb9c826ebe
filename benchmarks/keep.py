"""Keep what a finished run measured: python -m benchmarks.keep RUN_DIR NAME

Writes results/NAME-DATE-COMMIT.json: where it was measured, the resolved config, every epoch's
line. Run it at the commit that trained.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click

from benchmarks.lib.command_line import told_in_a_line
from benchmarks.lib.result_files import write_result
from launch.machine.provenance import provenance
from launch.paper.results import all_epochs
from pipeline.config.config_file import load_config
from pipeline.config.sections import config_tree
from pipeline.config.yaml_file import load_tree
from pipeline.errors import ConfigError
from pipeline.run.metrics import METRICS_FILE


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("name")
@click.option("--command", required=True, help="The command line that trained.")
@told_in_a_line
def main(run_dir: Path, name: str, command: str) -> None:
    """Keep the metrics of RUN_DIR as benchmarks/results/NAME-….json."""
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ConfigError(f"NAME {shlex.quote(name)}: expected a plain word, as mnist_mlp_pred")
    epochs = epochs_of(run_dir)
    config = load_config(run_dir / "config.yaml")
    check_finished(run_dir, epochs[-1]["epoch"], all_epochs(config))
    result = {
        **provenance(command),
        "config": config_tree(config),
        "stages": stages_of(run_dir),
        "test_error_pct": tested_error(run_dir, epochs[-1]),
        "epochs": epochs,
    }
    print(f"test error {result['test_error_pct']:.2f} %, kept in {write_result(name, result)}")


def epochs_of(run_dir: Path) -> list[dict[str, Any]]:
    """A line for each.

    Raises:
        ConfigError: where there are none, or one is damaged.
    """
    path = run_dir / METRICS_FILE
    lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    if not lines:
        raise ConfigError(f"{path}: a run keeps a line there for each epoch; name its folder")
    return [_epoch(line, run_dir, number) for number, line in enumerate(lines, start=1)]


def _epoch(line: str, run_dir: Path, number: int) -> dict[str, Any]:
    try:
        tree = json.loads(line)
        if tree["event"] == "epoch" and isinstance(tree["epoch"], int):
            return dict(tree)
    except (ValueError, TypeError, KeyError):  # a line that a crash left half written
        pass
    raise ConfigError(
        f"{run_dir / METRICS_FILE}:{number}: every line tells of an epoch, this one is damaged; "
        f"{_to_go_on(run_dir)}"
    )


def check_finished(run_dir: Path, trained: int, planned: int) -> None:
    """Of a run, its epochs.

    Raises:
        ConfigError: where some are left.
    """
    if trained < planned:
        raise ConfigError(
            f"{run_dir / METRICS_FILE}: ends with epoch {trained} of {planned}, and only a "
            f"finished run is kept; {_to_go_on(run_dir)}"
        )


def tested_error(run_dir: Path, last: dict[str, Any]) -> float:
    """In percent, after the last epoch.

    Raises:
        ConfigError: where there was no test.
    """
    try:
        return float(last["test"]["error_pct"])
    except (KeyError, TypeError):
        raise ConfigError(
            f"{run_dir / METRICS_FILE}: the last epoch was not tested, and the test error is what "
            "is kept; train with runtime.eval_every_epochs of at least 1"
        ) from None


def stages_of(run_dir: Path) -> list[dict[str, Any]]:
    """Of the run's plan.

    Raises:
        ConfigError: where it can't be read.
    """
    path = run_dir / "plan.json"
    tree = load_tree(path) if path.exists() else None
    if not (isinstance(tree, dict) and isinstance(tree.get("stages"), list)):
        raise ConfigError(
            f"{path}: a run keeps its stages there; {_resume(run_dir)}, with the options that it "
            "trained with, writes them again"
        )
    return list(tree["stages"])


def _to_go_on(run_dir: Path) -> str:
    """A checkpoint may be newer than a line that was lost."""
    return (
        f"go on with it: {_resume(run_dir)}; where that finds nothing left to train, move the "
        "newest checkpoint away before"
    )


def _resume(run_dir: Path) -> str:
    return f"pipeline-launch --resume --run-dir {shlex.quote(str(run_dir))}"


if __name__ == "__main__":
    main()
