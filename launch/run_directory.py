"""The run directory: config.yaml, plan.json, metrics.jsonl, run.log, checkpoints/.

Who only reads needs its path. The one command that changes it holds the folder open and locked
(`hold`), and then checks it again, since another may have changed it before.
"""

from __future__ import annotations

import json
import os
import unicodedata
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from errno import ENOENT
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.machine.provenance import PROVENANCE_FILE
from launch.resume import CODE, no_folder
from pipeline.config.config_file import dump_config
from pipeline.config.sections import config_tree
from pipeline.errors import RESUME, RUN_DIR, CheckpointError, ConfigError
from pipeline.network.tensor_names import is_weight
from pipeline.run.event_files import EventFiles
from pipeline.run.metrics import CONFUSION_FILE, METRICS_FILE, epoch_lines_in, trim_metrics
from pipeline.run.table import Table
from pipeline.run.timeline_file import TRACE
from pipeline.storage.atomic import TEMPORARY, replace_in, write_synced
from pipeline.storage.checkpoint import complete_names, step_of
from pipeline.storage.checkpoint_writer import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    CheckpointStore,
    checkpoints_of,
)
from pipeline.storage.folder import Folder
from pipeline.system.paths import expanded, path_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from launch.job import Job
    from pipeline.data.facts import DataFacts
    from pipeline.data.record import DataRecord
    from pipeline.storage.checkpoint import RunState

PLAN, LOG = "plan.json", "run.log"
"""The plan; what the run said, with times."""
IMAGES = "images.jsonl"
"""Of an image folder, each file, its size and digest."""
RUNS = Path("runs")
"""Where runs go whose folder nobody has named."""
INITIAL = "initial.json"
"""Of a run that began with what another has learned: from where each tensor is."""
_A_RUN = (CONFIG, METRICS_FILE, CHECKPOINTS)
_WRITTEN = (
    *_A_RUN,
    CONFUSION_FILE,
    Table.name,
    EventFiles.name,
    PROVENANCE_FILE,
    PLAN,
    LOG,
    DATA,
    IMAGES,
    CODE,
    TRACE,
    INITIAL,
)
_UNSHOWN = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's control characters, bytes that are no UTF-8, line and paragraph separators."""
_LONGEST_NAME = 200
"""Bytes of a config's name in that of a folder; a file system takes 255 for the whole."""
_ATTEMPTS = 10


def holds_run(path: Path) -> bool:
    """Whether a command has begun a run in a folder."""
    return any((path / name).exists() for name in _A_RUN)


