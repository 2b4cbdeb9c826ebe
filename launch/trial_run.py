"""The trial run of `--measure`: the planned pipeline trains for some seconds, as a run does.

A prediction is made of blocks that were measured alone. What stages cost each other on one CPU,
through its caches, its memory and its clock, and what the hops between them take, only a pipeline
shows.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from launch.engines.interrupts import interrupts_noted
from launch.plan.cost_cache import keep_crowded_speed
from launch.training import carry_out, make_run
from pipeline.data.batches import Batches
from pipeline.data.facts import data_facts
from pipeline.data.noise import noise_like
from pipeline.data.parts import Arrays
from pipeline.errors import ConfigError, InterruptedRunError
from pipeline.run.events import EpochDone
from pipeline.schedule.feed import Course
from pipeline.seeding import Purpose, generator
from pipeline.storage.background_writer import BackgroundWriter
from pipeline.storage.checkpoint import RunState
from pipeline.storage.folder import Folder
from pipeline.storage.line_log import LineLog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launch.job import Job
    from pipeline.coordinator.engine import Engine
    from pipeline.run.events import Event

SECONDS, EPOCHS = 5.0, 3
"""What is measured at least."""
_EPOCH_S = 0.5
"""About so long is an epoch of the trial, at whose end the last stage says that it is there."""
_BATCHES = 2
"""That there are: the same ones, again and again."""
_NEVER = 1 << 40
"""In epochs and in steps; the trial is interrupted long before."""


class _Nowhere:
    """Takes the snapshot of an interruption, which nobody goes on from."""

    def write(self, state: RunState) -> Path:
        return Path("nowhere")


class _Unread(LineLog):
    """The lines of epochs, of which the stopwatch takes what there is to know."""

    def append(self, line: str) -> None:
        """Nothing is written, and nothing waits for a disk."""


class _Stopwatch:
    """Adds up epochs, but for those that begin before `warm_up` steps are done."""

    def __init__(self, warm_up: int) -> None:
        self._warm_up, self._step = warm_up, 0
        self.epochs, self.seconds = 0, 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochDone):
            if self._step >= self._warm_up:
                self.epochs += 1
                self.seconds += event.metrics["seconds"]
            self._step = event.metrics["step"]

    @property
    def done(self) -> bool:
        return self.epochs >= EPOCHS and self.seconds >= SECONDS


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial run has shown: images/s, and why that can't be kept for later predictions."""

    images_per_s: float
    not_kept: str = ""


def trial_run(job: Job, engine: Engine | None) -> Trial:
    """What the plan reaches with batches of noise of the data set's shape, at a learning rate of
    0. However it ends, it leaves nothing behind but, of several stages on a CPU, how much they slow
    each other down, in the file of measured costs.

    Args:
        job: whose block times are known.
        engine: None is single mode.

    Raises:
        PipelineError: what ended the trial before its time.
        KeyboardInterrupt: where it was interrupted.
    """
    assert job.known_speed, "its blocks have been measured"
    config, slots = job.config, job.config.runtime.max_in_flight
    plan = job.plan if engine else job.plan.in_one_process()
    plain = replace(job.known_speed.timing, feed_s=0.0, crowded_speed=1.0)
    expected = plain.prospect(plan, slots).images_per_s
    steps = max(1, round(_EPOCH_S * expected / config.data.batch_size))
    course = Course(_NEVER, steps, 0, lr=0.0, eval_every_epochs=0, checkpoint_every_steps=_NEVER)
    watch = _Stopwatch(warm_up=plan.n_stages)  # until there is a batch in each
    with _deleted_folder() as folder, interrupts_noted() as asked:
        writer = BackgroundWriter(_Nowhere())
        run = make_run(job, folder, RunState(), _batches(job), course, writer, watch)
        run.recorder.metrics.lines = _Unread(folder, "nowhere", lambda text: None)
        try:
            # no batch is left for inspection: it is noise
            run = replace(run, folder=None, interrupted=lambda: watch.done or asked())
            carry_out(run, engine)
        except InterruptedRunError:
            if asked():
                raise KeyboardInterrupt from None
    speed = watch.epochs * steps * config.data.batch_size / watch.seconds
    # what members of a team exchange, or processes that take turns, says nothing of a pipeline
    is_pipeline = engine is not None and all(stage.members == 1 for stage in plan.stages)
    if is_pipeline and plan.n_stages > 1 and plan.stages[0].device == "cpu":
        try:
            keep_crowded_speed(config, job.specs, speed / expected)
        except ConfigError as error:
            return Trial(speed, str(error))
    return Trial(speed)


@contextmanager
def _deleted_folder() -> Iterator[Folder]:
    """A folder that takes nothing: even a trial that is killed leaves nothing in its place."""
    path = Path(mkdtemp(prefix="pipeline-trial-"))
    with Folder.open(path) as folder:
        path.rmdir()
        yield folder


def _batches(job: Job) -> Batches:
    """As large as the configured ones; whether these are there does not matter."""
    data, seed = job.config.data, job.config.runtime.seed
    facts = data_facts(data, job.own_data)
    x, y = noise_like(facts, _BATCHES * data.batch_size, generator(seed, Purpose.IMAGES))
    return Batches(facts, data.batch_size, seed, Arrays(x, y), Arrays(x[:0], y[:0]), None)
