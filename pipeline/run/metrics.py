"""metrics.jsonl: one line per epoch, written when the last stage has reported it; and beside it
confusion.jsonl, a line for each test that could tell which classes are taken for which."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from math import isfinite
from typing import TYPE_CHECKING, Any

from pipeline.run.event_files import EventFiles
from pipeline.run.events import EpochDone, Note
from pipeline.run.mirrors import Mirror
from pipeline.run.table import Table
from pipeline.schedule.reports import rows_of, summed
from pipeline.storage.line_log import LineLog, json_lines, trim_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.run.events import Observer
    from pipeline.run.mirrors import Form
    from pipeline.schedule.feed import Course, Position
    from pipeline.schedule.reports import PassReport, Tally
    from pipeline.storage.checkpoint import RunState
    from pipeline.storage.folder import Folder

METRICS_FILE = "metrics.jsonl"
CONFUSION_FILE = "confusion.jsonl"
_MOST_CONFUSIONS_WAITING = 100


class MetricsLog:
    """Puts the reports of `len(devices)` stages together, of a run that begins at `start`.

    Args:
        names: of the blocks, in order.
        clock: seconds; `today`: the time of day.
    """

    def __init__(
        self,
        folder: Folder,
        course: Course,
        devices: Sequence[str],
        names: Sequence[str],
        observer: Observer,
        start: RunState,
        clock: Callable[[], float],
        today: Callable[[], datetime],
        *,
        tensorboard: bool = False,
    ) -> None:
        self._course, self._devices, self._names = course, devices, names
        self._today = today
        self._observer, self._clock = observer, clock
        self._reports: dict[tuple[int, bool], dict[int, PassReport]] = {}
        self._seconds: dict[int, float] = {}
        self._images_before = _images_counted(start)
        self.best = start.best
        """What all tests so far have shown."""
        self.error: float | None = None
        """Of the last of them, as `best` has it."""
        self.written = 0
        """The last epoch with a line."""
        self._began = clock()
        self.lines = LineLog(folder, METRICS_FILE, lambda text: observer(Note(text)))
        # of the same disk, which says so for metrics.jsonl
        self._confusions = LineLog(
            folder, CONFUSION_FILE, lambda text: None, most=_MOST_CONFUSIONS_WAITING
        )
        forms: list[Form] = [Table(folder)]
        if tensorboard:
            forms.append(EventFiles(folder, CONFUSION_FILE))
        self._mirrors = [
            Mirror(folder, METRICS_FILE, form, self._is_refused, lambda text: observer(Note(text)))
            for form in forms
        ]

    def _is_refused(self) -> bool:
        return self.lines.refusal is not None

    def start_clock(self) -> None:
        """Training begins now; what came before was start-up."""
        for mirror in self._mirrors:
            mirror.complete(anew=True)
        self._began = self._clock()

    def report(self, report: PassReport) -> None:
        """Take a stage's counters; write the epoch's line when it is complete."""
        reports = self._reports.setdefault((report.epoch, report.training), {})
        reports[report.stage] = report
        if report.stage == len(self._devices) - 1:  # until then an epoch lasts, without its test
            now = self._clock()
            if report.training:
                self._seconds[report.epoch] = now - self._began
            self._began = now
        trained = not report.epoch or self._has_all(report.epoch, training=True)
        tests = self._course.evaluates(report.epoch)
        if trained and (not tests or self._has_all(report.epoch, training=False)):
            self._write_line(report.epoch)

    def report_untested(self) -> None:
        """Write the lines of epochs whose test did not come to its end, since the run ends before;
        they give way to whole ones when it goes on."""
        for epoch in [epoch for epoch, training in self._reports if training]:
            if self._has_all(epoch, training=True):
                self._write_line(epoch)

    def rewind(self, start: RunState) -> None:
        """Forget what was said after `start`, where the run now begins again, and drop the lines
        that will be written again."""
        self._reports.clear()
        self._seconds.clear()
        self._images_before = _images_counted(start)
        self.best, self.written = start.best, 0
        for log in (self.lines, self._confusions):
            log.trim(lambda line: _stays(line, start.position))
        self.start_clock()

    def flush(self) -> None:
        """Try again what the disk refused."""
        self.lines.flush()
        self._confusions.flush()
        for mirror in self._mirrors:
            mirror.complete()

    def _has_all(self, epoch: int, training: bool) -> bool:
        return len(self._reports.get((epoch, training), ())) == len(self._devices)

    def _write_line(self, epoch: int) -> None:
        trained, evaluated = self._take(epoch, training=True), self._take(epoch, training=False)
        line = self._line(epoch, trained, evaluated)
        part, test = tested(line)
        if epoch and test:
            predicts = test["error_pct"] is not None
            self.error = test["error_pct" if predicts else "loss"]
            self.best = self.best.after(epoch, self.error)
        # of a team, all have some; of a pipeline, the stage that is tested
        confusions = zip(*(said.confusion for said in evaluated if said.confusion), strict=True)
        confusion = rows_of([sum(counts) for counts in confusions])
        if confusion:
            at = {"event": "confusion", "epoch": epoch, "step": line["step"], "part": part}
            counted = json.dumps({**at, "confusion": confusion}, separators=(",", ":"))
            self._confusions.append(counted)
        self.lines.append(json.dumps(line))
        for mirror in self._mirrors:
            mirror.add(line, confusion)
        self.written = epoch
        self._observer(EpochDone(line, confusion))

    def _take(self, epoch: int, *, training: bool) -> list[PassReport]:
        reports = self._reports.pop((epoch, training), {})
        return [reports[stage] for stage in sorted(reports)]

    def _line(
        self, epoch: int, trained: list[PassReport], tested: list[PassReport]
    ) -> dict[str, Any]:
        tallies = summed(tally for report in trained for tally in report.tallies)
        seconds, learner = self._seconds.pop(epoch, 0.0), self._course.learner(epoch)
        counted = max((tally.images for tally in tallies), default=0) - self._images_before
        images = counted / self._course.predictions
        self._images_before = 0
        step = epoch * self._course.steps_per_epoch
        return {
            "event": "epoch",
            "epoch": epoch,
            "step": step,
            "time": self._today().isoformat(timespec="milliseconds"),
            "lr": self._course.learning_rate(step),
            **({"learner": learner} if learner is not None else {}),
            # blocks after the learner, as frozen ones, have nothing to tell
            "train": _summary([t for t in tallies if learner is None or t.block <= learner]),
            self._course.tests_on: self._test(
                summed(tally for report in tested for tally in report.tallies)
            ),
            "blocks": [
                {"block": tally.block, "name": self._names[tally.block], **_means(tally)}
                for tally in tallies
            ],
            "images_per_s": round(images / seconds, 1) if seconds > 0 else None,
            "seconds": round(seconds, 3),
            "stages": [
                {
                    "stage": report.stage,
                    "device": self._devices[report.stage],
                    "busy": round(report.usage.busy, 4),
                    "peak_memory_bytes": report.usage.peak_memory_bytes,
                }
                for report in trained
            ],
        }

    def _test(self, tallies: Sequence[Tally]) -> dict[str, Any] | None:
        found = _summary(tallies)
        if found is None or not self._course.tests_every_depth:
            return found
        depths = [
            {"block": tally.block, "error_pct": tally.error_pct}
            for tally in tallies
            if tally.errors is not None
        ]
        return {**found, "depths": depths}


def epoch_lines_in(run: Folder) -> list[dict[str, Any]]:
    """What the metrics of a run say of each trained epoch; lines that are damaged are left out.

    Raises:
        OSError: where the file can't be read.
    """
    lines = json_lines(run, METRICS_FILE)
    # epoch 0 is a test before training
    return [line for line in lines if line.get("event") == "epoch" and line.get("epoch")]


def last_phase(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of the lines of epochs those of the newest phase of greedy training, since in each another
    block's classifier is tested; else all."""
    return [line for line in lines if line.get("learner") == lines[-1].get("learner")]


