"""Writes checkpoints: whole or not at all.

Everything is written and synced under a temporary name, the manifest last, and one rename makes
it appear (invariant 6). Whatever call fails, and wherever the process ends, the complete
checkpoints are those from before, or those and the new one; old ones are dropped after that.

    .writing-step-00000012/  ──rename──▶  step-00000012/
                                          step-00000012/  ──▶  .replaced-step-00000012/

The second line is for another checkpoint of the same step, which gives way: under its new name it
counts until the new one is there, and if the process ends in between, the next start renames it.

The best so far gets a second name, `best`, which stays when the first is dropped: its files are
links to the same bytes, or copies where the file system has no links. Or it has a part of each
file (`block_bytes.py`).
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from errno import EMLINK, ENOSYS, ENOTSUP, EPERM
from functools import partial
from hashlib import sha256
from math import isfinite
from typing import TYPE_CHECKING, Any

from pipeline.errors import CheckpointError
from pipeline.storage.atomic import TEMPORARY, reason, write_synced
from pipeline.storage.block_bytes import tensors_only
from pipeline.storage.checkpoint import (
    BEST,
    FORMAT,
    MANIFEST,
    REPLACED,
    block_file_name,
    complete_names,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pipeline.data.record import DataRecord
    from pipeline.schedule.best import BestSoFar
    from pipeline.storage.checkpoint import Form, RunState
    from pipeline.storage.folder import Folder

CHECKPOINTS = "checkpoints"
"""Name of their folder in a run directory."""
CONFIG = "config.yaml"
"""In every run directory: the resolved configuration."""
DATA = "data.json"
"""There, too: number of images, classes, digests, and the facts of the data."""
_NO_LINKS = (EMLINK, ENOSYS, ENOTSUP, EPERM)
"""What file systems say that have no second names for files, or no more of them."""


class CheckpointStore:
    """The checkpoints of one run directory. `write` is called by one thread at a time.

    Args:
        run: the run directory, which the store holds open until it is closed.
        is_weight: of a block and the name of a tensor, whether the best checkpoint has it; None:
            that one has all.
    """

    def __init__(
        self,
        run: Folder,
        config_tree: dict[str, Any],
        keep: int,
        steps_per_epoch: int,
        data: DataRecord | None = None,
        is_weight: Callable[[int, str], bool] | None = None,
    ) -> None:
        self._run, self._config_tree, self._keep = run.again(), config_tree, keep
        self._steps_per_epoch, self._data = steps_per_epoch, data
        self._is_weight = is_weight
        self._folder: Folder | None = None

    def prepare(self) -> None:
        """Make the folder, and clear away what a killed run has left half done in it.

        Raises:
            OSError: where the disk refuses.
            CheckpointError: as `checkpoints_of`.
        """
        _clear_away(self._at_hand())

    def close(self) -> None:
        """Let go of the run directory. Not while it may be written to: its lock must last."""
        self._run.close()
        if self._folder is not None:
            self._folder.close()

    def write(self, state: RunState) -> Path:
        """Write a complete checkpoint, keep the best apart, then drop the oldest beyond the number
        to keep.

        A run directory that is gone is not made again: its name may lead to another by now.

        Raises:
            CheckpointError: where the disk refuses; earlier checkpoints stay as they are, and
                nothing is left of this one, or all of it, where only `best` was refused.
        """
        final = f"step-{state.position.step:08d}"
        try:
            folder = self._at_hand()
            _clear_away(folder)
            _write_whole(folder, final, lambda aside: self._write_files(aside, state, state.files))
            if state.is_best and self._is_weight is not None:
                files = {
                    block: tensors_only(data, partial(self._is_weight, block))
                    for block, data in state.files.items()
                }
                _write_whole(
                    folder, BEST, lambda aside: self._write_files(aside, state, files, "weights")
                )
            elif state.is_best:
                with folder.child(final) as source:
                    _write_whole(folder, BEST, lambda aside: _link_files(source, aside, state))
        except OSError as error:
            path, why = self._run.path / CHECKPOINTS, reason(error, self._run)
            raise CheckpointError(f"{path}: can't be written: {why}") from error
        # the new one is complete and synced by now: where the disk refuses to drop an old one, the
        # next write tries again
        with suppress(OSError):
            for name in complete_names(folder)[: -self._keep]:
                if name != final:
                    aside = f"{TEMPORARY}dropped-{name}"
                    folder.rename(name, aside)  # at once: no half of it is taken for a whole
                    folder.remove(aside)
        return folder.path / final

    def _at_hand(self) -> Folder:
        """The folder `checkpoints` of the run as it is now: it may have been moved to another
        disk, with a link in its place, or removed."""
        if self._folder is not None:
            if self._run.leads_to(CHECKPOINTS, self._folder):
                return self._folder
            self._folder.close()
        self._folder = None
        folder = checkpoints_of(self._run, make=True)
        folder.lock()  # links of two runs may lead to it
        self._folder = folder
        return folder

    def _write_files(
        self,
        folder: Folder,
        state: RunState,
        files: Mapping[int, bytes | memoryview],
        form: Form = "full",
    ) -> None:
        entries = []
        for block, data in sorted(files.items()):
            name = block_file_name(block)
            write_synced(folder, name, data)
            nbytes, digest = memoryview(data).nbytes, sha256(data).hexdigest()
            entry = {"block": block, "file": name, "bytes": nbytes, "sha256": digest}
            entries.append(entry)
        manifest = json.dumps(self._manifest(state, entries, form), indent=1)
        write_synced(folder, MANIFEST, manifest.encode())

    def _manifest(
        self, state: RunState, entries: list[dict[str, Any]], form: Form
    ) -> dict[str, Any]:
        step, per_epoch = state.position.step, self._steps_per_epoch
        epoch = -(-step // per_epoch)  # from 1; 0 before the first step
        return {
            "format": FORMAT,
            **({} if form == "full" else {"form": form}),
            "step": step,
            "epoch": epoch,
            "epoch_reported": state.position.epoch_reported,
            "steps_per_epoch": per_epoch,
            "batch_in_epoch": step - max(0, epoch - 1) * per_epoch,
            "seed": self._config_tree["runtime"]["seed"],
            "blocks": entries,
            "tallies": [asdict(tally) for tally in state.tallies],
            **({"data": self._data.tree} if self._data else {}),
            "best": _best_tree(state.best),
            "kept": _best_tree(state.kept),
            "config": self._config_tree,
        }


def _best_tree(best: BestSoFar) -> dict[str, Any]:
    """JSON has no infinities: null stands for no error yet."""
    return {**asdict(best), "error": best.error if isfinite(best.error) else None}


def checkpoints_of(run: Folder, *, make: bool = False) -> Folder:
    """The folder of a run's checkpoints, on another disk if a link leads there.

    Raises:
        OSError: where there is none, or it can't be made.
        CheckpointError: where it is another run's, whose checkpoints would be mixed with these.
    """
    folder = run.child(CHECKPOINTS, make=make)
    with folder.child("..") as parent:
        if not run.leads_to(".", parent) and parent.has_file(CONFIG):
            raise CheckpointError(
                f"{run.path / CHECKPOINTS}: leads to the checkpoints of another run, in "
                f"{parent.path.resolve()}; each run needs its own"
            )
    return folder


def _write_whole(folder: Folder, final: str, fill: Callable[[Folder], None]) -> None:
    """A checkpoint of that name, whose files `fill` puts into a folder."""
    temporary = f"{TEMPORARY}{final}"
    try:
        folder.make(temporary)
        with folder.child(temporary) as aside:
            fill(aside)
            aside.sync()
        _make_appear(folder, temporary, final)
    except OSError:
        with suppress(OSError):
            folder.remove(temporary)
        raise


def _link_files(source: Folder, folder: Folder, state: RunState) -> None:
    """The files of a checkpoint that was just written, in another folder."""
    for name in (*map(block_file_name, state.files), MANIFEST):
        try:
            source.link(name, folder)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            write_synced(folder, name, source.read(name))


def _make_appear(folder: Folder, temporary: str, final: str) -> None:
    """Give a new checkpoint its name; an older one that has it gives way."""
    if not folder.has(final):
        folder.rename(temporary, final)
        folder.sync()
        return
    aside = f"{REPLACED}{final}"
    folder.rename(final, aside)
    try:
        folder.rename(temporary, final)
    except OSError:
        folder.rename(aside, final)
        raise
    folder.sync()
    with suppress(OSError):
        folder.remove(aside)


def _clear_away(folder: Folder) -> None:
    """Put right what an earlier write could not finish, because its process ended or the disk
    refused: a replaced checkpoint without a successor gets its name back, the rest goes."""
    for aside in folder.names():
        final = aside.removeprefix(REPLACED)
        if aside != final and _is_whole(folder, aside) and not _is_whole(folder, final):
            with suppress(OSError):
                folder.remove(final)
            folder.rename(aside, final)
    for left in folder.names():
        if left.startswith((TEMPORARY, REPLACED)):
            with suppress(OSError):
                folder.remove(left)


def _is_whole(folder: Folder, name: str) -> bool:
    return folder.has_file(f"{name}/{MANIFEST}")
