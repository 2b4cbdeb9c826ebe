"""What was found, as lines of JSON for the repository: results/referee/NETWORK/RULE.jsonl

A row is what one task gave: its config, who made it (command, machine, versions, commit), and the
result. Sessions on other machines go on from these rows, without the folders of the runs.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from statistics import median
from types import NoneType
from typing import TYPE_CHECKING, Any

from launch.machine.provenance import is_provenance, read_starts
from launch.run_directory import epoch_lines
from pipeline.config.sections import build_config, config_tree
from pipeline.errors import ConfigError, one_line
from pipeline.run.metrics import tested
from pipeline.storage.atomic import replace_file
from pipeline.storage.checkpoint import checkpoint_in, complete_names
from pipeline.storage.checkpoint_writer import checkpoints_of
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from launch.referee.tasks import Task
    from pipeline.config.sections import Config

ROWS = "results/referee"
_OF_A_START = (
    "command", "time", "processor", "cores", "gpus", "python", "versions", "commit",
    "uncommitted_changes",
)  # fmt: skip
"""What is kept of each command that trained a part of a run: no names of hosts."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a task gave. `path`: of the task, as text; `result`: by its kind; `failed`: why there is
    none, where the value that was tried is no good."""

    path: str
    config: Mapping[str, Any]
    starts: tuple[Mapping[str, Any], ...]
    result: Mapping[str, Any]
    failed: str = ""

    @property
    def network(self) -> str:
        """The name of the network that was trained."""
        return self.path.split("/")[0]

    @property
    def rule(self) -> str:
        """The name of the rule that trained it."""
        return self.path.split("/")[1]

    @property
    def name(self) -> str:
        """That of the task."""
        return self.path.split("/")[2]

    @property
    def is_training(self) -> bool:
        """Whether it is of a run that counts, on all training images."""
        return self.name.startswith("seed=")

    @property
    def error_pct(self) -> float | None:
        """Of the last test; None where nothing was predicted, or it failed."""
        found: float | None = self.result.get("error_pct")
        return found

    def checked_config(self) -> Config:
        """As an object.

        Raises:
            ConfigError: where this version has no such config.
        """
        return build_config(dict(self.config), f"the row {self.path}")

    def config_here(self, data: str | None) -> Config:
        """The same, with the data where they are here: in the folder `data`; None: the default.

        Raises:
            ConfigError: as `checked_config`.
        """
        section = {key: each for key, each in self.config.get("data", {}).items() if key != "root"}
        if data is not None:
            section["root"] = data
        return replace(self, config={**self.config, "data": section}).checked_config()

    def tree(self) -> dict[str, Any]:
        """As JSON values."""
        tree: dict[str, Any] = {"path": self.path, "result": dict(self.result)}
        if self.failed:
            tree["failed"] = self.failed
        return {**tree, "config": dict(self.config), "starts": list(self.starts)}


class Rows:
    """Those in a folder, by path; each file is written anew where one of its rows changes.

    Raises:
        ConfigError: where a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ROWS
        self._rows: dict[str, Row] = {}
        for file in sorted(self.folder.glob("*/*.jsonl")):
            for row in _rows_in(file):
                self._rows[row.path] = row

    def of(self, task: Task) -> Row | None:
        """What a task gave, where that is known."""
        return self._rows.get(str(task.path))

    def all(self) -> list[Row]:
        """Every row."""
        return [*self._rows.values()]

    def trainings(self, network: str) -> dict[str, list[Row]]:
        """The rows of a network's runs that count, by rule."""
        found: dict[str, list[Row]] = {}
        for row in self.all():
            if row.network == network and row.is_training:
                found.setdefault(row.rule, []).append(row)
        return found

    def add(self, row: Row) -> None:
        """Keep a row, in place of an older one of its path.

        Raises:
            OSError: where the disk refuses.
        """
        self._rows[row.path] = row
        path = self.folder / row.network / f"{row.rule}.jsonl"
        own = [one for one in self.all() if (one.network, one.rule) == (row.network, row.rule)]
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{json.dumps(one.tree(), ensure_ascii=False)}\n" for one in own)
        replace_file(path, text.encode())


_NUMBER = (int, float)
_NEEDED: Mapping[str, Mapping[str, Any]] = {
    "locality": {"is_local": bool, "said": str},
    "run": {
        "images_per_s": (*_NUMBER, NoneType), "peak_memory_bytes": int, "device": str,
    },
    "training": {"depths": list, "epochs": int},
}  # fmt: skip
"""What is read of a result, by kind; a training is a run, too."""
_MAY_BE: Mapping[str, Any] = {
    "error_pct": (*_NUMBER, NoneType), "loss": (*_NUMBER, NoneType), "seconds": _NUMBER,
    "blocks_sha256": dict,
}  # fmt: skip
_PATH = re.compile(r"[^/]+/[^/]+/(speed|locality|search-[^/]+|seed=(0|[1-9]\d*))")


