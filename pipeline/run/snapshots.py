"""Puts the states of all stages together, and has them written as checkpoints.

Stages reach a snapshot's marker at different times; it is complete when the last of them has. The
disk may refuse it, or be slow: training goes on, and the next snapshot tries again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from pipeline.errors import CheckpointError, RunError, TimedOutError
from pipeline.run.events import CheckpointWritten, Note, Waiting
from pipeline.schedule.feed import Position
from pipeline.schedule.reports import digest_of
from pipeline.storage.checkpoint import RunState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.run.events import Observer
    from pipeline.schedule.best import BestSoFar
    from pipeline.schedule.reports import StageState
    from pipeline.storage.background_writer import BackgroundWriter
    from pipeline.storage.folder import Folder

    Part: TypeAlias = tuple[StageState, Sequence[bytes | memoryview]]

_LOOK_S = 2.0
_LONGEST_WAIT_S = 600.0
"""For a disk that neither takes the last checkpoint nor refuses it."""


class Snapshots:
    """Those of a run of so many stages, which began at `start`."""

    def __init__(
        self,
        folder: Folder,
        stages: int,
        writer: BackgroundWriter,
        observer: Observer,
        start: RunState,
    ) -> None:
        self._folder, self._stages, self._writer, self._observer = folder, stages, writer, observer
        self._parts: deque[dict[int, Part]] = deque()
        """Of snapshots that are not complete, the oldest first. Two may be of one step: the end of
        an epoch, and of a run that is interrupted there."""
        self._disk_wait_s = _LONGEST_WAIT_S
        self._some_left_out = False
        self._refusal = ""
        self._best_not_written: RunState | None = None
        """The best so far, as long as the disk does not have it."""
        self._best_refused = False
        self.newest: RunState | None = None
        """The newest complete snapshot, on the disk or not: what a run goes back to."""
        self.last_checkpoint = start.position.step if start.files else None
        """The step of the newest checkpoint that is on the disk."""

    def add(
        self,
        stage: int,
        state: StageState,
        files: Sequence[bytes | memoryview],
        best: BestSoFar,
        kept: BestSoFar,
        *,
        is_best: bool,
    ) -> None:
        """Take a stage's state; have the checkpoint written when every stage's is there, with what
        the tests before it have shown (`RunState`)."""
        # a stage comes to all of them in order, so this state is of the first that lacks it
        parts = next((parts for parts in self._parts if stage not in parts), None)
        if parts is None:
            self._parts.append(parts := {})
        parts[stage] = state, files
        cuts = {(state.step, state.epoch_reported) for state, _ in parts.values()}
        assert len(cuts) == 1, f"one snapshot at {sorted(cuts)}"
        if len(parts) == self._stages:
            self._parts.popleft()
            in_order = [parts[stage] for stage in sorted(parts)]
            _check_alike(parts)
            tallies = [tally for state, _ in in_order for tally in state.tallies]
            self.newest = RunState(
                Position(state.step, state.epoch_reported),
                {
                    block: file
                    for state, files in in_order
                    if not state.digest
                    for block, file in zip(state.blocks, files, strict=True)
                },
                tuple(sorted(tallies, key=lambda tally: tally.block)),
                best=best,
                kept=kept,
                is_best=is_best,
            )
            if is_best:
                self._best_not_written, self._best_refused = self.newest, False
            self._write_newest()

    def _write_newest(self) -> None:
        """And, where the disk has refused it, the best so far once more."""
        best, newest = self._best_not_written, self.newest
        assert newest is not None
        if best is not None and best is not newest and self._best_refused:
            self._writer.write(best)
        self._writer.write(newest)

    def drop_incomplete(self) -> None:
        """For a run that begins again: states of the old attempt must not mix with the new."""
        self._parts.clear()

    def tell_written(self) -> bool:
        """Report what was written, refused or left out; whether a checkpoint was written."""
        before = self.last_checkpoint
        for step, result in self._writer.outcomes():
            best = self._best_not_written
            is_best = best is not None and step == best.position.step
            if result is None:
                if not self._some_left_out:
                    self._note(
                        f"the disk is slower than snapshots come: that of step {step} was left "
                        "out for a newer one, and others may be"
                    )
                self._some_left_out = True
            elif isinstance(result, CheckpointError):
                if str(result) != self._refusal:
                    self._note(f"{result}; training goes on, and the next snapshot tries again")
                self._refusal = str(result)
                self._best_refused |= is_best
            elif isinstance(result, Exception):
                raise result
            else:
                if self._refusal:
                    self._note("checkpoints are written again")
                self.last_checkpoint, self._refusal = max(step, self.last_checkpoint or 0), ""
                if is_best:
                    self._best_not_written, self._best_refused = None, False
                self._observer(CheckpointWritten(result, step))
        return self.last_checkpoint != before

    def settle(self) -> None:
        """Give the disk time to take what it was given, and report."""
        waited_s = 0.0
        while self._disk_wait_s > 0 and not self._writer.settle(_LOOK_S):
            self._disk_wait_s -= _LOOK_S
            waited_s += _LOOK_S
            self._observer(Waiting(("the disk",), waited_s))
        self.tell_written()

    def finish(self) -> None:
        """Wait until the newest is on the disk.

        Raises:
            CheckpointError: where it is not, naming folder, reason and the last good checkpoint.
            TimedOutError: where the disk neither takes it nor refuses it.
        """
        self.settle()
        if self.newest and (self._refusal or self._best_refused):
            self._write_newest()  # the disk may have healed since
            self.settle()
        if self._disk_wait_s <= 0:
            raise TimedOutError(f"waited {_LONGEST_WAIT_S:.0f} s for the disk; {self.on_disk()}")
        if self.newest and self._refusal:
            raise CheckpointError(
                f"{self._refusal}: the last checkpoint, of step {self.newest.position.step}, "
                f"is lost; {self.on_disk()}"
            )

        if self._best_not_written is not None:
            step = self._best_not_written.position.step
            self._note(f"the checkpoint of the best test, of step {step}, is not on the disk")

    def on_disk(self) -> str:
        """What can be resumed from, as the end of a sentence."""
        if self.last_checkpoint is None or self._folder.deleted:
            return "there is no complete checkpoint"
        return f"the newest complete checkpoint is of step {self.last_checkpoint}"

    def _note(self, text: str) -> None:
        self._observer(Note(text))


def _check_alike(parts: Mapping[int, Part]) -> None:
    """Members of a team hold the same, bit for bit.

    Raises:
        RunError: where one does not.
    """
    digests = {
        state.blocks: digest_of(files)
        for state, files in parts.values()
        if not state.digest
        and any(state.blocks == other.blocks for other, _ in parts.values() if other.digest)
    }
    for stage, (state, _) in parts.items():
        if state.digest and state.digest != digests[state.blocks]:
            raise RunError(
                f"process {stage} holds other weights than the first of its team after step "
                f"{state.step}: they were to be equal bit for bit; do all run on the same kind of "
                "processor, with the same libraries? The checkpoint before is sound"
            )
