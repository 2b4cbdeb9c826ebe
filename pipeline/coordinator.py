"""Feeds batches, gathers what the stages say, assembles checkpoints, notices trouble.

    feed thread:  items in order ──▶ link to stage 0
    main thread:  control ⇄ stages; life cycles; watch; recorder

Whatever must be ordered is in the feed (invariant 5), so the two threads need no agreement:
the main thread only ever asks the feed to end early.
"""

from __future__ import annotations

import json
import traceback
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.carriers import ArrayPayload
from pipeline.config import config_tree
from pipeline.errors import (
    PipelineError,
    ProtocolError,
    StageFailedError,
    TimedOutError,
    one_line,
)
from pipeline.events import Note, StageProgress, Waiting
from pipeline.messages import (
    PROTOCOL_VERSION,
    Bye,
    Connect,
    Connected,
    Failure,
    Heartbeat,
    Hello,
    LinkAddress,
    ProgressNow,
    Ready,
    Report,
    Setup,
    State,
)
from pipeline.protocol import LifeCycle, Phase
from pipeline.records import StageSnapshot
from pipeline.run import Speedometer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.links import ControlServer, Said, Sender
    from pipeline.run import Run
    from pipeline.watch import Watch

_LOOK_S = 0.1
_WAITING_EVERY_S = 2.0
_LAST_WORDS_S = 1.0
_FEED_ENDS_S = 5.0
_ASLEEP_S = 1.0
"""Not to have looked for so long means that this process was stopped, or very busy."""


class Fleet(Protocol):
    """The worker processes, as far as the coordinator needs to know."""

    def dead(self) -> dict[int, str]:
        """Stages whose process has ended, each with how."""


class FeedThread(Thread):
    """Sends every item of the feed to the first stage, in order; remembers what went wrong."""

    def __init__(self, run: Run, link: Sender) -> None:
        super().__init__(name="feed", daemon=True)
        self._run, self._link = run, link
        self.error: Exception | None = None
        self.sending = False

    def run(self) -> None:
        """Thread body."""
        try:
            for item in self._run.feed:
                payloads = [ArrayPayload(array) for array in self._run.arrays(item)]
                self.sending = True
                self._link.send(item, payloads)
                self.sending = False
        except Exception as error:  # handed to the main thread, which raises it
            self.error = error
        finally:
            self._link.close()


