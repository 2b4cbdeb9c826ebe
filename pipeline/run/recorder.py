"""Puts together what the stages say: one metrics line per epoch, one checkpoint per snapshot.

The same for single mode and the pipeline. Stages report at different times; a line or a
checkpoint is written when the last of them has spoken.

The disk may refuse, or be slow: training goes on. Snapshots are written by the keeper, which the
recorder asks what became of them; metrics lines that could not be written are kept. Only the end
of a run waits for the disk, and says so where its last state is not there.
"""

from __future__ import annotations

import json
from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pipeline.errors import CheckpointError, RunError, TimedOutError
from pipeline.run.events import CheckpointWritten, EpochDone, Note, Waiting
from pipeline.schedule.feed import Position
from pipeline.storage.background_writer import LeftOut, Written
from pipeline.storage.checkpoint import RunState
from pipeline.storage.line_log import LineFile, trim_lines
from pipeline.storage.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from pipeline.run.events import Observer
    from pipeline.schedule.feed import Course
    from pipeline.schedule.reports import PassReport, StageState, Tally
    from pipeline.storage.background_writer import Keeper, Outcome
    from pipeline.storage.folder import Folder

    Bytes: TypeAlias = bytes | memoryview

METRICS_FILE = "metrics.jsonl"
_LOOK_S = 2.0
_LONGEST_WAIT_S = 600.0
"""For a disk that neither takes the last checkpoint nor refuses it."""


