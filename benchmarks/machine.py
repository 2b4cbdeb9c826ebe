"""Where results are kept; each begins with `launch.provenance.provenance`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

RESULTS = Path(__file__).parent / "results"


def machine(result: Mapping[str, Any], device: str) -> str:
    """What it was measured on: `device` is `cpu` or `cuda`."""
    return ", ".join(result["gpus"]) if device == "cuda" else str(result["processor"])


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Keep a result as results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path