def tested(line: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which part a line of metrics was tested on, `test` or `validation`, and its loss and error,
    perhaps by depth; empty where it was not tested."""
    part = "validation" if "validation" in line else "test"
    return part, line.get(part) or {}


def trim_metrics(folder: Folder, position: Position) -> None:
    """Drop the lines that a resumed run will write again: those after its position.

    Raises:
        OSError: where the disk refuses.
    """
    for name in (METRICS_FILE, CONFUSION_FILE):
        trim_lines(folder, name, lambda line: _stays(line, position))


def _stays(line: str, position: Position) -> bool:
    try:
        step = int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line that a crash left half written
        return False
    reported = position.epoch_reported and position.step > 0
    return step < position.step or (step == position.step and reported)


def _images_counted(start: RunState) -> int:
    """Images of the epoch under way that were trained before the place to go on from."""
    if start.position.epoch_reported:
        return 0
    return max((tally.images for tally in summed(start.tallies)), default=0)


def _summary(tallies: Sequence[Tally]) -> dict[str, float | None] | None:
    """Losses and error of the output block, which is the last."""
    return _means(tallies[-1]) if tallies else None


def _means(tally: Tally) -> dict[str, float | None]:
    return {
        "loss": _number(tally.loss),
        "error_pct": tally.error_pct,
        "cross_entropy": _number(tally.cross_entropy),
        "similarity": _number(tally.similarity),
    }


def utc_now() -> datetime:
    """The time of day, which says that it is UTC."""
    return datetime.now(timezone.utc)


def _number(value: float | None) -> float | None:
    """JSON has no infinities: a loss that is not finite is null."""
    return value if value is not None and isfinite(value) else None