def _rows_in(file: Path) -> Iterable[Row]:
    cure = "repair it, or move it away: its rows are then trained again"
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            yield _row_of(json.loads(line), (file.parent.name, file.stem))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: can't be read: {one_line(error)}; {cure}") from None


def _row_of(tree: Any, of: tuple[str, str]) -> Row:
    """A row of this network and rule.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: where it is none.
    """
    starts = tuple(tree["starts"])
    row = Row(tree["path"], tree["config"], starts, tree["result"], tree.get("failed", ""))
    if not _PATH.fullmatch(row.path) or (row.network, row.rule) != of:
        raise ValueError(f"a row of {row.path}")
    if not (starts and all(map(is_provenance, starts))):
        raise ValueError(f"{row.path}: starts: not as a command records who made it")
    if not all(isinstance(section, dict) for section in row.config.values()):
        raise ValueError(f"{row.path}: config: a section is no mapping")
    if not row.failed and (wrong := _what_is_wrong(row)):
        raise ValueError(f"{row.path}: result: {wrong}")
    return row


def _what_is_wrong(row: Row) -> str:
    """With its result; empty where all that is read of it is there, and of its type."""
    result: Any = row.result
    if not isinstance(result, dict):
        return "no mapping"
    needed = _NEEDED["locality" if row.name == "locality" else "run"]
    if row.is_training:
        needed = {**needed, **_NEEDED["training"]}
    for key, kind in {**needed, **_MAY_BE}.items():
        if not isinstance(result.get(key), kind) and (key in needed or key in result):
            return f"{key} {result.get(key)!r:.40}"
    blocks, depths = result.get("blocks_sha256", {}), result.get("depths", [])
    if not all(isinstance(digest, str) for digest in blocks.values()):
        return "blocks_sha256: a digest is no text"
    if not all(_is_depth(depth) for depth in depths):
        return "depths: one has no block or no error_pct"
    return ""


def _is_depth(tree: Any) -> bool:
    return (
        isinstance(tree, dict)
        and isinstance(tree.get("block"), int)
        and isinstance(tree.get("error_pct"), _NUMBER)
    )


def row_of_run(path: str, config: Config, run_dir: Path, wall_s: float | None) -> Row | None:
    """What a finished run in a folder gave; None where its lines can't be read.

    Args:
        path: of the task that it is.
        wall_s: seconds of its whole process; None where several had a part in it.
    """
    lines = epoch_lines(run_dir)
    if not lines:
        return None
    starts = tuple(
        {key: start[key] for key in _OF_A_START if key in start} for start in read_starts(run_dir)
    )
    is_speed = path.endswith("/speed")
    counted = lines[1:] if is_speed else lines
    speeds = [line["images_per_s"] for line in counted if line.get("images_per_s")]
    result: dict[str, Any] = {
        "images_per_s": round(median(speeds), 1) if speeds else None,
        "peak_memory_bytes": max(line["stages"][0]["peak_memory_bytes"] for line in lines),
        "device": lines[-1]["stages"][0]["device"],
    }
    if not is_speed:
        part, test = tested(lines[-1])
        result |= {
            "tested_on": part,
            "error_pct": test.get("error_pct"),
            "loss": test.get("loss"),
            "depths": _depths(lines[-1], test),
            "epochs": lines[-1]["epoch"],
            "seconds": round(sum(line.get("seconds") or 0.0 for line in lines), 1),
        }
    if wall_s is not None:
        result["wall_s"] = round(wall_s, 1)
    row = Row(path, config_tree(config), starts, result)
    if row.is_training:
        result["blocks_sha256"] = _digests(run_dir)
    return row


def _depths(line: Mapping[str, Any], test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Error of each block that predicts, with its name."""
    names = {block["block"]: block["name"] for block in line["blocks"]}
    return [
        {**depth, "name": names.get(depth["block"], "")}
        for depth in test.get("depths", ())
        if depth["error_pct"] is not None
    ]


def _digests(run_dir: Path) -> dict[str, str]:
    """SHA-256 of the file of each block in the last checkpoint: what a repetition has to give."""
    with Folder.open(run_dir) as run, checkpoints_of(run) as kept:
        digests = checkpoint_in(kept, complete_names(kept)[-1]).digests
    return {str(block): digest for block, digest in digests.items()}
