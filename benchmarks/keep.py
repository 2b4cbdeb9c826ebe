"""Keep what a finished run measured: python -m benchmarks.keep RUN_DIR NAME

Writes results/NAME-DATE-COMMIT.json: by which command, on what and at which commit it was trained,
the resolved config, every epoch's line.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.lib.command_line import with_usage_errors
from benchmarks.lib.result_files import write_result
from launch.machine.provenance import provenance, read_starts
from launch.paper.results import all_epochs
from pipeline.config.config_file import load_config
from pipeline.config.sections import config_tree
from pipeline.config.yaml_file import load_tree
from pipeline.errors import ConfigError
from pipeline.run.metrics import METRICS_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OF_THE_START = ("time", "host", "after_step")
"""Of what a run keeps, what says nothing of where a result is from."""


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("name")
@click.option(
    "--command", help="The command line that trained, on this machine, where the run keeps none."
)
@with_usage_errors
def main(run_dir: Path, name: str, command: str | None) -> None:
    """Keep the metrics of RUN_DIR as benchmarks/results/NAME-….json."""
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ConfigError(f"NAME {shlex.quote(name)}: expected a plain word, as mnist_mlp_pred")
    epochs = epochs_of(run_dir)
    config = load_config(run_dir / "config.yaml")
    error_pct = tested_error(run_dir, epochs, all_epochs(config))
    result = {
        **made_by(run_dir, command),
        "config": config_tree(config),
        "stages": stages_of(run_dir),
        "test_error_pct": error_pct,
        "epochs": epochs,
    }
    print(f"test error {error_pct:.2f} %, kept in {write_result(name, result)}")


def made_by(run_dir: Path, command: str | None) -> dict[str, Any]:
    """Where the newest part of a run was trained, as the run has kept it, or, where it has not, as
    it is here.

    Raises:
        ConfigError: where neither is known, or both are given.
    """
    starts = read_starts(run_dir)
    if bool(starts) == (command is not None):
        raise ConfigError(
            f"--command: {run_dir} has kept by which command it was trained: leave it out"
            if starts
            else f"{run_dir} has not kept by which command it was trained: say so by --command"
        )
    made = starts[-1] if starts else provenance(command or "")
    return {key: value for key, value in made.items() if key not in _OF_THE_START}


def epochs_of(run_dir: Path) -> list[dict[str, Any]]:
    """What the run's metrics file says of each epoch.

    Raises:
        ConfigError: where there are none, or a line is damaged.
    """
    path = run_dir / METRICS_FILE
    lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    if not lines:
        raise ConfigError(f"{path}: a run keeps a line there for each epoch; name its folder")
    epochs = []
    for number, line in enumerate(lines, start=1):
        try:
            tree = json.loads(line)
        except ValueError:  # a crash left it half written
            tree = None
        if not (isinstance(tree, dict) and tree.get("event") == "epoch" and "epoch" in tree):
            raise ConfigError(
                f"{path}:{number}: every line tells of an epoch, this one is damaged; "
                f"{_to_go_on(run_dir)}"
            )
        epochs.append(tree)
    return epochs


def tested_error(run_dir: Path, epochs: Sequence[Mapping[str, Any]], planned: int) -> float:
    """In percent, after the last of so many epochs.

    Raises:
        ConfigError: where some are left to train, or the last one was not tested.
    """
    path, last = run_dir / METRICS_FILE, epochs[-1]
    if last["epoch"] < planned:
        raise ConfigError(
            f"{path}: ends with epoch {last['epoch']} of {planned}, and only a finished run is "
            f"kept; {_to_go_on(run_dir)}"
        )
    if not last.get("test"):
        raise ConfigError(
            f"{path}: the last epoch was not tested, and the test error is what is kept; train "
            "with runtime.eval_every_epochs of at least 1"
        )
    return float(last["test"]["error_pct"])


def stages_of(run_dir: Path) -> list[dict[str, Any]]:
    """What the run's plan says of each stage.

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
