"""A recorder of two stages, and what they say to it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.run.events import Note
from pipeline.run.recorder import Recorder
from pipeline.schedule.feed import Course
from pipeline.schedule.reports import PassReport, StageState, Tally, Usage
from pipeline.storage.checkpoint import RunState
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from pipeline.run.events import Event
    from pipeline.storage.background_writer import Outcome

COURSE = Course(
    epochs=3, steps_per_epoch=4, evaluation_batches=2, lr=0.5, milestones=(1,), factor=0.25
)
IMAGES = 100


@dataclass
class Writer:
    """Remembers what it was given; the test decides what becomes of it, and when."""

    given: list[RunState] = field(default_factory=list)
    results: list[Outcome] = field(default_factory=list)
    when_waited_for: list[Outcome | None] = field(default_factory=list)
    """What is finished with each wait; None: the wait was too short."""

    def write(self, state: RunState) -> None:
        self.given.append(state)

    def outcomes(self) -> list[Outcome]:
        results, self.results = self.results, []
        return results

    def settle(self, timeout_s: float) -> bool:
        if not self.when_waited_for:
            return True
        outcome = self.when_waited_for.pop(0)
        if outcome:
            self.results.append(outcome)
        return outcome is not None


class Recording:
    """A recorder of two stages (blocks 0 and 1; block 2, the output), its clock and its ear."""

    def __init__(
        self,
        folder: Path,
        course: Course = COURSE,
        start: RunState | None = None,
        *,
        keep_best: bool | str = True,
        tensorboard: bool = False,
    ) -> None:
        self.now = 100.0
        self.path = folder / "metrics.jsonl"
        self.writer = Writer()
        self.events: list[Event] = []
        self.recorder = Recorder(
            Folder.open(folder),
            course,
            ["cpu", "cuda:1"],
            ["linear 2→3", "linear 3→3", "output 3→2"],
            self.writer,
            self.events.append,
            start=start or RunState(),
            keep_best=keep_best,
            tensorboard=tensorboard,
            clock=lambda: self.now,
            today=lambda: datetime.fromtimestamp(self.now, timezone.utc),
        )

    def lines(self) -> list[dict[str, Any]]:
        return (
            list(map(json.loads, self.path.read_text().splitlines())) if self.path.exists() else []
        )

    def tell(self, *reports: PassReport) -> None:
        for report in reports:
            self.recorder.metrics.report(report)

    def tell_epoch(self, epoch: int, images: int = IMAGES, errors: int = 4) -> None:
        self.tell(trained(0, epoch, images), trained(1, epoch, images))
        self.tell(evaluated(0, epoch), evaluated(1, epoch, errors))

    def go_back(self) -> RunState:
        """To the newest snapshot, as where a stage was lost."""
        newest = self.recorder.snapshots.newest
        assert newest is not None
        self.recorder.rewind(newest)
        return newest

    def snap(self, *steps: int, reported: bool = True) -> None:
        for step in steps:
            for stage in (0, 1):
                self.say(stage, step, reported=reported)

    def say(self, stage: int, step: int, *, reported: bool = True) -> None:
        """A stage's state: blocks in order, their counters in another."""
        blocks = ((0, 1), (2,))[stage]
        tallies = tuple(Tally(block, 10, 1.0, None) for block in reversed(blocks))
        files = tuple(b"block %d" % block for block in blocks)
        self.recorder.snapshot(stage, StageState(step, 1, reported, blocks, tallies), files)

    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]


def trained(stage: int, epoch: int, images: int = IMAGES) -> PassReport:
    tallies = (
        (
            Tally(0, images, 0.5 * images, None, None, 0.75 * images),
            Tally(1, images, 0.25 * images, images // 4, float("nan"), 0.125 * images),
        ),
        (Tally(2, images, 2.0 * images, images // 2, 4.0 * images),),
    )[stage]
    return PassReport(stage, epoch, True, tallies, Usage(8.0, 6.0 + stage, 1000 + stage))


def evaluated(stage: int, epoch: int, errors: int = 4) -> PassReport:
    tallies = ((), (Tally(2, 40, 60.0, errors, 120.0),))[stage]
    confusion = ((), (20 - errors, errors, 0, 20))[stage]
    return PassReport(stage, epoch, False, tallies, Usage(1.0, 1.0, 5), confusion)


def written(step: int) -> Outcome:
    return step, Path(f"step-{step}")
