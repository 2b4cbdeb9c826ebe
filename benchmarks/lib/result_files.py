"""Kept results: `results/NAME-DATE-COMMIT.json`, each beginning with its provenance.

    throughput_mlp-2026-11-24-47300c0.json       NAME says what was measured,
    throughput_mlp-2026-11-24-47300c0-2.json     a number which of several on a day at a commit

Nothing is ever overwritten. What a long measurement has found so far lies in NAME.partial.json.
"""

from __future__ import annotations

import json
import os
import re
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import ConfigError
from pipeline.storage.atomic import replace_file

RESULTS = Path(__file__).parents[1] / "results"
_FILE = re.compile(r"(?P<name>.+?)-(?P<date>\d{4}-\d\d-\d\d)(?P<rest>-.*)?\.json")


class Kept(NamedTuple):
    """A result: the path of its file, what that is named for, its day, and what it holds."""

    path: Path
    name: str
    date: str
    tree: dict[str, Any]

    @property
    def on_gpu(self) -> bool:
        """Whether it was measured on CUDA devices."""
        return "cuda" in f"{self.name} {self.tree.get('stages')}"


def make_writable(folder: Path) -> None:
    """Make a folder, unless it is there: asked before anything is measured.

    Raises:
        ConfigError: where that can't be, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: can't be made: {error.strerror}; name another") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder}: can't be written to; change its permissions")


def keep_so_far(name: str, result: dict[str, Any]) -> Path:
    """What was measured until now, as results/NAME.partial.json."""
    path = RESULTS / f"{name}.partial.json"
    replace_file(path, (json.dumps(result, indent=1) + "\n").encode())
    return path


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Keep a whole result under a name that no other has."""
    RESULTS.mkdir(exist_ok=True)
    partial = keep_so_far(name, result)
    parts = (name, date.today().isoformat(), result["commit"])
    unique = "-".join(part for part in parts if part)
    for number in count(1):
        path = RESULTS / (f"{unique}.json" if number == 1 else f"{unique}-{number}.json")
        try:
            os.link(partial, path)  # fails where there is such a file
        except FileExistsError:
            continue
        break
    partial.unlink()
    return path


def kept_results() -> list[Kept]:
    """All of them, by name and day."""
    paths = sorted(RESULTS.glob("*.json"), key=lambda path: path.stem)
    found = [(path, _FILE.fullmatch(path.name)) for path in paths]
    return [
        Kept(path, match["name"], match["date"], json.loads(path.read_text(encoding="utf-8")))
        for path, match in found
        if match
    ]