class Recorder:
    """Collects reports and snapshots of `len(devices)` stages, of a run that began at `start`.

    The lines go into `metrics.jsonl` in `folder`. Its methods, and the observer, are called by one
    thread only.
    """

    def __init__(
        self,
        folder: Folder,
        course: Course,
        devices: Sequence[str],
        keeper: Keeper,
        observer: Observer,
        *,
        start: RunState,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._folder, self._course, self._devices = folder, course, devices
        self._keeper, self._observer, self._clock = keeper, observer, clock
        self._reports: dict[tuple[int, bool], dict[int, PassReport]] = {}
        self._snapshots: dict[int, dict[int, tuple[StageState, Sequence[Bytes]]]] = {}
        self._first_tallies = start.tallies
        self._images_before = _images_counted(start.position.epoch_reported, start.tallies)
        self._began = clock()
        self._seconds: dict[int, float] = {}
        self._patience_s = _LONGEST_WAIT_S
        self._some_left_out = False
        self._lines = LineFile(folder, METRICS_FILE, self.note)
        self._trouble = Trouble(
            self.note,
            meanwhile="training goes on, and the next snapshot tries again",
            over="checkpoints are written again",
        )
        self.newest: RunState | None = None
        """The newest complete snapshot, on the disk or not: what a run goes back to."""
        self.last_checkpoint = start.position.step if start.files else None
        """The step of the newest checkpoint that is on the disk."""

    def start_clock(self) -> None:
        """Training begins now; what came before was start-up."""
        self._began = self._clock()

    def report(self, report: PassReport) -> None:
        """Take a stage's counters; write the epoch's line when it is complete."""
        self.tell_written()
        reports = self._reports.setdefault((report.epoch, report.training), {})
        reports[report.stage] = report
        if report.stage == len(self._devices) - 1:
            self._stop_watch(report)
        if len(reports) == len(self._devices) and self._complete(report.epoch):
            self._write_line(report.epoch)

    def report_untested(self) -> None:
        """Write the lines of epochs whose test did not come to its end, since the run ends before;
        they give way to whole ones when it goes on."""
        trained = [
            epoch
            for (epoch, training), reports in self._reports.items()
            if training and len(reports) == len(self._devices)
        ]
        for epoch in trained:
            self._write_line(epoch)

    def snapshot(self, stage: int, state: StageState, files: Sequence[Bytes]) -> None:
        """Take a stage's state; have the checkpoint written when every stage's is there."""
        snapshots = self._snapshots.setdefault(state.step, {})
        snapshots[stage] = (state, files)
        if len(snapshots) == len(self._devices):
            self.newest = _assembled(self._snapshots.pop(state.step))
            self._keeper.keep(self.newest)
        self.tell_written()

    def tell_written(self) -> None:
        """Tell what became of snapshots handed over earlier; cheap, to be called often."""
        for outcome in self._keeper.outcomes():
            self._tell(outcome)

    def rewind(self, position: Position) -> None:
        """Forget what was said after `position`, where the run now begins again: that of the
        newest complete snapshot, or, before the first, of the run's start.

        Lines that will be written again are dropped. Whatever stages say from here on must be of
        the new attempt.
        """
        self._reports.clear()
        self._snapshots.clear()
        self._seconds.clear()
        tallies = self._first_tallies if self.newest is None else self.newest.tallies
        self._images_before = _images_counted(position.epoch_reported, tallies)
        self._lines.trim(lambda line: _stays(line, position))
        self.start_clock()

    def settle(self) -> None:
        """Give the disk time to take what it was given, and tell: a run ends, however."""
        asked = self._clock()
        while self._patience_s > 0 and not self._keeper.settle(_LOOK_S):
            now = self._clock()
            self._patience_s -= _LOOK_S
            self._observer(Waiting(("the disk",), now - asked))
        self.tell_written()
        self._lines.flush()

    def finish(self) -> None:
        """Wait until the newest snapshot, and every line, is on the disk.

        Raises:
            CheckpointError: where the newest snapshot is not, naming folder, reason and the last
                good checkpoint.
            RunError: where lines are missing.
            TimedOutError: where the disk neither takes the snapshot nor refuses it.
        """
        self.settle()
        if self.newest and self._trouble.reason:
            self._keeper.keep(self.newest)  # the disk may have healed since
            self.settle()
        if self._patience_s <= 0:
            raise TimedOutError(f"waited {_LONGEST_WAIT_S:.0f} s for the disk; {self._on_disk()}")
        if self.newest and self._trouble.reason:
            raise CheckpointError(
                f"{self._trouble.reason}: the last checkpoint, of step "
                f"{self.newest.position.step}, is lost; {self._on_disk()}"
            )
        if self._lines.kept:
            raise RunError(
                f"{self._lines.trouble}: {self._lines.kept} lines are lost; {self._on_disk()}"
            )

    def _on_disk(self) -> str:
        if self.last_checkpoint is None or self._folder.deleted:
            return "there is no complete checkpoint"
        return f"the newest complete checkpoint is of step {self.last_checkpoint}"

    def _tell(self, outcome: Outcome) -> None:
        if isinstance(outcome, Written):
            self.last_checkpoint = outcome.step
            self._trouble.over()
            self._observer(CheckpointWritten(outcome.path, outcome.step))
            self._lines.flush()
        elif isinstance(outcome, LeftOut):
            self._tell_left_out(outcome)
        elif isinstance(outcome.error, CheckpointError):
            self._trouble.refused(str(outcome.error))
        else:
            raise outcome.error

    def _tell_left_out(self, outcome: LeftOut) -> None:
        if not self._some_left_out:
            self.note(
                f"the disk is slower than snapshots come: that of step {outcome.step} was left "
                "out for a newer one, and others may be"
            )
        self._some_left_out = True

    def note(self, text: str) -> None:
        """Tell the person who watches."""
        self._observer(Note(text))

    def _stop_watch(self, report: PassReport) -> None:
        """An epoch lasts until the last stage has trained it; tests are not counted."""
        now = self._clock()
        if report.training:
            self._seconds[report.epoch] = now - self._began
        self._began = now

    def _complete(self, epoch: int) -> bool:
        needed = [True] if epoch else []
        if self._course.evaluates(epoch):
            needed.append(False)
        return all(
            len(self._reports.get((epoch, training), ())) == len(self._devices)
            for training in needed
        )

    def _write_line(self, epoch: int) -> None:
        trained = _in_order(self._reports.pop((epoch, True), {}))
        tested = _in_order(self._reports.pop((epoch, False), {}))
        line = self._line(epoch, trained, tested)
        self._lines.append(json.dumps(line))
        self._observer(EpochDone(line))

    def _line(
        self, epoch: int, trained: list[PassReport], tested: list[PassReport]
    ) -> dict[str, Any]:
        tallies = [tally for report in trained for tally in report.tallies]
        seconds, learner = self._seconds.pop(epoch, 0.0), self._course.learner(epoch)
        images = max((tally.images for tally in tallies), default=0) - self._images_before
        self._images_before = 0
        return {
            "event": "epoch",
            "epoch": epoch,
            "step": epoch * self._course.steps_per_epoch,
            "lr": self._course.learning_rate(epoch),
            **({"learner": learner} if learner is not None else {}),
            "train": _summary(tallies),
            "test": _summary([tally for report in tested for tally in report.tallies]),
            "blocks": [
                {"block": tally.block, "loss": _number(tally.loss), "error_pct": tally.error_pct}
                for tally in tallies
            ],
            "images_per_s": round(images / seconds, 1) if seconds > 0 else None,
            "seconds": round(seconds, 3),
            "stages": [self._stage(report) for report in trained],
        }

    def _stage(self, report: PassReport) -> dict[str, Any]:
        return {
            "stage": report.stage,
            "device": self._devices[report.stage],
            "busy": round(report.usage.busy, 4),
            "peak_memory_bytes": report.usage.peak_memory_bytes,
        }


def trim_metrics(folder: Folder, position: Position) -> None:
    """Drop the lines that a resumed run will write again: those after its position.

    Raises:
        OSError: where the disk refuses.
    """
    trim_lines(folder, METRICS_FILE, lambda line: _stays(line, position))


def _stays(line: str, position: Position) -> bool:
    try:
        step = int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line that a crash left half written
        return False
    reported = position.epoch_reported and position.step > 0
    return step < position.step or (step == position.step and reported)


def _in_order(reports: dict[int, PassReport]) -> list[PassReport]:
    return [reports[stage] for stage in sorted(reports)]


def _images_counted(epoch_reported: bool, tallies: Sequence[Tally]) -> int:
    """Images of the epoch under way that were trained before the place to go on from."""
    return 0 if epoch_reported else max((tally.images for tally in tallies), default=0)


def _assembled(snapshots: Mapping[int, tuple[StageState, Sequence[Bytes]]]) -> RunState:
    states = [state for state, _ in snapshots.values()]
    files = {
        block: file
        for state, files in snapshots.values()
        for block, file in zip(state.blocks, files, strict=True)
    }
    tallies = sorted(
        (tally for state in states for tally in state.tallies), key=lambda tally: tally.block
    )
    position = Position(states[0].step, states[0].epoch_reported)
    return RunState(position, files, tuple(tallies))


def _summary(tallies: Sequence[Tally]) -> dict[str, float | None] | None:
    """Loss and error of the output block, which is the last."""
    if not tallies:
        return None
    return {"loss": _number(tallies[-1].loss), "error_pct": tallies[-1].error_pct}


def _number(value: float | None) -> float | None:
    """JSON has no infinities: a loss that is not finite is null."""
    return value if value is not None and isfinite(value) else None
