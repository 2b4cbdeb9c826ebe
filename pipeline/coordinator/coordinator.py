"""Feeds batches, gathers what the stages say, assembles checkpoints, replaces what is lost.

    feed thread:  items in order ──▶ link to stage 0
    main thread:  control ⇄ stages; life cycles; watch; recorder

Whatever must be ordered is in the feed (invariant 5), so the two threads need no agreement:
the main thread only ever asks the feed to end early. Where a stage is lost, the run begins again
from the newest complete snapshot: a new process takes the place of the lost one, the others go
back to what they have kept of it, and the feed to its position in the data.
"""

from __future__ import annotations

from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any

from pipeline.coordinator.feed_thread import FeedThread
from pipeline.coordinator.reports import Gathering
from pipeline.coordinator.restarts import Restarts
from pipeline.coordinator.setup import setup_of
from pipeline.coordinator.stages import Crew
from pipeline.errors import (
    ConfigError,
    NonFiniteLossError,
    StageFailedError,
    StageLostError,
    TimedOutError,
)
from pipeline.protocol.life_cycle import Phase
from pipeline.protocol.messages import (
    Bye,
    Connect,
    Failure,
    Heartbeat,
    Hello,
    Ready,
    Setup,
)
from pipeline.run.events import Waiting
from pipeline.system.sources import difference, running_code
from pipeline.transport.timeout import Timeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.coordinator.stages import End, Fleet
    from pipeline.coordinator.watchdog import Watch
    from pipeline.protocol.addresses import Carrier, LinkAddress
    from pipeline.run.run import Run
    from pipeline.transport.interfaces import ControlServer, Said, Sender

_LOOK_S = 0.1
_WAITING_EVERY_S = 2.0
_LAST_WORDS_S = 1.0
_FEED_ENDS_S = 5.0
_HEARS_S = 0.5
"""At a stretch, before it looks for trouble: somebody may talk without end."""
_ASLEEP_S = 1.0
"""Not to have looked for so long means that this process was stopped, or very busy."""


