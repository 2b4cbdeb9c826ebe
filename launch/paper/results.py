"""benchmarks/results/paper.json: what runs of the paper's entries gave, one record per line.

A record is identified by its entry, its number of epochs, and what else was changed: so a short or
a changed run never takes the place of the paper's own.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from statistics import median
from typing import TYPE_CHECKING, Any

from launch.machine.provenance import is_provenance, read_starts
from launch.paper.configs import entry_config, shortened
from launch.resume import what_differs
from launch.run_directory import PLAN, epoch_lines
from pipeline.config.config_file import load_config
from pipeline.config.sections import config_tree
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError, one_line
from pipeline.network.from_config import network_specs
from pipeline.schedule.feed import course_of
from pipeline.storage.atomic import replace_file
from pipeline.storage.checkpoint_writer import CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from launch.paper.table import Entry
    from pipeline.config.sections import Config

_DIGITS = 4
"""Of the errors in the curves, in percent: one image in ten thousand is 0.01."""


@dataclass(frozen=True, slots=True)
class Record:
    """What one finished run gave.

    `changes`: settings that are not the paper's, each with [paper's value, this run's]; of the
    schedule only where it is not simply shorter. `train`, `test`: error in percent by epoch.
    `starts`: provenance of every command that trained a part of it; empty where none was kept.
    `single`: whether one process trained all stages, as far as is known.

    Raises:
        ValueError: for a field of the wrong type.
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
    single: bool = False

    def __post_init__(self) -> None:
        """Records are read from a file that people may edit."""
        for name, (kind, fits) in _FIELDS.items():
            if not fits(getattr(self, name)):
                raise ValueError(f"{name} of {self.entry} is not {kind}")

    @property
    def identity(self) -> tuple[str, int, str]:
        """What a newer record must share to take this one's place."""
        return (self.entry, self.epochs, json.dumps(self.changes, sort_keys=True))

    @property
    def comparable(self) -> bool:
        """Whether it trained as the paper did, for however long; seed and precision aside."""
        return all(key.startswith("runtime.") for key in self.changes)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and all(one is None or _is_number(one) for one in value)


def _are_changes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(pair, list) and len(pair) == 2 for pair in value.values()
    )


_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "entry": ("a text", _is_text),
    "epochs": ("a positive whole number", _is_count),
    "changes": ("a mapping of keys to pairs of values", _are_changes),
    "error_pct": ("a number", _is_number),
    "images_per_s": ("a number or null", lambda value: value is None or _is_number(value)),
    "stages": ("a positive whole number", _is_count),
    "devices": (
        "a list of texts",
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
    ),
    "threads_per_stage": ("a positive whole number", _is_count),
    "starts": (
        "a list of provenances",
        lambda value: isinstance(value, list) and all(map(is_provenance, value)),
    ),
    "train": ("a list of numbers", _is_curve),
    "test": ("a list of numbers", _is_curve),
    "single": ("true or false", lambda value: isinstance(value, bool)),
}


def has_last_test(run_dir: Path, config: Config) -> bool:
    """Whether the run in this directory has trained and tested its last epoch."""
    lines = epoch_lines(run_dir)
    return bool(lines) and lines[-1]["epoch"] == all_epochs(config) and bool(lines[-1].get("test"))


def all_epochs(config: Config) -> int:
    """Of the whole run: greedy training takes `schedule.epochs` for each of its phases."""
    if not config.schedule.greedy:
        return config.schedule.epochs
    specs = network_specs(config, data_facts(config.data))
    return course_of(config, specs, steps_per_epoch=1, evaluation_batches=1).all_epochs


def record_of(entry: Entry, run_dir: Path) -> Record:
    """What the finished run in a directory gave.

    Raises:
        ConfigError: where it is not finished.
    """
    config = load_config(run_dir / CONFIG)
    if not has_last_test(run_dir, config):
        raise ConfigError(f"{run_dir}: the run in it is not finished, or never tested")
    epochs = epoch_lines(run_dir)
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
        starts=read_starts(run_dir),
        train=[_error(line["train"]) for line in epochs],
        test=[_error(line["test"]) for line in epochs],
        single=_was_single(run_dir, config),
    )


def _was_single(run_dir: Path, config: Config) -> bool:
    """Whether one process trained it; the plans of older runs say nothing of it, and those of
    global backprop were always single."""
    path = run_dir / PLAN
    if not path.exists():
        return config.loss.is_global
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        return bool(plan.get("single", config.loss.is_global))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path}: is no plan of a run: {one_line(error)}; repair it, or move it away"
        ) from None


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
        raise ConfigError(
            f"{path}: is no file of the paper's results: {one_line(error)}; repair it, or move it "
            "away: pipeline-reproduce then records finished runs anew, without training"
        ) from None


def keep_record(path: Path, record: Record) -> None:
    """Add a record to a file, in place of an older one of the same identity.

    Where others may do so at the same time: only within `alone_in`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    records = {kept.identity: kept for kept in read_records(path)}
    records[record.identity] = record
    lines = ",\n".join(json.dumps(asdict(records[key])) for key in sorted(records))
    replace_file(path, f'{{"records": [\n{lines}\n]}}\n'.encode())


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


def _error(values: Mapping[str, Any] | None) -> float | None:
    error = (values or {}).get("error_pct")
    return None if error is None else round(error, _DIGITS)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait for other commands that write results into this folder, and keep them out.

    From a record to its report: else a report could be written over one with more records.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
