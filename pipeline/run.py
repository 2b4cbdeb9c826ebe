"""What is to be done, and whom to tell: the same for single mode and the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import InterruptedRunError
from pipeline.events import Note, Progress, StageProgress
from pipeline.inband import EvaluationBatch, TrainBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.checkpoint import StartState
    from pipeline.config import Config
    from pipeline.data import Batches
    from pipeline.events import Observer
    from pipeline.feed import Feed
    from pipeline.inband import Item
    from pipeline.plan import Plan
    from pipeline.recorder import Recorder


def never() -> bool:
    """Nobody interrupts."""
    return False


@dataclass(frozen=True, slots=True)
class Run:
    """One run. `interrupted` is asked between items; `id` tells runs on one machine apart."""

    id: str
    config: Config
    plan: Plan
    batches: Batches
    feed: Feed
    start: StartState
    recorder: Recorder
    observer: Observer
    interrupted: Callable[[], bool] = never
    progress_interval_s: float = 0.0

    def heed_interruption(self) -> None:
        """End the feed, once, if the person or the cluster asked for it."""
        if self.interrupted() and not self.feed.interrupted:
            self.feed.interrupt()
            self.observer(Note("interrupted: finishing what is under way, writing a checkpoint"))

    def interruption(self) -> InterruptedRunError:
        """What to raise once the run has been interrupted."""
        saved, start = self.recorder.last_checkpoint, self.start
        if saved is not None:
            return InterruptedRunError(saved)
        return InterruptedRunError(start.position.step, saved=bool(start.files))

    def arrays(self, item: Item) -> tuple[NDArray[np.generic], ...]:
        """(uint8 images (n, C, H, W), int64 labels (n,)) of a batch; nothing for a marker."""
        if isinstance(item, TrainBatch):
            return self.batches.train(
                item.epoch, (item.batch_id - 1) % self.batches.steps_per_epoch
            )
        if isinstance(item, EvaluationBatch):
            return self.batches.evaluation(item.batch_id - 1)
        return ()


class Speedometer:
    """Turns steps and times into what the person who watches sees."""

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
                lr=course.learning_rate(epoch),
                images_per_s=images / passed_s if passed_s > 0 else 0.0,
                stages=tuple(stages),
            )
        )
