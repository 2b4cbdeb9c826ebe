"""Checkpoints on disk: assemble, verify, load. No tensors here, only files.

    checkpoints/step-00000469/block-00.safetensors … manifest.json

A checkpoint exists if and only if its manifest does (invariant 6): everything is written and
synced under a temporary name, the manifest last, and one rename makes it appear. It holds one
file per block, so a run resumes with any number of stages.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pipeline.errors import CheckpointError
from pipeline.feed import Position
from pipeline.records import Tally

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.records import RunSnapshot

FORMAT = 1
_MANIFEST = "manifest.json"
_TEMPORARY = ".writing-"


@dataclass(frozen=True, slots=True)
class StartState:
    """What a run starts from: a position, and block files and counters where it resumes."""

    position: Position = field(default_factory=Position)
    files: Mapping[int, bytes] = field(default_factory=dict)
    tallies: tuple[Tally, ...] = ()
    steps_per_epoch: int | None = None
    """Of the run so far; None for a fresh start."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint; its block files have not been read yet."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Training steps done."""
        return int(self.manifest["step"])

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; with the step it says where in the data the run is."""
        return int(self.manifest["steps_per_epoch"])

    @property
    def epoch_reported(self) -> bool:
        """Whether the epoch of the step has been reported and tested."""
        return bool(self.manifest["epoch_reported"])

    @property
    def tallies(self) -> tuple[Tally, ...]:
        """Counters of the epoch under way."""
        return tuple(Tally(**tally) for tally in self.manifest["tallies"])

    @property
    def digests(self) -> dict[int, str]:
        """SHA-256 per block file."""
        return {int(entry["block"]): str(entry["sha256"]) for entry in self.manifest["blocks"]}

    def start(self) -> StartState:
        """Everything a run needs to go on from here.

        Raises:
            CheckpointError: as `read`.
        """
        position = Position(self.step, self.epoch_reported)
        return StartState(position, self.read(), self.tallies, self.steps_per_epoch)

    def read(self) -> dict[int, bytes]:
        """Every block file, verified.

        Raises:
            CheckpointError: naming the first file that is missing or not as it was written.
        """
        return {block: self._read_block(block, digest) for block, digest in self.digests.items()}

    def _read_block(self, block: int, digest: str) -> bytes:
        path = self.path / block_file_name(block)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read: {error.strerror}") from None
        if sha256(data).hexdigest() != digest:
            raise CheckpointError(f"{path}: is damaged: its SHA-256 is not the manifest's")
        return data


class CheckpointStore:
    """The checkpoints of one run directory."""

    def __init__(
        self, folder: Path, config_tree: dict[str, Any], keep: int, steps_per_epoch: int
    ) -> None:
        self._folder, self._config_tree, self._keep = folder, config_tree, keep
        self._steps_per_epoch = steps_per_epoch

    def write(self, snapshot: RunSnapshot) -> Path:
        """Write a complete checkpoint, then drop the oldest beyond the number to keep.

        Raises:
            OSError: where the disk refuses; earlier checkpoints stay as they are.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        final = self._folder / f"step-{snapshot.step:08d}"
        temporary = self._folder / f"{_TEMPORARY}{final.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        files = sorted(snapshot.files.items())
        entries = [_write_block(temporary, block, data) for block, data in files]
        manifest = self._manifest(snapshot, entries)
        _write_synced(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync_folder(temporary)
        _replace_folder(temporary, final)
        self._drop_oldest()
        return final

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

    def _drop_oldest(self) -> None:
        for checkpoint in complete_checkpoints(self._folder)[: -self._keep]:
            # the manifest goes first: what is left without one is no checkpoint
            (checkpoint / _MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(checkpoint, ignore_errors=True)


def block_file_name(block: int) -> str:
    """`block-07.safetensors`; the name is never taken from a manifest."""
    return f"block-{block:02d}.safetensors"


def complete_checkpoints(folder: Path) -> list[Path]:
    """Folders of complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted((path for path in named if (path / _MANIFEST).is_file()), key=_step_of)


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in `path`, its manifest checked, its block files not yet.

    Raises:
        CheckpointError: where the manifest is damaged or of another format.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        checkpoint = Checkpoint(path, manifest)
        _ = (checkpoint.epoch_reported, checkpoint.steps_per_epoch, checkpoint.tallies)
        _ = checkpoint.manifest["config"]
        if sorted(checkpoint.digests) != list(range(max(1, len(checkpoint.digests)))):
            raise ValueError(f"blocks {sorted(checkpoint.digests)} are not 0, 1, 2, …")
        if not path.name.endswith(f"step-{checkpoint.step:08d}"):
            raise ValueError(f"step {checkpoint.step} is not that of the folder")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path / _MANIFEST}: is damaged: {error!r}") from None
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / _MANIFEST}: format {manifest.get('format')}, this version reads {FORMAT}"
        )
    return checkpoint


def way_back(folder: Path, damaged: Path) -> str:
    """What a person can do about a damaged checkpoint, as a sentence with a command."""
    earlier = [path for path in complete_checkpoints(folder) if _step_of(path) < _step_of(damaged)]
    if not earlier:
        return "there is no earlier checkpoint in this run directory"
    aside = damaged.with_name(f"damaged-{damaged.name}")
    return (
        f"the previous complete checkpoint is {earlier[-1].name}: to go on from it, set the "
        f"damaged one aside ({shlex.join(['mv', str(damaged), str(aside)])}) "
        "and repeat the command"
    )


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _write_block(folder: Path, block: int, data: bytes | memoryview) -> dict[str, Any]:
    name = block_file_name(block)
    _write_synced(folder / name, data)
    return {
        "block": block,
        "file": name,
        "bytes": memoryview(data).nbytes,
        "sha256": sha256(data).hexdigest(),
    }


def _write_synced(path: Path, data: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace_folder(temporary: Path, final: Path) -> None:
    """Make `temporary` appear as `final`; an older checkpoint of the same step gives way.

    Its blocks are normally the same, and then only the manifest is replaced: there is no moment
    at which neither exists.
    """
    if _same_blocks(temporary, final):
        (temporary / _MANIFEST).replace(final / _MANIFEST)
        shutil.rmtree(temporary)
    elif final.exists():
        aside = final.with_name(f"{_TEMPORARY}old-{final.name}")
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
        temporary.rename(final)
        shutil.rmtree(aside)
    else:
        temporary.rename(final)
    _sync_folder(final.parent)


def _same_blocks(temporary: Path, final: Path) -> bool:
    try:
        return open_checkpoint(temporary).digests == open_checkpoint(final).digests
    except CheckpointError:
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
