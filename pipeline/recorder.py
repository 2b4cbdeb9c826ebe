"""Puts together what the stages say: one metrics line per epoch, one checkpoint per snapshot.

The same for single mode and the pipeline. Stages report at different times; a line or a
checkpoint is written when the last of them has spoken.
"""

from __future__ import annotations

import json
from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.events import CheckpointWritten, EpochDone
from pipeline.records import RunSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pipeline.events import Observer
    from pipeline.feed import Course, Position
    from pipeline.records import PassReport, StageSnapshot, Tally

METRICS_FILE = "metrics.jsonl"


class SnapshotStore(Protocol):
    """Where complete snapshots go; `checkpoint.CheckpointStore` is the usual one."""

    def write(self, snapshot: RunSnapshot) -> Path:
        """Keep the state of every block after `step`; says where."""


class Recorder:
    """Collects reports and snapshots of `len(devices)` stages."""

    def __init__(
        self,
        metrics_path: Path,
        course: Course,
        devices: Sequence[str],
        store: SnapshotStore,
        observer: Observer,
        *,
        images_before: int = 0,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._metrics_path, self._course, self._devices = metrics_path, course, devices
        self._store, self._observer, self._clock = store, observer, clock
        self._reports: dict[tuple[int, bool], dict[int, PassReport]] = {}
        self._snapshots: dict[int, dict[int, StageSnapshot]] = {}
        self._images_before = images_before
        self._began = clock()
        self._seconds: dict[int, float] = {}
        self.last_checkpoint: int | None = None

    def start_clock(self) -> None:
        """Training begins now; what came before was start-up."""
        self._began = self._clock()

    def report(self, report: PassReport) -> None:
        """Take a stage's counters; write the epoch's line when it is complete."""
        reports = self._reports.setdefault((report.epoch, report.training), {})
        reports[report.stage] = report
        if report.stage == len(self._devices) - 1:
            self._stop_watch(report)
        if len(reports) == len(self._devices) and self._complete(report.epoch):
            self._write_line(report.epoch)

    def snapshot(self, snapshot: StageSnapshot) -> None:
        """Take a stage's state; write the checkpoint when every stage's is there.

        Raises:
            OSError: where the disk refuses.
        """
        snapshots = self._snapshots.setdefault(snapshot.step, {})
        snapshots[snapshot.stage] = snapshot
        if len(snapshots) == len(self._devices):
            self._write_checkpoint(list(self._snapshots.pop(snapshot.step).values()))

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
        with self._metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._observer(EpochDone(line))

    def _line(
        self, epoch: int, trained: list[PassReport], tested: list[PassReport]
    ) -> dict[str, Any]:
        tallies = [tally for report in trained for tally in report.tallies]
        seconds = self._seconds.pop(epoch, 0.0)
        images = tallies[-1].images - self._images_before if tallies else 0
        self._images_before = 0
        return {
            "event": "epoch",
            "epoch": epoch,
            "step": epoch * self._course.steps_per_epoch,
            "lr": self._course.learning_rate(epoch),
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

    def _write_checkpoint(self, snapshots: list[StageSnapshot]) -> None:
        first = snapshots[0]
        files = {
            block: file
            for snapshot in snapshots
            for block, file in zip(snapshot.blocks, snapshot.files, strict=True)
        }
        tallies = _tallies_in_order(snapshots)
        whole = RunSnapshot(first.step, first.epoch, first.epoch_reported, files, tallies)
        path = self._store.write(whole)
        self.last_checkpoint = first.step
        self._observer(CheckpointWritten(path, first.step))


def trim_metrics(path: Path, position: Position) -> None:
    """Drop the lines that a resumed run will write again: those after its position."""
    if not path.exists():
        return
    kept = [
        line for line in path.read_text(encoding="utf-8").splitlines() if _stays(line, position)
    ]
    aside = path.with_name(f".writing-{path.name}")
    aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    aside.replace(path)


def _stays(line: str, position: Position) -> bool:
    try:
        step = int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line that a crash left half written
        return False
    reported = position.epoch_reported and position.step > 0
    return step < position.step or (step == position.step and reported)


def _in_order(reports: dict[int, PassReport]) -> list[PassReport]:
    return [reports[stage] for stage in sorted(reports)]


def _tallies_in_order(snapshots: Iterable[StageSnapshot]) -> tuple[Tally, ...]:
    tallies = [tally for snapshot in snapshots for tally in snapshot.tallies]
    return tuple(sorted(tallies, key=lambda tally: tally.block))


def _summary(tallies: Sequence[Tally]) -> dict[str, float | None] | None:
    """Loss and error of the output block, which is the last."""
    if not tallies:
        return None
    return {"loss": _number(tallies[-1].loss), "error_pct": tallies[-1].error_pct}


def _number(value: float | None) -> float | None:
    """JSON has no infinities: a loss that is not finite is null."""
    return value if value is not None and isfinite(value) else None
