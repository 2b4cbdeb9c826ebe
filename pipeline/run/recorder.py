"""What a run leaves: its metrics and its checkpoints. The same for single mode and the pipeline.

The disk may refuse, or be slow: training goes on. Only the end of a run waits for it, and says so
where the last state is not there.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from pipeline.errors import RunError
from pipeline.run.metrics import MetricsLog, utc_now
from pipeline.run.snapshots import Snapshots
from pipeline.schedule.best import BestSoFar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from pipeline.run.events import Observer
    from pipeline.schedule.feed import Course
    from pipeline.schedule.reports import StageState
    from pipeline.storage.background_writer import BackgroundWriter
    from pipeline.storage.checkpoint import RunState
    from pipeline.storage.folder import Folder


class Recorder:
    """Of `len(devices)` stages, whose blocks have `names`, in `folder`. Its methods, and the
    observer, are called by one thread only.

    Args:
        keep_best: whether the best weights are kept apart; "last": the newest are, as the best.
    """

    def __init__(
        self,
        folder: Folder,
        course: Course,
        devices: Sequence[str],
        names: Sequence[str],
        writer: BackgroundWriter,
        observer: Observer,
        *,
        start: RunState,
        keep_best: bool | str = True,
        tensorboard: bool = False,
        clock: Callable[[], float] = perf_counter,
        today: Callable[[], datetime] = utc_now,
    ) -> None:
        self.metrics = MetricsLog(
            folder, course, devices, names, observer, start, clock, today, tensorboard=tensorboard
        )
        self.snapshots = Snapshots(folder, len(devices), writer, observer, start)
        self._course, self._keep_best = course, keep_best
        self._kept = self._kept_at(start)

    def snapshot(self, stage: int, state: StageState, files: Sequence[bytes | memoryview]) -> None:
        """Take a stage's state. By then every stage has reported all tests before it, and the last
        stage none after it."""
        is_best = self._keep_best == "last" or (bool(self._keep_best) and self._is_best(state))
        self.snapshots.add(stage, state, files, self.metrics.best, self._kept, is_best=is_best)

    def _kept_at(self, start: RunState) -> BestSoFar:
        """Which of the tests before has its weights there; none, where the newest are."""
        return BestSoFar() if self._keep_best == "last" else start.kept

    def _is_best(self, state: StageState) -> bool:
        """Whether it is of the end of an epoch whose test was better than those of all ends of
        epochs that had a snapshot before; in greedy training, of the phase under way."""
        tested, course = self.metrics.best.tested, self._course
        if not state.epoch_reported or state.step != tested * course.steps_per_epoch:
            return False
        if self._kept.tested != tested:
            if course.learner(self._kept.epoch) != course.learner(tested):
                self._kept = BestSoFar()
            self._kept = self._kept.after(tested, self.metrics.error)
        return self._kept.epoch == tested

    def tell_written(self) -> None:
        """Report which snapshots were written, refused or left out; cheap, to be called often."""
        if self.snapshots.tell_written():  # the disk works: lines that it refused may go, too
            self.metrics.flush()

    def rewind(self, start: RunState) -> None:
        """The run begins again at `start`: at its newest snapshot, or where it began."""
        self.metrics.rewind(start)
        self._kept = self._kept_at(start)
        self.snapshots.drop_incomplete()

    def settle(self) -> None:
        """Give the disk time to take what it was given, and report: for the end of a run."""
        self.snapshots.settle()
        self.metrics.flush()

    def finish(self) -> None:
        """Wait until the newest snapshot, and every line, is on the disk.

        Raises:
            CheckpointError, TimedOutError: as `Snapshots.finish`.
            RunError: where lines are missing.
        """
        lines = self.metrics.lines
        try:
            self.snapshots.finish()
        finally:
            self.metrics.flush()
        if lines.waiting:
            on_disk = self.snapshots.on_disk()
            raise RunError(f"{lines.refusal}: {lines.waiting} lines are lost; {on_disk}")
