"""Snapshots are written in the background: training does not wait for the disk.

    recorder ──keep──▶ [waits] ──▶ [is being written] ──▶ disk
             ◀─outcomes─────────── what became of each

There is room for one that waits. A newer one takes its place, so that a slow disk makes checkpoints
rarer, never staler, and memory holds two snapshots at most. What became of each is collected by the
thread that trains, which alone tells the person who watches.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Condition, Thread
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.storage.checkpoint import RunState


@dataclass(frozen=True, slots=True)
class Written:
    """The snapshot of `step` is complete in `path`."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class Refused:
    """The snapshot of `step` is not on the disk."""

    step: int
    error: Exception


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The snapshot of `step` gave way to a newer one: the disk is slower than they come."""

    step: int


Outcome: TypeAlias = Written | Refused | LeftOut


class SnapshotStore(Protocol):
    """Where complete snapshots go; `checkpoint_writer.CheckpointStore` is the usual one."""

    def write(self, snapshot: RunState) -> Path:
        """Keep the state of every block after `step`; says where."""


class Keeper(Protocol):
    """Sees to it that snapshots are written. Its methods are for one thread only."""

    def keep(self, snapshot: RunState) -> None:
        """Write this one; one that still waits is left out."""

    def outcomes(self) -> list[Outcome]:
        """What was finished since the last question, in order; does not wait."""

    def settle(self, timeout_s: float) -> bool:
        """Wait until nothing is left to write; False where that takes too long."""


class BackgroundKeeper:
    """Writes in a thread, which lives for as long as there is something to write."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._outcomes: deque[Outcome] = deque()
        self._changed = Condition()
        self._writing: RunState | None = None
        self._waiting: RunState | None = None
        self._writer_lives = False

    def keep(self, snapshot: RunState) -> None:
        """As `Keeper.keep`."""
        with self._changed:
            if self._writing is None:
                self._writing = snapshot
                if not self._writer_lives:
                    # a daemon: a second Ctrl-C does not wait for a disk that hangs
                    Thread(target=self._write, name="keeper", daemon=True).start()
                    self._writer_lives = True
                return
            if self._waiting is not None:
                self._outcomes.append(LeftOut(self._waiting.position.step))
            self._waiting = snapshot

    def outcomes(self) -> list[Outcome]:
        """As `Keeper.outcomes`."""
        return _take_all(self._outcomes)

    def settle(self, timeout_s: float) -> bool:
        """As `Keeper.settle`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._writing is None, timeout_s)

    def _write(self) -> None:
        while snapshot := self._current():
            self._finished(_attempt(self._store, snapshot))

    def _current(self) -> RunState | None:
        with self._changed:
            self._writer_lives = self._writing is not None
            return self._writing

    def _finished(self, outcome: Outcome) -> None:
        with self._changed:
            self._outcomes.append(outcome)
            self._writing, self._waiting = self._waiting, None
            self._changed.notify_all()


class DirectKeeper:
    """Writes every snapshot before anything else happens: for checks that look at each."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._outcomes: deque[Outcome] = deque()

    def keep(self, snapshot: RunState) -> None:
        """As `Keeper.keep`; none ever waits."""
        self._outcomes.append(_attempt(self._store, snapshot))

    def outcomes(self) -> list[Outcome]:
        """As `Keeper.outcomes`."""
        return _take_all(self._outcomes)

    def settle(self, timeout_s: float) -> bool:
        """As `Keeper.settle`; there is never anything to wait for."""
        return True


def _attempt(store: SnapshotStore, snapshot: RunState) -> Outcome:
    try:
        return Written(snapshot.position.step, store.write(snapshot))
    except Exception as error:  # handed to the thread that trains, which knows what to do
        return Refused(snapshot.position.step, error)


def _take_all(outcomes: deque[Outcome]) -> list[Outcome]:
    """Another thread may be adding meanwhile: what it adds is for the next question."""
    return [outcomes.popleft() for _ in range(len(outcomes))]