def epoch_lines(run_dir: Path) -> list[dict[str, Any]]:
    """What the metrics of a run say of each trained epoch; lines that are damaged are left out."""
    if not (run_dir / METRICS_FILE).exists():
        return []
    with Folder.open(run_dir) as folder:
        return epoch_lines_in(folder)


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run directory that this command alone may change; `hold` gives it."""

    folder: Folder
    locked: bool = True
    """False where its file system has no locks."""

    @property
    def path(self) -> Path:
        """Where it is now: people move folders while a run trains."""
        return self.folder.path

    @property
    def holds_run(self) -> bool:
        """Whether a command has begun a run in it."""
        return any(map(self.folder.has, _A_RUN))

    @property
    def newest_step(self) -> int | None:
        """Of its newest complete checkpoint; None where there is none."""
        with suppress(OSError, CheckpointError), checkpoints_of(self.folder) as checkpoints:
            return max(map(step_of, complete_names(checkpoints)), default=None)
        return None

    def refuse_to_overwrite(self) -> None:
        """Raises ConfigError where a new run would take the place of anything, be it a run that
        never trained: the config in it may be the only copy."""
        found = [name for name in _WRITTEN if self.folder.has(name)]
        if self.holds_run:
            raise ConfigError(
                *(RUN_DIR, f" {self.path}: already holds a run ({found[0]}); add ", RESUME),
                " to go on with it, or choose another folder",
            )
        if found:
            raise ConfigError(
                RUN_DIR,
                f" {self.path}: holds {found[0]}, which a run writes itself; choose another folder",
            )
        if _is_at_work_here(self.folder):
            raise ConfigError(
                RUN_DIR,
                f" {self.path}: is the current folder, or holds it; a new run needs a folder of "
                "its own, as ",
                *(RUN_DIR, f" {RUNS / 'my-run'}"),
            )

    def check_writable(self) -> None:
        """Raises ConfigError where nothing can be written: its disk may be full, or read-only."""
        trial = f"{TEMPORARY}trial"
        try:
            write_synced(self.folder, trial, b"written\n")
        except OSError as error:
            raise self._not_writable(error) from None
        finally:
            with suppress(OSError):
                self.folder.remove(trial)

    def prepare(
        self,
        job: Job,
        start: RunState,
        steps_per_epoch: int,
        *,
        single: bool = False,
        data: DataRecord | None = None,
        facts: DataFacts | None = None,
        files: bytes = b"",
    ) -> CheckpointStore:
        """Remove what a killed run left half written, and write what is known before training.

        Args:
            data: which images the run has; facts: their shapes, and what they are normalised by;
                files: of an image folder, each of them.

        Raises:
            ConfigError: where it can't be written; what was in it is as it was.
        """
        config, folder = job.config, self.folder
        weights_only = config.runtime.best_form == "weights"
        store = CheckpointStore(
            *(folder, config_tree(config), config.runtime.keep_checkpoints, steps_per_epoch, data),
            is_weight=(lambda block, name: is_weight(job.specs[block], name))
            if weights_only
            else None,
        )
        tree = {"single": single, **job.plan.tree(job.costs)}
        try:
            for left in folder.names():
                if left.startswith(TEMPORARY):
                    folder.remove(left)
            replace_in(folder, CONFIG, dump_config(config).encode())
            replace_in(folder, PLAN, (json.dumps(tree, indent=1) + "\n").encode())
            if job.own_code:
                replace_in(folder, CODE, "".join(f"{line}\n" for line in job.own_code).encode())
            if data:
                known = {**data.tree, **({"facts": asdict(facts)} if facts else {})}
                replace_in(folder, DATA, (json.dumps(known, indent=1) + "\n").encode())
            if files:
                replace_in(folder, IMAGES, files)
            if start.initial.source:
                source = json.dumps(start.initial.source, indent=1) + "\n"
                replace_in(folder, INITIAL, source.encode())
            trim_metrics(folder, start.position)
            store.prepare()
        except OSError as error:
            raise self._not_writable(error) from None
        except CheckpointError as error:
            raise ConfigError(str(error)) from None
        return store

    def _not_writable(self, error: OSError) -> ConfigError:
        return ConfigError(
            RUN_DIR,
            f" {self.path}: can't be written: {error.strerror or error}; make room, or choose "
            "another folder",
        )


@contextmanager
def hold(path: Path, *, make: bool = True) -> Iterator[HeldRun]:
    """Keep all other commands out of a run directory for as long as this one uses it.

    With `make`, it is made where it is not there, and removed again if nothing was put into it.

    Raises:
        ConfigError: where another command has locked it, or it can't be opened or made.
    """
    folder, made, locked = _acquired(path, make=make)
    with folder, _removed_if_empty(folder, made):
        yield HeldRun(folder, locked)


@contextmanager
def hold_new(name: str) -> Iterator[HeldRun]:
    """As `hold`, of a folder that no other command has: `runs/<name>-<date>-<time>`, with -2, -3,
    … where others begin within the same second."""
    made = _made_new(name)
    with hold(made[-1], make=False) as run, _removed_if_empty(run.folder, made):
        yield run


def folder_named(flag: str, path: str | Path) -> Path:
    """The folder that an option names.

    Raises:
        ConfigError: as `expanded`, and where the name could not be shown in the line to resume by.
    """
    text = path_text(flag, path)
    if any(unicodedata.category(character) in _UNSHOWN for character in text):
        raise ConfigError(
            f"{flag} {text!a}: holds a line break, another control character or bytes that are "
            "not UTF-8, and so could not be named in one line; choose another name"
        )
    return expanded(flag, text)


def _acquired(path: Path, *, make: bool) -> tuple[Folder, list[Path], bool]:
    """The folder, open and locked; the folders made for that; whether it could be locked."""
    for _ in range(_ATTEMPTS):
        made = _make(path) if make else []
        try:
            folder = Folder.open(path)
            locked = folder.lock()
        except FileNotFoundError:  # another command has just removed what it had made
            continue
        except BlockingIOError as error:
            raise ConfigError(RUN_DIR, f" {path}: {error.strerror}") from None
        except OSError as error:
            raise _not_a_folder(path, "opened", error) from None
        if folder.is_at(path):  # else it was moved, or removed, before it was locked
            return folder, made, locked
        folder.close()
    if not make:
        raise no_folder(path)
    raise _not_a_folder(path, "opened", FileNotFoundError(ENOENT, os.strerror(ENOENT)))


def _make(path: Path) -> list[Path]:
    """Make a folder, and those above it; gives those that were not there, from above."""
    made: list[Path] = []
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            with suppress(FileExistsError):  # another command was quicker
                folder.mkdir()
                made.append(folder)
    except OSError as error:
        _remove_empty(made)
        raise _not_a_folder(path, "made", error) from None
    return made


def _made_new(name: str) -> list[Path]:
    short = name.encode(errors="replace")[:_LONGEST_NAME].decode(errors="ignore")
    plain = RUNS / f"{short}-{datetime.now():%Y%m%d-%H%M%S}"
    made = _make(RUNS)
    for number in count(1):
        path = plain if number == 1 else plain.with_name(f"{plain.name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            _remove_empty(made)
            raise _not_a_folder(path, "made", error) from None
        return [*made, path]
    raise AssertionError("there is always one more number")


def _remove_empty(made: Sequence[Path]) -> None:
    with suppress(OSError):  # one is not empty: as it should be
        for path in reversed(made):
            path.rmdir()


def _not_a_folder(path: Path, done: str, error: OSError) -> ConfigError:
    return ConfigError(
        RUN_DIR,
        f" {path}: can't be {done}: {error.strerror or error}; choose another folder",
    )


@contextmanager
def _removed_if_empty(folder: Folder, made: Sequence[Path]) -> Iterator[None]:
    """A command that fails before it has written anything leaves no empty folders."""
    try:
        yield
    finally:
        if made and folder.is_at(made[-1]):
            _remove_empty(made)


def _is_at_work_here(folder: Folder) -> bool:
    """Whether the current folder is this one or in it, as it is in `.` and in `/`."""
    try:
        here = Path.cwd()
    except OSError:  # it was deleted
        return False
    return any(map(folder.is_at, (here, *here.parents)))
