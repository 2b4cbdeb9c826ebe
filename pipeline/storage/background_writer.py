"""Checkpoints are written in the background: training does not wait for the disk.

    recorder ──write───▶ [waits] ──▶ [is being written] ──▶ disk
             ◀─outcomes──────────────────────┘

At most one waits. A newer one takes its place, so that a slow disk makes checkpoints rarer, never
staler. Only the best so far gives way to none but a better one: it waits beside the newest, so
memory holds three states at most. The thread that trains collects the outcomes: it alone
calls the observer.
"""

from __future__ import annotations

from collections import deque
from threading import Condition, Thread
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.storage.checkpoint import RunState

    Outcome: TypeAlias = tuple[int, Path | Exception | None]
    """A step, and where its state is complete, why it is not, or None: it gave way to a newer one,
    since the disk is slower than they come."""


class Store(Protocol):
    """Where states go; `checkpoint_writer.CheckpointStore` is the usual one."""

    def write(self, state: RunState) -> Path:
        """Keep the state of every block; says where."""


class BackgroundWriter:
    """Writes in a thread, which lives for as long as there is something to write. Its methods are
    for one thread only.

    Args:
        every: wait for each, so that none is left out: for checks that look at all.
    """

    def __init__(self, store: Store, *, every: bool = False) -> None:
        self._store, self._every = store, every
        self._outcomes: deque[Outcome] = deque()
        self._changed = Condition()
        self._writing: RunState | None = None
        self._waiting: list[RunState] = []

    def write(self, state: RunState) -> None:
        """Have a state written; one that still waits is left out, unless it is the best so far."""
        with self._changed:
            if self._writing is None:
                self._writing = state
                # a daemon: a second Ctrl-C does not wait for a disk that hangs
                Thread(target=self._work, name="checkpoints", daemon=True).start()
            else:
                waiting, self._waiting = self._waiting, []
                for earlier in waiting:
                    if earlier.is_best and not state.is_best:
                        self._waiting.append(earlier)
                    else:
                        self._outcomes.append((earlier.position.step, None))
                self._waiting.append(state)
        if self._every:
            self.settle(None)

    def outcomes(self) -> list[Outcome]:
        """What was finished since the last call, in order; does not wait."""
        # the thread may add more meanwhile: that is for the next call
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def settle(self, timeout_s: float | None) -> bool:
        """Wait until nothing is left to write; False where that takes too long."""
        with self._changed:
            return self._changed.wait_for(lambda: self._writing is None, timeout_s)

    def _work(self) -> None:
        state = self._writing
        while state is not None:
            result: Path | Exception
            try:
                result = self._store.write(state)
            except Exception as error:  # for the thread that trains, which knows what to do
                result = error
            self._outcomes.append((state.position.step, result))
            with self._changed:
                state = self._writing = self._waiting.pop(0) if self._waiting else None
                self._changed.notify_all()
