"""One run: configuration, data, feed, start and observer; single mode and the pipeline share it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConfigError, CutShortError, InterruptedRunError, PipelineError
from pipeline.run.bad_batches import BadBatchSearch
from pipeline.run.events import Note, Progress, StageProgress
from pipeline.schedule.feed import Feed
from pipeline.schedule.items import EvaluationBatch, TrainBatch
from pipeline.storage.atomic import replace_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.config.sections import Config
    from pipeline.data.batches import Batches
    from pipeline.planning.plan import Plan
    from pipeline.run.events import Observer
    from pipeline.run.recorder import Recorder
    from pipeline.run.timeline_file import TimelineFile
    from pipeline.schedule.items import Item
    from pipeline.schedule.reports import Fingerprint, PassReport
    from pipeline.storage.checkpoint import RunState
    from pipeline.storage.folder import Folder


@dataclass(frozen=True, slots=True)
class Run:
    """One run. `interrupted` is asked between items; `id` tells runs on one machine apart."""

    id: str
    config: Config
    plan: Plan
    batches: Batches
    feed: Feed
    start: RunState
    recorder: Recorder
    observer: Observer
    interrupted: Callable[[], bool] = lambda: False
    judge: Callable[[int], bool] | None = None
    """Asked of each epoch that has been reported: whether the run ends with it."""
    progress_interval_s: float = 0.0
    folder: Folder | None = None
    """The run directory, for what is left for inspection."""
    most_file_bytes: int = 1 << 36
    """No block file is larger."""
    own_code: tuple[str, ...] = ()
    """Of a user's modules, as `sources.own_code` gave it when the network was planned."""
    initial: tuple[Fingerprint, ...] = ()
    """What every process must find the blocks of a user's own network to be at first."""
    most_sent_bytes: int = 0
    """That are on their way between processes at once: a batch on every link, or all states."""
    bad_batches: BadBatchSearch = field(default_factory=BadBatchSearch)
    """What `runtime.on_nonfinite: rollback` has left out, and how closely stages look."""
    timeline: TimelineFile | None = None
    """Takes what is recorded of the first batches, where that was asked for."""

    def report(self, report: PassReport) -> None:
        """Take a stage's counters; what tests show may end the feed."""
        self.recorder.metrics.report(report)
        metrics = self.recorder.metrics
        ended = self.judge is not None and metrics.written > 0 and self.judge(metrics.written)
        self.feed.hear(metrics.best, judged=metrics.written, ended=ended)

    def heed_interruption(self) -> None:
        """End the feed, once, if the person or the cluster asked for it."""
        if self.interrupted() and not self.feed.interrupted:
            self.feed.interrupt()
            self.observer(Note("interrupted: finishing what is under way, writing a checkpoint"))

    def interruption(self) -> InterruptedRunError:
        """What to raise once the run has been interrupted; names the step that is on the disk.

        Raises:
            RunError: as `Recorder.finish`, where the last state is not.
        """
        self.recorder.finish()
        saved = self.recorder.snapshots.last_checkpoint
        if saved is None:
            return InterruptedRunError(self.start.position.step, saved=False)
        return InterruptedRunError(saved)

    def check_whole(self) -> None:
        """After the stop marker: whether the whole course was fed.

        Raises:
            InterruptedRunError: after the checkpoint of an interruption.
            CutShortError: after that of a feed which an item has ended.
            RunError: as `Recorder.finish`.
        """
        failure = self.feed.failure
        if failure is not None:
            self.recorder.metrics.report_untested()
            raise CutShortError(failure, self.interruption().step)
        if self.feed.cut_short:
            raise self.interruption()
        if self.feed.ended_early:
            self.recorder.finish()  # what that has to say comes before the last line
            course, best = self.feed.course, self.feed.best
            epoch, why = course.epoch_of(self.feed.position.step), "a callback"
            if course.is_enough(best):
                why = f"schedule.patience {course.patience}: {best.in_words()}"
            self.observer(
                Note(f"ended early, after epoch {epoch} of {course.all_epochs}, by {why}")
            )

    def end_if_interrupted(self, fault: str) -> None:
        """A run that was about to end does so where a fault comes first: nothing is tried again.

        Raises:
            InterruptedRunError: naming the newest snapshot, which is from before the fault.
        """
        if self.interrupted():
            self.observer(Note(f"{fault}; the run was to end, and goes back to nothing any more"))
            raise self.interruption()

    def rewound(self, nonfinite: int | None = None) -> Run:
        """The run as it begins again from its newest complete snapshot, or from its start.

        Args:
            nonfinite: the batch at which a loss or a state was found not to be finite, where that
                is why.

        Raises:
            StageFailedError: where leaving out batches does not help.
        """
        start = self.recorder.snapshots.newest or self.start
        self.recorder.rewind(start)
        step, course = start.position.step, self.feed.course
        search = self.bad_batches
        if step != self.start.position.step:
            search = replace(search, tries=0)
        if nonfinite is not None:
            search = search.after(nonfinite, step, course)
        feed = Feed(
            course,
            start.position,
            best=start.best,
            left_out=search.left_out,
            is_judged=self.judge is not None,
        )
        return replace(self, start=start, feed=feed, bad_batches=search)

    def check_initial(self, found: Sequence[Fingerprint], who: str) -> None:
        """Every process makes a user's own network for itself: `who` must have made the same.

        Raises:
            ConfigError: naming the first tensor that starts otherwise.
        """
        whose = ", ".join(f"{key} {name}" for key, name in self.config.user_code.items())
        expected = {(each.block, each.tensor): each.digest for each in self.initial}
        for each in found:
            if expected and expected.get((each.block, each.tensor)) != each.digest:
                raise ConfigError(
                    f"{whose}: block {each.block}: {each.tensor} "
                    f"starts otherwise in {who} than where the run was started: it must "
                    "give the same network in every process, so draw initial weights from "
                    "torch.rand, numpy.random.rand or random.random, whose seed is set, and depend "
                    "on no process id, time or order of sets"
                )

    def arrays(self, item: Item) -> tuple[NDArray[np.generic], ...]:
        """Examples (n, *shape) and targets (n, *target_shape) of a batch; nothing for a marker."""
        if isinstance(item, TrainBatch):
            return self.batches.train(
                item.epoch, (item.batch_id - 1) % self.batches.steps_per_epoch
            )
        if isinstance(item, EvaluationBatch):
            return self.batches.evaluation(item.batch_id - 1)
        return ()

    def keep_batch(self, batch_id: int) -> str:
        """Leave a training batch as a file; says where, as the end of a sentence."""
        if self.folder is None:
            return ""
        steps = self.batches.steps_per_epoch
        epoch, index = (batch_id - 1) // steps + 1, (batch_id - 1) % steps
        name, file = f"batch-{batch_id:08d}.npz", BytesIO()
        try:
            images, labels = self.batches.train(epoch, index)
            np.savez_compressed(file, images=images, labels=labels)
            replace_in(self.folder, name, file.getvalue())
        except (OSError, PipelineError) as error:  # what went wrong with the batch matters more
            return f"; the batch can't be kept for inspection: {error}"
        return f"; the batch, before augmentation: {self.folder.path / name}"


class Speedometer:
    """Turns steps and times into `Progress` events."""

    def __init__(self, run: Run, now: float) -> None:
        self._run = run
        self._now, self._step = now, run.start.position.step

    def tell(self, step: int, now: float, stages: Sequence[StageProgress]) -> None:
        """A look at the run: `step` steps have left the last stage."""
        passed_s, images = now - self._now, (step - self._step) * self._run.batches.batch_size
        self._now, self._step = now, step
        course = self._run.feed.course
        epoch = max(1, course.epoch_of(step))
        self._run.observer(
            Progress(
                epoch=epoch,
                step=step,
                lr=course.learning_rate(step),
                images_per_s=images / passed_s if passed_s > 0 else 0.0,
                stages=tuple(stages),
            )
        )
