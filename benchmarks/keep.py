"""Keep what a finished run measured: python -m benchmarks.keep RUN_DIR NAME

Writes results/NAME.json: where it was measured, the resolved config, every epoch's line. Run it
at the commit that trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import check_name, told_in_a_line, write_result
from launch.provenance import provenance
from pipeline.config import config_tree
from pipeline.configfile import load_config
from pipeline.errors import ConfigError
from pipeline.recorder import METRICS_FILE


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("name")
@click.option("--command", required=True, help="The command line that trained.")
@told_in_a_line
def main(run_dir: Path, name: str, command: str) -> None:
    """Keep the metrics of RUN_DIR as benchmarks/results/NAME.json."""
    check_name(name)
    epochs = epochs_of(run_dir)
    plan = json.loads((run_dir / "plan.json").read_text(encoding="utf-8"))
    result = {
        **provenance(command),
        "config": config_tree(load_config(run_dir / "config.yaml")),
        "stages": plan["stages"],
        "test_error_pct": epochs[-1]["test"]["error_pct"],
        "epochs": epochs,
    }
    print(f"test error {result['test_error_pct']:.2f} %, kept in {write_result(name, result)}")


def epochs_of(run_dir: Path) -> list[dict[str, Any]]:
    """A line for each.

    Raises:
        ConfigError: where there are none.
    """
    path = run_dir / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if not lines:
        raise ConfigError(f"{path}: a run keeps a line there for each epoch; name its folder")
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
