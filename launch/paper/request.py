"""What a command line of pipeline-reproduce asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.job import Options

DEFAULT_RUNS, DEFAULT_RESULTS = "runs/paper", "benchmarks"


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line said. `launch`: how to train; the config comes with each entry."""

    selector: str
    launch: Options
    epochs_scale: float = 1.0
    runs: Path = Path(DEFAULT_RUNS)
    results: Path = Path(DEFAULT_RESULTS)
    command: str = "pipeline-reproduce"
