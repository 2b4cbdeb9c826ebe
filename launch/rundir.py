"""The run directory: config.yaml, plan.json, metrics.jsonl, run.log, checkpoints/."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.checkpoint import (
    Checkpoint,
    StartState,
    complete_checkpoints,
    open_checkpoint,
    way_back,
)
from pipeline.config import build_config, config_tree, differing_keys
from pipeline.configfile import dump_config, load_config
from pipeline.durable import TEMPORARY, replace_file
from pipeline.errors import CheckpointError, ConfigError
from pipeline.recorder import METRICS_FILE, trim_metrics
from pipeline.store import CheckpointStore
from pipeline.yamlfile import word_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from launch.job import Job
    from pipeline.config import Config

_FREE_TO_CHANGE = ("schedule.", "runtime.", "optimizer.lr", "data.root", "data.download")
_BOUND = ("runtime.seed", "runtime.precision", "schedule.greedy")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run's folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line per epoch."""
        return self.path / METRICS_FILE

    @property
    def log(self) -> Path:
        """What the run said, with times."""
        return self.path / "run.log"

    @property
    def plan(self) -> Path:
        """Stages, their devices and costs; whether one process trains them all."""
        return self.path / "plan.json"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def held(self) -> list[Path]:
        """What an earlier run has left in the folder."""
        return [path for path in (self.config, self.metrics, self.checkpoints) if path.exists()]

    def refuse_to_overwrite(self) -> None:
        """Raises ConfigError where the folder already holds a run, even one that never trained:
        the config in it may be the only copy."""
        if self.held:
            raise ConfigError(
                f"--run-dir {self.path}: already holds a run ({self.held[0].name}); "
                "add --resume to go on with it, or choose another folder"
            )

    def start_state(self, job: Job) -> tuple[StartState, list[str]]:
        """What to resume from, verified, and notes on what was changed since.

        Raises:
            ConfigError: where there is no run, or one of another configuration.
            CheckpointError: naming the damaged file, with a way back.
        """
        complete = complete_checkpoints(self.checkpoints)
        if not complete:
            return self._from_the_beginning(job.config)
        try:
            checkpoint = open_checkpoint(complete[-1])
            before = build_config(checkpoint.manifest["config"], str(checkpoint.path))
            notes = _compare(before, job.config, self.path)
            _check_blocks(checkpoint, len(job.specs))
            return checkpoint.start(), [f"resuming from {checkpoint.path.name}", *notes]
        except CheckpointError as error:
            advice = way_back(self.checkpoints, complete[-1])
            raise CheckpointError(f"{error}; {advice}") from None

    def _from_the_beginning(self, config: Config) -> tuple[StartState, list[str]]:
        """A run that ended before its first checkpoint is resumed by starting it again."""
        if not self.config.exists() or any(self.checkpoints.glob("step-*")):
            raise ConfigError(
                f"--resume: {self.path} holds no complete checkpoint; "
                "start without --resume, or name the run's folder with --run-dir"
            )
        notes = _compare(load_config(self.config), config, self.path)
        return StartState(), ["no checkpoint yet: starting at the beginning", *notes]

    def prepare(
        self, job: Job, start: StartState, steps_per_epoch: int, *, single: bool = False
    ) -> CheckpointStore:
        """Make the folder, clear away what a killed run has left half done, and write what is
        known before training.

        Raises:
            ConfigError: where it can't be written; what was in it is as it was.
        """
        config = job.config
        store = CheckpointStore(
            self.checkpoints,
            config_tree(config),
            config.runtime.keep_checkpoints,
            steps_per_epoch,
        )
        tree = {"single": single, **job.plan.tree(job.costs)}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for left in self.path.glob(f"{TEMPORARY}*"):
                left.unlink()
            replace_file(self.config, dump_config(config).encode())
            replace_file(self.plan, (json.dumps(tree, indent=1) + "\n").encode())
            trim_metrics(self.metrics, start.position)
            store.prepare()
        except OSError as error:
            raise ConfigError(f"--run-dir {self.path}: can't be written: {error}") from None
        return store

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other launchers out of the folder for as long as this one uses it.

        Raises:
            ConfigError: where another is at work in it, or it can't be made.
        """
        descriptor = self._opened()
        try:
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _opened(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise ConfigError(
                f"--run-dir {self.path}: can't be made: {error}; choose another folder"
            ) from None

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--run-dir {self.path}: another run is at work in it") from None


def _check_blocks(checkpoint: Checkpoint, blocks: int) -> None:
    if len(checkpoint.digests) != blocks:
        raise CheckpointError(
            f"{checkpoint.path}: holds {len(checkpoint.digests)} blocks, the network has {blocks}"
        )


def _compare(before: Config, now: Config, path: Path) -> list[str]:
    """Refuse what would make another network or another sequence of batches; name the rest."""
    notes = []
    for key, values in differing_keys(before, now).items():
        old, new = map(word_for, values)
        moves_phases = now.schedule.greedy and key == "schedule.epochs"
        if key in _BOUND or moves_phases or not key.startswith(_FREE_TO_CHANGE):
            raise ConfigError(
                f"--resume: {key} is {new}, but the run in {path} began with {old}; "
                f"use --set {shlex.quote(f'{key}={old}')}, or start a new run"
            )
        notes.append(f"{key} changed from {old} to {new}")
    return notes
