"""Checks that a resumed run has the images that it began with; else says what differs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.data.record import differences
from pipeline.errors import RESUME, SET, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pipeline.config.data import DataConfig
    from pipeline.data.batches import Batches
    from pipeline.data.record import DataRecord
    from pipeline.storage.checkpoint import RunState

_UNKNOWN = (
    "the checkpoint is of an earlier version, which kept no digest of the images: whether they are "
    "those that the run began with is not known"
)
_SHARES = (
    "the checkpoint is of an earlier version, whose limits took the first images of a folder, "
    "where they take some of each class now"
)


def check_same_data(
    start: RunState, batches: Batches, record: DataRecord, data: DataConfig, kept: Path
) -> list[str]:
    """Notes on the images of a run that is resumed from `start`.

    Args:
        data: which images are wanted; `accept` is the digest of other images that the user has
            agreed to.
        kept: the list of files that the run began with; it may be missing.

    Raises:
        ConfigError: where the images are others, naming what differs.
    """
    steps, before = batches.steps_per_epoch, start.data
    if start.steps_per_epoch is None:
        return []  # a fresh start
    took_others = before is None and _is_share(record, data)
    if before is None and start.steps_per_epoch == steps and not took_others:
        return [_UNKNOWN]
    if before == record:
        return []
    other = differences(before, record) if before else [_SHARES] if took_others else []
    what = "; ".join([*other, *_files_differing(kept, batches)])
    if start.steps_per_epoch != steps:
        raise ConfigError(
            RESUME,
            f": the data set now gives {steps} batches an epoch, the run began with "
            f"{start.steps_per_epoch}{f' ({what})' if what else ''}: bring back as many "
            f"{record.noun} as it had (where a file is broken, another image of its class can take "
            "its place), or start a new run",
        )
    if before and len(before.training.per_class) != len(record.training.per_class):
        raise ConfigError(RESUME, f": {what}: bring back these classes, or start a new run")
    if data.accept != record.digest:
        raise ConfigError(
            RESUME,
            f": the {record.noun} are others than the run began with ({what}): bring them back, or "
            "go on with these (",
            SET,
            f" data.accept={record.digest}), or start a new run",
        )
    return [f"data.accept: from here on the run has other {record.noun}: {what}"]


def _is_share(record: DataRecord, data: DataConfig) -> bool:
    """Whether a limit has chosen among the images of a folder."""
    limits = ((record.training, data.train_limit), (record.test, data.test_limit))
    return record.name == "imagefolder" and any(part.images == limit for part, limit in limits)


def list_files(batches: Batches) -> bytes:
    """A JSON line for each image file of a run: part, path, bytes, digest."""
    return "".join(f"{json.dumps(entry)}\n" for entry in batches.files()).encode()


def _files_differing(kept: Path, batches: Batches) -> list[str]:
    """Of an image folder: which files have gone, come, or changed, the first of each."""
    try:
        lines = [json.loads(line) for line in kept.read_bytes().splitlines()]
        before = {(part, path): tuple(rest) for part, path, *rest in lines}
    except (OSError, ValueError, TypeError):
        return []  # of a run without files, or nothing that we wrote
    now = {(part, path): tuple(rest) for part, path, *rest in batches.files()}
    changed = (key for key in before.keys() & now.keys() if before[key] != now[key])
    kinds = (
        (before.keys() - now.keys(), "is gone"),
        (now.keys() - before.keys(), "is new"),
        (changed, "has changed"),
    )
    return [said for keys, how in kinds if (said := _first_of(keys, how))]


def _first_of(keys: Iterable[tuple[str, str]], how: str) -> str:
    found = sorted(keys)
    if not found:
        return ""
    more = f" (the first of {len(found)})" if len(found) > 1 else ""
    return f"{'/'.join(found[0])} {how}{more}"
