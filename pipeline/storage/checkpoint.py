"""Checkpoints on disk: find, verify, load; `checkpoint_writer.py` writes them. Files, no tensors.

    checkpoints/step-00000469/block-00.safetensors … manifest.json
    checkpoints/best/…                                              the same, of the best test

A checkpoint exists if and only if its manifest does (invariant 6). It holds one file per block,
so a run resumes with any number of stages.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args

from pipeline.data.record import record_of_tree
from pipeline.errors import CheckpointError
from pipeline.schedule.best import BestSoFar
from pipeline.schedule.feed import Position
from pipeline.schedule.reports import Tally
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from pipeline.data.record import DataRecord

FORMAT = 1
MANIFEST = "manifest.json"
REPLACED = ".replaced-"
"""Before the name of a checkpoint while another of the same step takes its place: it counts for
as long as the other is not there."""
BEST = "best"
"""Name of the checkpoint that had the lowest tested error: it is not one of those by step, from
which a run goes on."""
Kind = TypeVar("Kind")
Form: TypeAlias = Literal["full", "weights"]


@dataclass(frozen=True, slots=True)
class Initial:
    """What a network begins with that another run has learned (`model.init_from`).

    `files`: of some blocks, the tensors that were taken, as block files have them. `source`: where
    they are from, as JSON values. `notes`: for people.
    """

    files: Mapping[int, bytes] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunState:
    """What a run starts from, or is saved as: a consistent cut through all stages.

    At the start of a fresh run there are no files yet, but perhaps an `initial` part of them.
    """

    position: Position = field(default_factory=Position)
    files: Mapping[int, bytes | memoryview] = field(default_factory=dict)
    """Of every block, by its index."""
    tallies: tuple[Tally, ...] = ()
    """Counters of the epoch under way, by block; of a team of members one after the other."""
    steps_per_epoch: int | None = None
    """Of the run that is resumed; None where none is."""
    data: DataRecord | None = None
    """The images of the run that is resumed; None where none is, or where that was not kept."""
    best: BestSoFar = field(default_factory=BestSoFar)
    """What the tests before have shown."""
    kept: BestSoFar = field(default_factory=BestSoFar)
    """What those tests have shown whose weights could be kept: the others had no snapshot."""
    is_best: bool = False
    """Whether these are the weights that `kept` names as the best."""
    initial: Initial = field(default_factory=Initial)
    """Of a fresh run: what its blocks begin with in place of what is drawn for them."""

    def tallies_of(self, blocks: Collection[int], place: int = 0) -> tuple[Tally, ...]:
        """The counters of some blocks, of the process at a place in its team."""
        by_block: dict[int, list[Tally]] = {}
        for tally in self.tallies:
            by_block.setdefault(tally.block, []).append(tally)
        return tuple(
            tally
            for block, found in by_block.items()
            if block in blocks
            for tally in found[place : place + 1]
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint; its block files have not been read yet."""

    folder: Folder
    state: RunState
    """But for its files."""
    digests: Mapping[int, str]
    """SHA-256 per block file."""
    config: dict[str, Any]
    """Of the run, as a tree; its keys have not been checked."""
    form: Form = "full"
    """Whether heads and optimizer state are in it, without which no run goes on."""

    @property
    def path(self) -> Path:
        """Where its folder is now."""
        return self.folder.path

    def start(self) -> RunState:
        """Everything a run needs to go on from here.

        Raises:
            CheckpointError: as `read`.
        """
        return replace(self.state, files=self.read())

    def read(self) -> dict[int, bytes]:
        """Every block file, verified.

        Raises:
            CheckpointError: naming the first file that is missing or not as it was written.
        """
        files = {}
        for block, digest in self.digests.items():
            path = self.path / block_file_name(block)
            try:
                files[block] = self.folder.read(path.name)
            except OSError as error:
                raise CheckpointError(f"{path}: can't be read: {error.strerror}") from None
            if sha256(files[block]).hexdigest() != digest:
                raise CheckpointError(f"{path}: is damaged: its SHA-256 is not the manifest's")
        return files


def block_file_name(block: int) -> str:
    """`block-07.safetensors`; the name is never taken from a manifest."""
    return f"block-{block:02d}.safetensors"


def complete_names(folder: Folder) -> list[str]:
    """Names of the complete checkpoints in a folder, oldest first."""
    found = {}
    for name in folder.names():  # a replaced one comes first, and gives way
        step = name.removeprefix(REPLACED)
        if re.fullmatch(r"step-\d{8,}", step) and folder.has_file(f"{name}/{MANIFEST}"):
            found[step] = name
    return sorted(found.values(), key=step_of)


