"""Writes checkpoints: whole or not at all.

Everything is written and synced under a temporary name, the manifest last, and one rename makes
it appear (invariant 6). Whatever call fails, and wherever the process ends, the complete
checkpoints are those from before, or those and the new one; old ones are dropped after that.

    .writing-step-00000012/  ──rename──▶  step-00000012/
                                          step-00000012/  ──▶  .replaced-step-00000012/

The second line is for another checkpoint of the same step, which gives way: under its new name it
counts until the new one is there, and if the process ends in between, the next start renames it.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint import (
    FORMAT,
    MANIFEST,
    REPLACED,
    block_file_name,
    complete_checkpoints,
    open_checkpoint,
)
from pipeline.durable import TEMPORARY, reason, sync_folder, write_synced
from pipeline.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.records import RunSnapshot


class CheckpointStore:
    """The checkpoints of one run directory."""

    def __init__(
        self, folder: Path, config_tree: dict[str, Any], keep: int, steps_per_epoch: int
    ) -> None:
        self._folder, self._config_tree, self._keep = folder, config_tree, keep
        self._steps_per_epoch = steps_per_epoch

    def prepare(self) -> None:
        """Make the folder, and clear away what a killed run has left half done in it.

        Raises:
            OSError: where the disk refuses.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        _clear_away(self._folder)

    def write(self, snapshot: RunSnapshot) -> Path:
        """Write a complete checkpoint, then drop the oldest beyond the number to keep.

        A run directory that is gone is not made again: its disk may have been taken away, and
        the checkpoint would land on another.

        Raises:
            CheckpointError: where the disk refuses; earlier checkpoints stay as they are, and
                nothing is left of this one.
        """
        final = self._folder / f"step-{snapshot.step:08d}"
        temporary = self._folder / f"{TEMPORARY}{final.name}"
        try:
            self._folder.mkdir(exist_ok=True)
            _clear_away(self._folder)
            self._write_aside(temporary, snapshot)
            _make_appear(temporary, final)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(f"{self._folder}: can't be written: {reason(error)}") from error
        self._drop_oldest(final)
        return final

    def _write_aside(self, temporary: Path, snapshot: RunSnapshot) -> None:
        temporary.mkdir()
        files = sorted(snapshot.files.items())
        entries = [_write_block(temporary, block, data) for block, data in files]
        manifest = self._manifest(snapshot, entries)
        write_synced(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(temporary)

    def _manifest(self, snapshot: RunSnapshot, entries: list[dict[str, Any]]) -> dict[str, Any]:
        before_epoch = max(0, snapshot.epoch - 1) * self._steps_per_epoch
        return {
            "format": FORMAT,
            "step": snapshot.step,
            "epoch": snapshot.epoch,
            "epoch_reported": snapshot.epoch_reported,
            "steps_per_epoch": self._steps_per_epoch,
            "batch_in_epoch": snapshot.step - before_epoch,
            "seed": self._config_tree["runtime"]["seed"],
            "blocks": entries,
            "tallies": [asdict(tally) for tally in snapshot.tallies],
            "config": self._config_tree,
        }

    def _drop_oldest(self, newest: Path) -> None:
        """The new one is complete and synced by now. Where the disk refuses to drop an old one,
        that is no reason to call the new one unwritten: the next write tries again."""
        with suppress(OSError):
            for checkpoint in complete_checkpoints(self._folder)[: -self._keep]:
                if checkpoint != newest:
                    aside = self._folder / f"{TEMPORARY}dropped-{checkpoint.name}"
                    os.rename(checkpoint, aside)  # at once: no half of it is taken for a whole
                    shutil.rmtree(aside, ignore_errors=True)


def _write_block(folder: Path, block: int, data: bytes | memoryview) -> dict[str, Any]:
    name = block_file_name(block)
    write_synced(folder / name, data)
    return {
        "block": block,
        "file": name,
        "bytes": memoryview(data).nbytes,
        "sha256": sha256(data).hexdigest(),
    }


def _make_appear(temporary: Path, final: Path) -> None:
    """Give a new checkpoint its name; an older one of the same step gives way.

    Its blocks are normally the same, and then only the manifest is replaced.
    """
    if _same_blocks(temporary, final):
        os.replace(temporary / MANIFEST, final / MANIFEST)
        sync_folder(final)
        shutil.rmtree(temporary, ignore_errors=True)
    elif os.path.lexists(final):
        _replace_folder(temporary, final)
    else:
        os.rename(temporary, final)
        sync_folder(final.parent)


def _replace_folder(temporary: Path, final: Path) -> None:
    aside = final.with_name(f"{REPLACED}{final.name}")
    os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except OSError:
        os.rename(aside, final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _clear_away(folder: Path) -> None:
    """Put right what an earlier write could not finish, because its process ended or the disk
    refused: a replaced checkpoint without a successor gets its name back, the rest goes."""
    for aside in folder.glob(f"{REPLACED}step-*"):
        final = folder / aside.name.removeprefix(REPLACED)
        if (aside / MANIFEST).is_file() and not (final / MANIFEST).is_file():
            shutil.rmtree(final, ignore_errors=True)
            os.rename(aside, final)
    for pattern in (f"{TEMPORARY}*", f"{REPLACED}*"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _same_blocks(temporary: Path, final: Path) -> bool:
    """Whether `final` is whole, its files included, and holds what is to be written."""
    try:
        before = open_checkpoint(final)
        before.verify()
        return before.digests == open_checkpoint(temporary).digests
    except CheckpointError:
        return False