class Coordinator:
    """One pipelined run, from the workers' hello to their bye."""

    def __init__(
        self,
        run: Run,
        control: ControlServer,
        connect: Callable[[LinkAddress, Callable[[], bool]], tuple[Sender, str]],
        bind: Callable[[int], str],
        fleet: Fleet,
        watch: Watch,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._run, self._control, self._connect, self._bind = run, control, connect, bind
        self._fleet, self._watch, self._clock = fleet, watch, clock
        self._stages = [LifeCycle(plan.stage) for plan in run.plan.stages]
        self._addresses: dict[int, LinkAddress] = {}
        self._progress: dict[int, ProgressNow] = {}
        self._speedometer: Speedometer | None = None
        self._feeding: FeedThread | None = None
        self._over = False
        self._looked_at = clock()
        self._handlers: dict[type, Callable[[Said, Any], None]] = {
            Hello: self._on_hello,
            Ready: self._on_ready,
            Connected: self._on_connected,
            Report: self._on_report,
            State: self._on_state,
            ProgressNow: self._on_progress,
            Heartbeat: self._on_heartbeat,
            Failure: self._on_failure,
            Bye: self._on_bye,
        }

    def run(self) -> None:
        """Train to the end.

        Raises:
            InterruptedRunError: after the checkpoint of an interruption.
            StageFailedError: the first cause, with its own traceback.
            PipelineError: where the feed fails or a wait ends.
        """
        try:
            self._assemble()
            self._train()
        finally:
            self._over = True  # the feed thread sends nothing from here on
        if self._run.feed.cut_short:
            raise self._run.interruption()

    def close(self) -> None:
        """Wait for the feed thread, once the workers are gone; a disk that hangs can keep it."""
        if self._feeding:
            self._feeding.join(_FEED_ENDS_S)

    def _assemble(self) -> None:
        self._wait_for(Phase.READY)
        for stage in self._stages:
            address = self._addresses.get(stage.stage + 1)
            self._say(stage.stage, Connect(address))
        self._wait_for(Phase.RUNNING)

    def _train(self) -> None:
        link, carrier = self._connect(self._addresses[0], self._is_over)
        self._note_carrier("coordinator → 0", carrier)
        self._run.recorder.start_clock()
        self._speedometer = Speedometer(self._run, self._clock())
        self._feeding = FeedThread(self._run, link)
        self._feeding.start()
        while any(stage.phase is not Phase.DONE for stage in self._stages):
            self._pump()
            self._run.heed_interruption()

    def _is_over(self) -> bool:
        return self._over

    def _wait_for(self, phase: Phase) -> None:
        began = told = self._clock()
        limit_s = self._run.config.runtime.start_timeout_s
        while missing := self._missing(phase):
            self._pump()
            now = self._clock()
            if self._run.interrupted():
                raise self._run.interruption()
            if now - began > limit_s:
                raise TimedOutError(f"waited {now - began:.1f} s for {', '.join(missing)}")
            if now - told > _WAITING_EVERY_S:
                told = now
                self._run.observer(Waiting(missing, now - began))

    def _missing(self, phase: Phase) -> tuple[str, ...]:
        return tuple(
            f"stage {stage.stage} on {self._run.plan.stages[stage.stage].device}"
            for stage in self._stages
            if stage.phase.value < phase.value
        )

    def _pump(self) -> None:
        """Hear everything that has been said, then look for trouble.

        In this order: what was said while the coordinator was busy must not count as silence.
        Nor must the time in which all processes were stopped (Ctrl-Z, a suspended cluster job).
        """
        said = self._control.receive(_LOOK_S)
        while said:
            self._hear(said)
            said = self._control.receive(0.0)
        now = self._clock()
        if now - self._looked_at > _ASLEEP_S:
            self._watch.skip(now - self._looked_at, now)
        self._looked_at = now
        self._look_for_trouble()

    def _hear(self, said: Said) -> None:
        if said.stage >= len(self._stages):
            raise ProtocolError(f"a stage {said.stage} spoke; the plan has {len(self._stages)}")
        handler = self._handlers.get(type(said.message))
        if handler is None:
            raise ProtocolError(f"stage {said.stage} sent {type(said.message).__name__}")
        self._stages[said.stage].on(said.message)
        if self._stages[said.stage].phase is not Phase.DONE:
            self._watch.heard(said.stage, self._clock())
        handler(said, said.message)

    def _look_for_trouble(self) -> None:
        for stage, how in self._fleet.dead().items():
            if self._stages[stage].phase is not Phase.DONE:
                self._hear_last_words(stage, how)
        if self._feeding and self._feeding.error:
            self._raise_feed_error(self._feeding.error)
        if self._feeding is None:
            return  # start-up has a time-out of its own
        problem = self._watch.problem(self._clock(), feed_waits=self._feeding.sending)
        if problem:
            stage, what = problem
            raise StageFailedError(f"{self._name(stage)} {what}")

    def _raise_feed_error(self, error: Exception) -> None:
        if isinstance(error, PipelineError):
            raise error
        text = "".join(traceback.format_exception(error))
        raise StageFailedError(f"the feed failed: {one_line(error)}", text) from error

    def _hear_last_words(self, stage: int, how: str) -> None:
        """A worker that failed said why before it ended; one that was killed could not."""
        until = self._clock() + _LAST_WORDS_S
        while self._clock() < until and self._stages[stage].phase is not Phase.DONE:
            said = self._control.receive(_LOOK_S)
            if said:
                self._hear(said)
        if self._stages[stage].phase is not Phase.DONE:
            raise StageFailedError(f"{self._name(stage)} {how}")

    def _on_hello(self, said: Said, hello: Hello) -> None:
        if (hello.run, hello.protocol) != (self._run.id, PROTOCOL_VERSION):
            raise ProtocolError(
                f"stage {said.stage} is of run {hello.run} (protocol {hello.protocol}), "
                f"this is run {self._run.id} (protocol {PROTOCOL_VERSION})"
            )
        plan, start = self._run.plan.stages[said.stage], self._run.start
        setup = Setup(
            config=json.dumps(config_tree(self._run.config)),
            facts=self._run.batches.facts,
            blocks=plan.blocks,
            device=plan.device,
            bind=self._bind(plan.stage),
            resumed=bool(start.files),
            last_batch_id=start.position.step,
            epoch=self._run.feed.course.epoch_of(start.position.step),
            tallies=tuple(tally for tally in start.tallies if tally.block in plan.blocks),
            max_in_flight=self._run.config.runtime.max_in_flight,
            progress_interval_s=self._run.progress_interval_s,
        )
        self._say(plan.stage, setup, [start.files[block] for block in plan.blocks if start.files])

    def _on_ready(self, said: Said, ready: Ready) -> None:
        self._addresses[said.stage] = ready.address

    def _on_connected(self, said: Said, connected: Connected) -> None:
        self._note_carrier(f"{said.stage} → {said.stage + 1}", connected.carrier)

    def _note_carrier(self, link: str, carrier: str) -> None:
        if carrier.startswith("frames"):
            self._run.observer(Note(f"link {link}: tensors travel as {carrier}"))

    def _on_report(self, said: Said, report: Report) -> None:
        self._run.recorder.report(report.report)

    def _on_state(self, said: Said, state: State) -> None:
        self._run.recorder.snapshot(
            StageSnapshot(
                stage=said.stage,
                step=state.step,
                epoch=state.epoch,
                epoch_reported=state.epoch_reported,
                blocks=state.blocks,
                files=said.attached,
                tallies=state.tallies,
            )
        )

    def _on_progress(self, said: Said, progress: ProgressNow) -> None:
        self._progress[said.stage] = progress
        if said.stage == len(self._stages) - 1:
            stages = [self._stage_progress(stage) for stage in sorted(self._progress)]
            assert self._speedometer, "a stage runs before the run has begun"
            self._speedometer.tell(progress.batch_id, self._clock(), stages)

    def _on_heartbeat(self, said: Said, heartbeat: Heartbeat) -> None:
        if self._stages[said.stage].phase is not Phase.DONE:
            self._watch.heard(said.stage, self._clock(), heartbeat)

    def _on_failure(self, said: Said, failure: Failure) -> None:
        at = f" at batch {failure.batch_id}" if failure.batch_id else ""
        block = "" if failure.block is None else f", block {failure.block}"
        raise StageFailedError(
            f"{self._name(said.stage)}{block} failed{at}: {failure.summary}", failure.traceback
        )

    def _on_bye(self, said: Said, bye: Bye) -> None:
        self._watch.gone(said.stage)

    def _stage_progress(self, stage: int) -> StageProgress:
        seen = self._progress[stage]
        phase = self._watch.phase(stage)
        return StageProgress(stage, seen.batch_id, phase, seen.busy, seen.queue, seen.tallies)

    def _say(
        self, stage: int, message: Setup | Connect, attached: list[bytes] | None = None
    ) -> None:
        self._stages[stage].on(message)
        self._control.send(stage, message, attached or [])

    def _name(self, stage: int) -> str:
        plan = self._run.plan.stages[stage]
        first, last = plan.blocks[0], plan.blocks[-1]
        blocks = f"block {first}" if first == last else f"blocks {first}–{last}"
        return f"stage {stage} ({blocks}, {plan.device})"
