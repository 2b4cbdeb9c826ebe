"""benchmarks/results/paper.json: what runs of the paper's entries gave, one record per line.

A record is told from others by its entry, its number of epochs, and what else was changed: so a
short or a changed run never takes the place of the paper's own.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from launch.paper_config import entry_config, shortened
from pipeline.config import config_tree, differing_keys
from pipeline.configfile import load_config
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from launch.paper import Entry
    from launch.rundir import RunDirectory
    from pipeline.config import Config

PROVENANCE_FILE = "provenance.json"
_NO_MATTER = ("data.root", "data.download", "runtime.")
_MATTER = ("runtime.seed", "runtime.precision")
_DIGITS = 4
"""Of the errors in the curves, in percent: one image in ten thousand is 0.01."""


@dataclass(frozen=True, slots=True)
class Record:
    """What one finished run gave.

    `changes`: settings that are not the paper's, each with [paper's value, this run's]; of the
    schedule only where it is not simply shorter. `train`, `test`: error in percent by epoch.
    `starts`: provenance of every command that trained a part of it; empty where none was kept.
    """

    entry: str
    epochs: int
    changes: Mapping[str, list[Any]]
    error_pct: float
    images_per_s: float | None
    stages: int
    devices: list[str]
    threads_per_stage: int
    starts: list[dict[str, Any]]
    train: list[float | None]
    test: list[float | None]

    @property
    def identity(self) -> tuple[str, int, str]:
        """What a newer record must share to take this one's place."""
        return (self.entry, self.epochs, json.dumps(self.changes, sort_keys=True))

    @property
    def comparable(self) -> bool:
        """Whether it trained as the paper did, for however long; seed and precision aside."""
        return all(key.startswith("runtime.") for key in self.changes)


def what_differs(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Keys at which two configurations differ in what can change a result, with both values.

    Threads may change how a sum is rounded, but not the method: they are recorded, no more.
    """
    return {
        key: values
        for key, values in differing_keys(one, other).items()
        if key in _MATTER or not key.startswith(_NO_MATTER)
    }


def is_finished(directory: RunDirectory, config: Config) -> bool:
    """Whether the run in this directory has trained and tested its last epoch."""
    lines = _epoch_lines(directory)
    return bool(lines) and lines[-1]["epoch"] == config.schedule.epochs and bool(lines[-1]["test"])


def record_of(entry: Entry, directory: RunDirectory) -> Record:
    """What the finished run in a directory gave.

    Raises:
        ConfigError: where it is not finished.
    """
    config = load_config(directory.config)
    if not is_finished(directory, config):
        raise ConfigError(f"{directory.path}: the run in it is not finished, or never tested")
    lines = _epoch_lines(directory)
    epochs = [line for line in lines if line["epoch"] > 0]
    speeds = [line["images_per_s"] for line in epochs if line["images_per_s"]]
    stages = epochs[-1]["stages"]
    return Record(
        entry=entry.key,
        epochs=config.schedule.epochs,
        changes=_changes(entry, config),
        error_pct=epochs[-1]["test"]["error_pct"],
        images_per_s=round(median(speeds), 1) if speeds else None,
        stages=len(stages),
        devices=sorted({stage["device"] for stage in stages}),
        threads_per_stage=config.runtime.threads_per_stage,
        starts=read_starts(directory.path),
        train=[_error(line["train"]) for line in epochs],
        test=[_error(line["test"]) for line in epochs],
    )


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Provenance of every command that trained in a run directory."""
    path = folder / PROVENANCE_FILE
    if not path.exists():
        return []
    starts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return starts


def write_starts(folder: Path, starts: list[dict[str, Any]]) -> None:
    """Note who has trained in a run directory."""
    folder.mkdir(parents=True, exist_ok=True)
    if starts:
        _replace(folder / PROVENANCE_FILE, json.dumps(starts, indent=1) + "\n")
    else:
        (folder / PROVENANCE_FILE).unlink(missing_ok=True)


def read_records(path: Path) -> list[Record]:
    """Every record that is kept in a file; none where there is no file.

    Raises:
        ConfigError: where it is no such file.
    """
    if not path.exists():
        return []
    try:
        return [Record(**tree) for tree in json.loads(path.read_text(encoding="utf-8"))["records"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is no file of the paper's results: {error!r}") from None


def keep_record(path: Path, record: Record) -> None:
    """Add a record to a file, in place of an older one of the same identity.

    Commands that run at the same time wait for one another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(path.parent):
        records = {kept.identity: kept for kept in read_records(path)}
        records[record.identity] = record
        lines = ",\n".join(json.dumps(asdict(records[key])) for key in sorted(records))
        _replace(path, f'{{"records": [\n{lines}\n]}}\n')


def best_record(entry: Entry, records: Iterable[Record]) -> Record | None:
    """The record to compare with the paper: as long as its run was, else the longest one; and
    with the entry's own seed and precision, if there is such."""

    def rank(record: Record) -> tuple[bool, int, bool]:
        return (record.epochs == entry.epochs, record.epochs, not record.changes)

    found = [record for record in records if record.entry == entry.key and record.comparable]
    return max(found, key=rank, default=None)


def _changes(entry: Entry, config: Config) -> dict[str, list[Any]]:
    """Against the entry with so many epochs, in plain JSON values."""
    paper = entry_config(shortened(entry, config.schedule.epochs))
    trees = config_tree(paper), config_tree(config)
    return {
        key: [tree[key.partition(".")[0]].get(key.partition(".")[2]) for tree in trees]
        for key in what_differs(paper, config)
    }


def _epoch_lines(directory: RunDirectory) -> list[dict[str, Any]]:
    if not directory.metrics.exists():
        return []
    lines = directory.metrics.read_text(encoding="utf-8").splitlines()
    return [line for line in map(_parsed, lines) if line.get("event") == "epoch"]


def _parsed(line: str) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(line)
    except ValueError:  # a line that a crash left half written
        return {}
    return tree


def _error(values: Mapping[str, Any] | None) -> float | None:
    error = (values or {}).get("error_pct")
    return None if error is None else round(error, _DIGITS)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, whatever happens meanwhile."""
    aside = path.with_name(f".writing-{path.name}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
