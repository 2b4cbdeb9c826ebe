"""Trains a checked job: reads its data, prepares the run directory, opens log and view, and hands
the run to the pipeline's session or to single mode.

Importing this imports numpy; torch comes with the workers, or with single mode.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from launch.display.plain_view import open_log
from launch.display.streams import lost_output, wait_for_no_reader
from launch.display.view import open_view, reading_shown
from launch.engines.interrupts import interrupts_noted
from launch.plan.known_speed import cautions
from launch.plan.user_code import awaited
from launch.run_directory import IMAGES
from launch.same_data import check_same_data, list_files
from pipeline.data.batches import load_batches
from pipeline.data.facts import check_data
from pipeline.errors import InterruptedRunError, cut, one_line
from pipeline.run.events import Detail, Note, RunStarted, ignore
from pipeline.run.recorder import Recorder
from pipeline.run.run import Run
from pipeline.run.timeline_file import TimelineFile
from pipeline.schedule.feed import Feed, course_of
from pipeline.storage.background_writer import BackgroundWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from launch.job import Job, ViewKind
    from launch.run_directory import HeldRun
    from pipeline.coordinator.engine import Engine
    from pipeline.data.batches import Batches
    from pipeline.data.facts import DataFacts
    from pipeline.data.record import DataRecord
    from pipeline.run.events import Event, Observer, Watcher
    from pipeline.schedule.feed import Course
    from pipeline.storage.checkpoint import RunState
    from pipeline.storage.folder import Folder

_PROGRESS_EVERY_S = 0.5
_FILE_OVERHEAD_BYTES = 1 << 24


def train(
    job: Job,
    held: HeldRun,
    origin: tuple[RunState, Sequence[str]],
    engine: Engine | None,
    *,
    view: ViewKind,
    begun: Callable[[], None] = lambda: None,
    watcher: Watcher | None = None,
    trace: int = 0,
) -> tuple[RunState, DataFacts]:
    """Train a job in its run directory, shown as `view`.

    Args:
        held: the run directory, looked at since it is held.
        origin: what to start from, and notes on that.
        engine: None is single mode.
        begun: called once the run directory is ready, before training.
        watcher: is told all that the view is, by this thread.
        trace: how many batches are recorded, for `trace.json`.

    Returns:
        The state that it ended with; the facts of its data, mean and deviation included.

    Raises:
        PipelineError: what ended the run, an interruption included; it is in the log, too.
    """
    start, notes = origin
    wait_for_no_reader()
    data, console = job.config.data, Console()
    with reading_shown(view, console) as show_reading:
        batches = load_batches(data, job.config.runtime.seed, show_reading, job.own_data)
    course = course_of(job.config, job.specs, batches.steps_per_epoch, batches.evaluation_batches)
    record = batches.record(data.name)
    notes = [*notes, *_checked(job, held, start, batches, record)]
    store = held.prepare(
        job,
        start,
        course.steps_per_epoch,
        single=engine is None,
        data=record,
        facts=batches.facts,
        files=list_files(batches),
    )
    writer = BackgroundWriter(store)
    try:
        begun()
        with (
            open_view(view, console) as show,
            open_log(held.folder, show) as log,
            interrupts_noted() as interrupted,
        ):
            observer = _all_of(log, show, console, watcher or ignore)
            judge = watcher.is_enough if watcher else None
            run = replace(
                make_run(job, held.folder, start, batches, course, writer, observer, judge),
                interrupted=lambda: interrupted() or (watcher is not None and watcher.has_failed()),
                progress_interval_s=0.0 if view == "quiet" else _PROGRESS_EVERY_S,
                timeline=TimelineFile(held.folder, job.plan, start.position.step, trace, observer)
                if trace
                else None,
            )
            observer(_started(job, held.path, run, linked=engine is not None))
            for note in notes:
                observer(Note(note))
            for bad in batches.left_out:
                log(Note(f"left out: {bad.path}: {bad.why}"))
            _carry_out_logged(run, engine, log)
            return run.recorder.snapshots.newest or start, batches.facts
    finally:
        if writer.settle(0.0):  # else it may yet write: the folder stays locked
            store.close()


def _checked(
    job: Job, held: HeldRun, start: RunState, batches: Batches, record: DataRecord
) -> list[str]:
    """Check the examples, now that they are read; gives what is to be said before training.

    Raises:
        ConfigError: where they are not those that the run began with, or the network can't take
            them.
    """
    data = job.config.data
    notes = check_same_data(start, batches, record, data, held.path / IMAGES)
    # files that can't be read may have been left out
    check_data(data, batches.facts, batch_norm=any(spec.normalises for spec in job.specs))
    return [*notes, *_notes(job, held, batches, record)]


def _notes(job: Job, held: HeldRun, batches: Batches, record: DataRecord) -> Iterator[str]:
    """What to say of the data, the plan and the run directory before training."""
    data, facts = job.config.data, batches.facts
    title = data.factory or data.file or data.name
    yield record.summary(title)
    if data.is_own:
        yield (
            f"data {title}: examples are {facts.dtype} of shape {facts.shape}, "
            f"targets {facts.target_dtype} of shape {facts.target_shape}"
        )
    yield from record.gaps(title)
    yield from batches.notes
    if bad := batches.left_out:
        yield (
            f"data.on_bad_image skip: left out as they can't be decoded: {len(bad)} image "
            f"file{'s' * (len(bad) > 1)}, {bad[0].path} first ({bad[0].why}); run.log lists all"
        )
    if data.normalise != "known":
        mean, std = cut(str(list(facts.mean)), 200), cut(str(list(facts.std)), 200)
        yield f"data.normalise measured: mean {mean}, standard deviation {std}"
    yield from cautions(job)
    if not held.locked:
        yield (
            "the file system of the run directory has no locks: nothing keeps another command "
            "from changing it meanwhile"
        )


def _carry_out_logged(run: Run, engine: Engine | None, log: Observer) -> None:
    try:
        carry_out(run, engine)
    except InterruptedRunError as error:
        log(Note(str(error)))
        raise
    except KeyboardInterrupt:
        log(Note("interrupted once more: ended at once"))
        raise
    except Exception as error:
        log(Note(f"failed: {one_line(error)}"))
        raise


def make_run(
    job: Job,
    folder: Folder,
    start: RunState,
    batches: Batches,
    course: Course,
    writer: BackgroundWriter,
    observer: Observer,
    judge: Callable[[int], bool] | None = None,
) -> Run:
    """A run of `job` that writes its metrics into `folder` and its snapshots with `writer`."""
    recorder = Recorder(
        folder,
        course,
        [stage.device for stage in job.plan.stages],
        [spec.name for spec in job.specs],
        writer,
        observer,
        start=start,
        keep_best=job.config.runtime.keep_best,
        tensorboard=job.config.runtime.tensorboard,
    )
    return Run(
        id=secrets.token_hex(8),
        config=job.config,
        plan=job.plan,
        batches=batches,
        feed=Feed(course, start.position, best=start.best, is_judged=judge is not None),
        judge=judge,
        start=start,
        recorder=recorder,
        observer=observer,
        folder=folder,
        own_code=job.own_code,
        initial=job.rehearsal.initial if job.rehearsal else (),
        most_file_bytes=2 * max(cost.state_bytes for cost in job.costs) + _FILE_OVERHEAD_BYTES,
        # at once: a batch on every link, or the states of all stages
        most_sent_bytes=max(sum(_received_bytes(job)), sum(cost.state_bytes for cost in job.costs)),
    )


def carry_out(run: Run, engine: Engine | None) -> None:
    """Train to the end, on `engine` or, without one, in this process, and wait for the disk.

    Raises:
        PipelineError: what ended the run, an interruption included; or, as `Recorder.finish`
            says, that its last state could not be saved.
    """
    try:
        if engine is None:
            from pipeline.single import SingleTrainer

            with awaited(run.config.user_code, "before the first step"):
                trainer = SingleTrainer(run)
            trainer.run()
        else:
            from pipeline.coordinator.session import run_pipeline

            run_pipeline(run, engine)
    except Exception:  # however a run ends, the snapshots it has taken are worth saving
        run.recorder.settle()
        raise
    finally:
        if run.timeline:
            run.timeline.finish()
    run.recorder.finish()


def _started(job: Job, path: Path, run: Run, *, linked: bool) -> RunStarted:
    names = [spec.name for spec in job.specs]
    return RunStarted(
        config_name=job.name,
        run_dir=path,
        stages=tuple(
            (stage.device, tuple((block, names[block]) for block in stage.blocks))
            for stage in job.plan.stages
        ),
        epochs=run.feed.course.all_epochs,
        steps_per_epoch=run.feed.course.steps_per_epoch,
        step=run.start.position.step,
        received_bytes=_received_bytes(job) if linked else (),
    )


def _received_bytes(job: Job) -> tuple[int, ...]:
    facts, n = job.facts, job.config.data.batch_size
    return job.plan.received_bytes(job.costs, n, facts.example_bytes, facts.target_bytes)


def _all_of(log: Observer, show: Observer, console: Console, watch: Observer) -> Observer:
    """`log`, `watch`, and `show` for as long as its console's output is taken; then the log says
    so."""

    def observer(event: Event) -> None:
        log(event)
        if isinstance(event, Detail):
            return
        if not console.quiet:
            show(event)
            if lost := lost_output(console.file):
                console.quiet = True
                log(Note(f"{lost}: nothing is shown any more, training goes on"))
        watch(event)

    return observer
