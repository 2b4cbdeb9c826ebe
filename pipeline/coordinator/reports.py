"""Takes what running stages report: to the recorder, and to the person who watches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.protocol.messages import Complete, Connected, ProgressNow, Remark
from pipeline.run.events import Note, StageProgress
from pipeline.run.run import Speedometer
from pipeline.schedule.reports import PassReport, StageState, Timeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.coordinator.stages import Stages
    from pipeline.coordinator.watchdog import Watchdog
    from pipeline.protocol.addresses import Carrier
    from pipeline.run.run import Run
    from pipeline.transport.interfaces import Said

_COST_OF_FRAMES = (
    "runtime.transport tcp: what travels as frames is encrypted by CURVE, at about a tenth of the "
    "speed of a sealed stream"
)


class Reports:
    """For one run, through all its attempts."""

    def __init__(
        self, run: Run, stages: Stages, watchdog: Watchdog, clock: Callable[[], float]
    ) -> None:
        self._run, self._observer = run, run.observer
        self._stages, self._watchdog, self._clock = stages, watchdog, clock
        self._progress: dict[int, ProgressNow] = {}
        self._speedometer: Speedometer | None = None
        self._told_cost = False
        self.handlers: dict[type, Callable[[Said, Any], None]] = {
            Connected: self._on_connected,
            PassReport: self._on_report,
            StageState: self._on_state,
            Timeline: self._on_timeline,
            ProgressNow: self._on_progress,
            Remark: self._on_remark,
        }

    def begin(self, run: Run) -> None:
        """Training begins, or begins again."""
        self._run = run
        run.recorder.metrics.start_clock()
        self._speedometer = Speedometer(run, self._clock())

    def tell(self, *texts: str) -> None:
        """To the person who watches."""
        for text in texts:
            self._observer(Note(text))

    def tell_carrier(self, link: str, carrier: Carrier | None) -> None:
        """Only where it is not the best one."""
        if carrier is None or not carrier.reason:
            return
        self.tell(f"link {link}: tensors travel as {carrier.in_words()}")
        encrypted = self._run.config.runtime.transport == "tcp"
        if carrier.kind == "frames" and encrypted and not self._told_cost:
            self._told_cost = True
            self.tell(_COST_OF_FRAMES)

    def _on_connected(self, said: Said, connected: Connected) -> None:
        plan = self._run.plan.stages[said.stage]
        to = str(said.stage + 1) + " or to its team" * (plan.members > 1)
        self.tell_carrier(f"{said.stage} → {to}", connected.carrier)

    def _on_report(self, said: Said, report: PassReport) -> None:
        self._run.report(report)

    def _on_state(self, said: Said, state: StageState) -> None:
        snapshots = self._run.recorder.snapshots
        before = snapshots.newest
        self._run.recorder.snapshot(said.stage, state, said.attached)
        if snapshots.newest is not before:
            for stage in self._stages.serving:
                self._stages.say(stage, Complete(state.step))

    def _on_timeline(self, said: Said, timeline: Timeline) -> None:
        assert self._run.timeline, "its contents were checked"
        self._run.timeline.add(said.stage, timeline)

    def _on_progress(self, said: Said, progress: ProgressNow) -> None:
        self._progress[said.stage] = progress
        if said.stage == len(self._stages) - 1:
            stages = [self._progress_of(stage) for stage in sorted(self._progress)]
            assert self._speedometer, "a stage runs before the run has begun"
            self._speedometer.tell(progress.batch_id, self._clock(), stages)

    def _progress_of(self, stage: int) -> StageProgress:
        seen = self._progress[stage]
        activity = self._watchdog.activity(stage)
        return StageProgress(stage, seen.batch_id, activity, seen.busy, seen.queue, seen.tallies)

    def _on_remark(self, said: Said, remark: Remark) -> None:
        self.tell(f"{self._stages.name(said.stage)}: {remark.text}")
