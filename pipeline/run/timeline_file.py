"""trace.json: where the time of a run's first batches went, for Perfetto and chrome://tracing.

It is written when the last stage has handed over what it has recorded; where a stage is lost, or
the run ends before, with what there is. A disk that refuses it ends nothing.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from pipeline.run.events import Note
from pipeline.storage.atomic import reason, replace_in
from pipeline.timeline.chrome import Row, chrome_events
from pipeline.timeline.spans import SpanRecorder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.planning.plan import Plan, StagePlan
    from pipeline.run.events import Observer
    from pipeline.schedule.reports import ClockReading, Timeline
    from pipeline.storage.folder import Folder

TRACE = "trace.json"


class TimelineFile:
    """Gathers the timelines of all stages of a plan, and that of the feed.

    It is for one thread; only `feed` is used by the one that feeds.

    Args:
        after: the step that the run begins after.
        batches: how many are recorded from there on.
    """

    def __init__(
        self, folder: Folder, plan: Plan, after: int, batches: int, observer: Observer
    ) -> None:
        self._folder, self._plan, self._observer = folder, plan, observer
        self._after, self.until = after, after + batches
        self.feed = SpanRecorder(self.until)
        """Of who reads the batches and sends them to the first stage."""
        self._stages: dict[int, Timeline] = {}
        self._cut_short = self._told = ""
        self._is_written = False

    def add(self, stage: int, timeline: Timeline) -> None:
        """What a stage has recorded."""
        self._stages[stage] = timeline
        self._is_written = False
        if self._is_whole or self._cut_short:
            self._write()

    def cut_short(self, why: str) -> None:
        """A stage was lost: what it had recorded is, too, and the others go on without."""
        if not self._is_whole:
            self.feed.stop()
            self._cut_short = self._cut_short or why

    def finish(self) -> None:
        """The run has ended, in whatever way."""
        self.cut_short("the run ended before every stage had handed over what it had recorded")
        if not self._is_written:
            self._write()

    @property
    def _is_whole(self) -> bool:
        return len(self._stages) == self._plan.n_stages

    def _write(self) -> None:
        timelines = (self.feed.taken(), *self._stages.values())
        if not any(timeline.began_s for timeline in timelines):
            return  # it ended before it began
        path = self._folder.path / TRACE
        try:
            replace_in(self._folder, TRACE, self._text(timelines[0]).encode())
        except OSError as error:
            why = reason(error, self._folder)
            self._tell(f"{path}: can't be written: {why}; training goes on without it")
            return
        self._is_written = True
        lacks = f" (cut short: {self._cut_short})" if self._cut_short else ""
        self._tell(f"{path}: where the time went; open it at https://ui.perfetto.dev{lacks}")

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._observer(Note(text))

    def _text(self, feed: Timeline) -> str:
        here, stages = feed.clock, self._plan.stages
        rows = [Row(len(stages), "feed", "reads batches for stage 0", feed)]
        rows += [
            Row(
                plan.stage,
                f"stage {plan.stage}",
                f"{plan.device} · {plan.blocks_in_words}",
                self._stages[plan.stage],
            )
            for plan in stages
            if plan.stage in self._stages
        ]
        found = chrome_events(rows, here)
        events = ",\n".join(json.dumps(event, ensure_ascii=False) for event in found)
        other = json.dumps(self._other(here, rows), ensure_ascii=False)
        return f'{{"traceEvents": [\n{events}\n],\n"otherData": {other}}}\n'

    def _other(self, here: ClockReading, rows: Sequence[Row]) -> dict[str, Any]:
        """What the events don't say."""
        written = datetime.fromtimestamp(here.wall_s, timezone.utc)
        return {
            "written": written.isoformat(timespec="seconds"),
            "batches": [self._after + 1, self.until],
            "stages": [self._of_stage(plan, here) for plan in self._plan.stages],
            "full": [row.name for row in rows if row.timeline.is_full],
            "cut_short": self._cut_short,
        }

    def _of_stage(self, plan: StagePlan, here: ClockReading) -> dict[str, Any]:
        """`recorded`: whether its spans are here; `clock`: how they were brought to the others'."""
        timeline = self._stages.get(plan.stage)
        known = {"stage": plan.stage, "device": plan.device, "blocks": list(plan.blocks)}
        if timeline is None:
            return {**known, "recorded": False}
        shared = timeline.clock.identity == here.identity
        return {
            **known,
            "recorded": True,
            "clock": "the same" if shared else "aligned by wall clocks",
            "computing_by": "CUDA events" if timeline.device_at else "the host's clock",
        }