def best_name(folder: Folder) -> str | None:
    """Name of the best checkpoint in a folder, if it is there and complete."""
    names = (BEST, f"{REPLACED}{BEST}")
    return next((name for name in names if folder.has_file(f"{name}/{MANIFEST}")), None)


def complete_checkpoints(path: Path) -> list[Path]:
    """Folders of complete checkpoints, oldest first; none where there is no folder."""
    try:
        with Folder.open(path) as folder:
            return [path / name for name in complete_names(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def checkpoint_in(checkpoints: Folder, name: str) -> Checkpoint:
    """The checkpoint of that name, its manifest checked, its block files not yet.

    Raises:
        CheckpointError: where the manifest is damaged or of another format.
    """
    try:
        folder = checkpoints.child(name)
        return _parsed(folder, json.loads(folder.read(MANIFEST)))
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        path = checkpoints.path / name / MANIFEST
        raise CheckpointError(f"{path}: is damaged: {_in_words(error):.300}") from None


def _in_words(error: Exception) -> str:
    """What is wrong: with its kind, where the words alone say little, as of a missing key."""
    return str(error) if type(error) is ValueError else repr(error)


def _parsed(folder: Folder, manifest: dict[str, Any]) -> Checkpoint:
    """Each part of a manifest refuses to be of another type."""
    position = Position(_count(manifest["step"]), _of_type(bool, manifest["epoch_reported"]))
    steps_per_epoch = _count(manifest["steps_per_epoch"])
    tallies = tuple(map(_tally, manifest["tallies"]))
    data = manifest.get("data")  # early versions did not keep it
    record = None if data is None else record_of_tree(data)
    blocks = {_count(each["block"]): _of_type(str, each["sha256"]) for each in manifest["blocks"]}
    config, found = manifest["config"], manifest.get("format")
    if sorted(blocks) != list(range(max(1, len(blocks)))):
        raise ValueError(f"blocks {sorted(blocks)[:20]} are not 0, 1, 2, …")
    if folder.path.name.removeprefix(REPLACED) not in (BEST, f"step-{position.step:08d}"):
        raise ValueError(f"step {position.step} is not that of the folder")
    if found != FORMAT:
        raise CheckpointError(
            f"{folder.path / MANIFEST}: format {found!r:.40}, this version reads {FORMAT}"
        )
    best = _best(manifest["best"]) if "best" in manifest else BestSoFar()  # not kept early on
    kept = _best(manifest["kept"]) if "kept" in manifest else best  # none was kept apart before
    state = RunState(position, {}, tallies, steps_per_epoch, record, best, kept)
    form = manifest.get("form", "full")  # written since there are others
    if form not in get_args(Form):
        raise ValueError(f"form {form!r:.40} is not known")
    return Checkpoint(folder, state, blocks, config, form)


def _count(value: Any) -> int:
    """A number that a message can carry, too: ValueError for any other."""
    if not 0 <= _of_type(int, value) < 1 << 63:
        raise ValueError(f"{value!r:.40} is not a count")
    return int(value)


def _of_type(kind: type[Kind], value: Any) -> Kind:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value


def _tally(tree: Any) -> Tally:
    tally = Tally(**tree)
    errors = None if tally.errors is None else _count(tally.errors)
    parts = (tally.cross_entropy_sum, tally.similarity_sum)  # early versions did not keep them
    return Tally(
        _count(tally.block),
        _count(tally.images),
        _number(tally.loss_sum),
        errors,
        *(None if part is None else _number(part) for part in parts),
    )


def _number(value: Any) -> float:
    """JSON may leave out the fraction of a whole number."""
    return float(value if type(value) is int else _of_type(float, value))


def _best(tree: Any) -> BestSoFar:
    error = tree["error"]  # null where no test had one
    return BestSoFar(
        _count(tree["epoch"]), inf if error is None else _number(error), _count(tree["tested"])
    )


def way_back(folder: Path, damaged: Path) -> str:
    """What a person can do about a damaged checkpoint, as a sentence with a command."""
    earlier = [
        path for path in complete_checkpoints(folder) if step_of(path.name) < step_of(damaged.name)
    ]
    if not earlier:
        return "there is no earlier checkpoint in this run directory"
    aside = damaged.with_name(f"damaged-{damaged.name}")
    return (
        f"the previous complete checkpoint is {earlier[-1].name}: to go on from it, set the "
        f"damaged one aside ({shlex.join(['mv', str(damaged), str(aside)])}) "
        "and repeat the command"
    )


def step_of(name: str) -> int:
    """Of the name of a complete checkpoint."""
    return int(name.removeprefix(REPLACED).removeprefix("step-"))
