"""What a run leaves: its metrics and its checkpoints. The same for single mode and the pipeline.

The disk may refuse, or be slow: training goes on. Only the end of a run waits for it, and says so
where the last state is not there.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from pipeline.errors import RunError
from pipeline.run.metrics import MetricsLog
from pipeline.run.snapshots import Snapshots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.run.events import Observer
    from pipeline.schedule.feed import Course
    from pipeline.schedule.reports import StageState
    from pipeline.storage.background_writer import BackgroundWriter
    from pipeline.storage.checkpoint import RunState
    from pipeline.storage.folder import Folder


class Recorder:
    """Of `len(devices)` stages, in `folder`. Its methods, and the observer, are called by one
    thread only."""

    def __init__(
        self,
        folder: Folder,
        course: Course,
        devices: Sequence[str],
        writer: BackgroundWriter,
        observer: Observer,
        *,
        start: RunState,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.metrics = MetricsLog(folder, course, devices, observer, start, clock)
        self.snapshots = Snapshots(folder, len(devices), writer, observer, start)

    def snapshot(self, stage: int, state: StageState, files: Sequence[bytes | memoryview]) -> None:
        """Take a stage's state. By then every stage has reported all tests before it, and the last
        stage none after it."""
        self.snapshots.add(stage, state, files, self.metrics.best)

    def tell_written(self) -> None:
        """Report which snapshots were written, refused or left out; cheap, to be called often."""
        if self.snapshots.tell_written():  # the disk works: lines that it refused may go, too
            self.metrics.lines.flush()

    def rewind(self, start: RunState) -> None:
        """The run begins again at `start`: at its newest snapshot, or where it began."""
        self.metrics.rewind(start)
        self.snapshots.drop_incomplete()

    def settle(self) -> None:
        """Give the disk time to take what it was given, and report: for the end of a run."""
        self.snapshots.settle()
        self.metrics.lines.flush()

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
            lines.flush()
        if lines.waiting:
            on_disk = self.snapshots.on_disk()
            raise RunError(f"{lines.refusal}: {lines.waiting} lines are lost; {on_disk}")