class Coordinator:
    """One pipelined run, from the workers' hello to their bye."""

    def __init__(
        self,
        run: Run,
        control: ControlServer,
        connect: Callable[[LinkAddress, Callable[[], bool]], tuple[Sender, Carrier]],
        bind: Callable[[int, int], str],
        fleet: Fleet,
        watch: Watch,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._run, self._control, self._connect, self._bind = run, control, connect, bind
        self._crew = Crew(run, control, fleet, watch, clock)
        self._watch, self._clock = watch, clock
        self._restarts = Restarts(run.config.runtime.max_restarts)
        self._addresses: dict[int, LinkAddress] = {}
        self._gathering = Gathering(run, self._crew, watch, clock)
        self._feeding: FeedThread | None = None
        self._called_off = Event()
        self._looked_at = clock()
        self._handlers: dict[type, Callable[[Said, Any], None]] = {
            Hello: self._on_hello,
            Ready: self._on_ready,
            **self._gathering.handlers,
            Heartbeat: _nothing_more,
            Failure: self._on_failure,
            Bye: self._on_bye,
        }

    def run(self) -> None:
        """Train to the end, through the loss of stages.

        Raises:
            InterruptedRunError: after the checkpoint of an interruption.
            StageFailedError: the first cause, with its own traceback.
            PipelineError: where the feed fails or a wait ends.
        """
        try:
            while not self._trained():
                pass
        finally:
            self._called_off.set()  # the feed thread sends nothing from here on
            self._gathering.tell(*self._control.rejections.summary())
        self._run.check_whole()

    def close(self) -> None:
        """Wait for the feed thread, once the workers are gone; a disk that hangs can keep it."""
        if self._feeding:
            self._feeding.end(_FEED_ENDS_S)

    def _trained(self) -> bool:
        """One attempt; false where it was lost and the next one can begin."""
        try:
            self._assemble()
            self._train()
        except StageLostError as fault:
            self._begin_again(fault)
            return False
        return True

    def _assemble(self) -> None:
        began = self._clock()
        self._wait_for(Phase.READY)
        for stage in range(len(self._crew)):
            self._crew.say(stage, Connect(self._addresses.get(stage + 1)))
        self._wait_for(Phase.RUNNING)
        if self._crew.attempt:
            step, took_s = self._run.start.position.step, self._clock() - began
            self._gathering.tell(
                f"training again after step {step}; all were back within {took_s:.1f} s"
            )

    def _train(self) -> None:
        link, carrier = self._connect(self._addresses[0], self._called_off.is_set)
        self._gathering.tell_carrier("coordinator → 0", carrier)
        self._gathering.begin(self._run)
        self._feeding = FeedThread(self._run, link, self._called_off)
        self._feeding.start()
        while not self._crew.done:
            self._pump()
            self._run.heed_interruption()

    # the loss of a stage

    def _begin_again(self, fault: StageLostError) -> None:
        """Bring every stage and the feed back to the newest complete snapshot.

        Raises:
            StageFailedError: where the run is to end instead.
            InterruptedRunError: where it was about to end anyway.
        """
        self._run.end_if_interrupted(fault.summary)
        self._check_fault(fault)
        self._end_feed()
        self._crew.attempt += 1
        before = self._run.feed.position.step
        self._run = self._run.rewound(fault.batch_id if fault.nonfinite else None)
        self._tell_loss(fault, before - self._run.start.position.step)
        kept = bool(self._run.start.files)
        self._crew.begin_again(fault.stage, lambda stage: self._setup(stage, kept=kept))

    def _check_fault(self, fault: StageLostError) -> None:
        if fault.nonfinite:
            return  # `Run.rewound` says how often that may be
        if self._restarts.came_back(fault):
            kept = self._run.keep_batch(fault.batch_id)
            raise StageFailedError(
                f"{fault.summary}; it failed there before, so this is no accident{kept}",
                fault.remote_traceback,
            )
        self._restarts.allow(fault, self._clock())

    def _end_feed(self) -> None:
        """A thread that still reads data is left to itself: it will find that it may not send."""
        self._called_off.set()
        if self._feeding:
            self._feeding.end(_FEED_ENDS_S)
        self._feeding, self._called_off = None, Event()

    def _tell_loss(self, fault: StageLostError, repeated: int) -> None:
        step, restarts = self._run.start.position.step, self._restarts
        again = f"back to step {step}, {repeated} fed steps are repeated"
        if fault.nonfinite:
            self._gathering.tell(f"{fault.summary}: {again}, {self._run.bad_batches}")
        else:
            count = f"restart {restarts.count} of {restarts.most} within an hour"
            self._gathering.tell(f"{fault.summary}: replaced; all go {again} ({count})")

    # waiting and hearing

    def _wait_for(self, phase: Phase) -> None:
        timeout = Timeout(self._run.config.runtime.start_timeout_s, self._clock)
        told = self._clock()
        while missing := self._missing(phase):
            self._pump()
            now = self._clock()
            if self._run.interrupted():
                raise self._run.interruption()
            if not timeout.next_poll_s():
                self._give_up_waiting(phase, timeout.used_s)
            if now - told > _WAITING_EVERY_S:
                told = now
                self._run.observer(Waiting(missing, timeout.used_s))
                self._crew.wake(phase)

    def _give_up_waiting(self, phase: Phase, waited_s: float) -> None:
        if self._crew.attempt:  # one that lived before may hang; another may take its place
            late = self._crew.behind(phase)[0]
            name = self._crew.name(late)
            raise StageLostError(late, f"{name} did not come back in {waited_s:.1f} s")
        missing, most_s = ", ".join(self._missing(phase)), self._run.config.runtime.start_timeout_s
        raise TimedOutError(
            f"waited {waited_s:.1f} s for {missing} (runtime.start_timeout_s {most_s:g})"
        )

    def _missing(self, phase: Phase) -> tuple[str, ...]:
        factory, building = self._run.config.model.factory, self._crew.building
        return tuple(
            f"stage {stage} on {self._crew.device(stage)}"
            + (f" (making the network with model.factory {factory})" if stage in building else "")
            for stage in self._crew.behind(phase)
        )

    def _pump(self) -> None:
        """Hear everything that has been said, then look for trouble.

        In this order: what was said while the coordinator was busy must not count as silence.
        Nor must the time in which all processes were stopped (Ctrl-Z, a suspended cluster job).
        """
        until, said = monotonic() + _HEARS_S, self._control.receive(_LOOK_S)
        while said:
            self._hear(said)
            said = self._control.receive(0.0) if monotonic() < until else None
        now = self._clock()
        if now - self._looked_at > _ASLEEP_S:
            self._watch.skip(now - self._looked_at, now)
        self._looked_at = now
        self._run.recorder.tell_written()
        self._gathering.tell(*self._control.rejections.news())
        self._look_for_trouble()

    def _hear(self, said: Said) -> None:
        if self._crew.admit(said, self._run):
            self._handlers[type(said.message)](said, said.message)

    def _look_for_trouble(self) -> None:
        for stage, end in self._crew.dead().items():
            self._hear_last_words(stage, end)
        if self._feeding:
            self._feeding.check()
            for event in self._feeding.news():
                self._run.observer(event)
        if self._starting:
            return  # the first start-up has a time-out of its own
        feed_waits = self._feeding is not None and not self._feeding.reading
        problem = self._watch.problem(
            self._clock(), feed_waits=feed_waits, silent=self._crew.building
        )
        if problem:
            stage, what = problem
            raise StageLostError(stage, f"{self._crew.name(stage)} {what}")

    @property
    def _starting(self) -> bool:
        """Nothing has been trained yet: what fails now would fail again."""
        return not (self._feeding or self._crew.attempt)

    def _hear_last_words(self, stage: int, end: End) -> None:
        """A worker that failed said why before it ended; one that was killed could not."""
        until, silent = self._clock() + _LAST_WORDS_S, end.silent
        while self._clock() < until and stage in self._crew.dead():
            said = self._control.receive(_LOOK_S)
            if said:
                self._hear(said)
            elif silent:
                break
        if stage in self._crew.dead():  # else it had left in time, or was replaced
            text = f"{self._crew.name(stage)} {end.how}"
            if end.comes_back and self._starting:
                raise StageFailedError(text, end.traceback)
            raise StageLostError(stage, text, end.traceback)

    # what stages say

    def _on_hello(self, said: Said, hello: Hello) -> None:
        self._check_code(said.stage, difference(running_code(), hello.code))
        files = self._run.start.files
        blocks = self._run.plan.stages[said.stage].blocks
        attached = [files[block] for block in blocks] if files else []
        self._crew.say(said.stage, self._setup(said.stage, kept=False), attached)

    def _setup(self, stage: int, *, kept: bool) -> Setup:
        bind = self._bind(stage, self._crew.attempt)
        return setup_of(self._run, stage, self._crew.attempt, bind, kept=kept)

    def _on_ready(self, said: Said, ready: Ready) -> None:
        self._check_code(said.stage, difference(self._run.own_code, ready.own_code, common=True))
        self._run.check_initial(ready.initial, f"the process of {self._crew.name(said.stage)}")
        self._addresses[said.stage] = ready.address

    def _on_failure(self, said: Said, failure: Failure) -> None:
        at = f" at batch {failure.batch_id}" if failure.batch_id else ""
        block = "" if failure.block is None else f", block {failure.block}"
        text = f"{self._crew.name(said.stage)}{block} failed{at}: {failure.summary}"
        if failure.misused:
            raise ConfigError(text)
        if failure.final or self._starting:
            if failure.final:  # a loss that was not finite, under `stop`
                self._run.end_if_interrupted(text)
                text += NonFiniteLossError.CURE + self._run.keep_batch(failure.batch_id)
            raise StageFailedError(text, failure.traceback)
        raise StageLostError(
            said.stage,
            text,
            failure.traceback,
            batch_id=failure.batch_id,
            nonfinite=failure.nonfinite,
        )

    def _check_code(self, stage: int, difference: str | None) -> None:
        if difference:
            raise StageFailedError(
                f"{self._crew.name(stage)} runs other code than the launcher: {difference}; files "
                "were replaced since the command was given: give it again (--resume goes on)"
            )

    def _on_bye(self, said: Said, bye: Bye) -> None:
        self._watch.gone(said.stage)


def _nothing_more(said: Said, message: object) -> None:
    """The watch has heard it."""
