"""Feeds batches, gathers what the stages say, assembles checkpoints, replaces what is lost.

    feed thread:  items in order ──▶ link to stage 0
    main thread:  control ⇄ stages; life cycles; watchdog; recorder

Whatever must be ordered is in the feed (invariant 5), so the two threads need no agreement:
the main thread only ever asks the feed to end early. Where a stage is lost, the run begins again
from the newest complete snapshot: a new process takes the place of the lost one, the others go
back to what they have kept of it, and the feed to its position in the data.
"""

from __future__ import annotations

from collections import deque
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any

from pipeline.coordinator.assembly import Assembly
from pipeline.coordinator.feed_thread import FeedThread
from pipeline.coordinator.reports import Reports
from pipeline.coordinator.restarts import Restarts
from pipeline.coordinator.stages import Stages
from pipeline.errors import ConfigError, NonFiniteLossError, StageFailedError, StageLostError
from pipeline.protocol.messages import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.coordinator.engine import End, Workers
    from pipeline.coordinator.watchdog import Watchdog
    from pipeline.protocol.addresses import Carrier, LinkAddress
    from pipeline.run.run import Run
    from pipeline.transport.interfaces import ControlServer, Said, Sender

_POLL_S = 0.1
_LAST_WORDS_S = 1.0
_FEED_ENDS_S = 5.0
_HEARS_S = 0.5
"""Spent on messages before lost stages are looked for: a peer may send without pause."""
_ASLEEP_S = 1.0
"""Not to have looked for so long means that this process was stopped, or very busy."""


class Coordinator:
    """One pipelined run, from the workers' hello to their bye.

    Args:
        connect: makes the link to the first stage, at its address; it stops waiting where the first
            function that it is given says so, and calls the second with what people should know.
        bind: as for `Assembly`.
    """

    def __init__(
        self,
        run: Run,
        control: ControlServer,
        connect: Callable[
            [LinkAddress, Callable[[], bool], Callable[[str], None]], tuple[Sender, Carrier]
        ],
        bind: Callable[..., str],
        workers: Workers,
        watchdog: Watchdog,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._run, self._control, self._connect = run, control, connect
        self._watchdog, self._clock = watchdog, clock
        self._stages = Stages(run, control, workers, watchdog, clock)
        self._assembly = Assembly(run, self._stages, bind, self._pump, clock)
        self._reports = Reports(run, self._stages, watchdog, clock)
        self._restarts = Restarts(run.config.runtime.max_restarts)
        self._feed_thread: FeedThread | None = None
        self._called_off = Event()
        self._from_link: deque[str] = deque()
        """Said of the link to the first stage, in the feed thread."""
        self._looked_at = clock()
        self._handlers: dict[type, Callable[[Said, Any], None]] = {
            **self._assembly.handlers,
            **self._reports.handlers,
            Failure: self._on_failure,
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
            self._reports.tell(*self._control.rejections.summary())
        self._run.check_whole()

    def close(self) -> None:
        """Wait for the feed thread, once the workers are gone; a disk that hangs can keep it."""
        if self._feed_thread:
            self._feed_thread.end(_FEED_ENDS_S)

    def _trained(self) -> bool:
        """One attempt; false where it was lost and the next one can begin."""
        try:
            self._train()
        except StageLostError as fault:
            self._begin_again(fault)
            return False
        return True

    def _train(self) -> None:
        began = self._clock()
        first = self._assembly.connect_all()
        if self._stages.attempt:
            step, took_s = self._run.start.position.step, self._clock() - began
            self._reports.tell(
                f"training again after step {step}; all were back within {took_s:.1f} s"
            )
        link, carrier = self._connect(first, self._called_off.is_set, self._from_link.append)
        self._reports.tell_carrier("coordinator → 0", carrier)
        self._reports.begin(self._run)
        self._feed_thread = FeedThread(self._run, link, self._called_off)
        self._feed_thread.start()
        while not self._stages.done:
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
        if not fault.nonfinite:  # else `Run.rewound` says how often that may be
            self._check_restart(fault)
        self._called_off.set()
        if self._feed_thread:
            # one that still reads data is left to itself: it will find that it may not send
            self._feed_thread.end(_FEED_ENDS_S)
        self._feed_thread, self._called_off = None, Event()
        self._stages.attempt += 1
        before = self._run.feed.position.step
        self._run = self._run.rewound(fault.batch_id if fault.nonfinite else None)
        self._tell_loss(fault, before - self._run.start.position.step)
        if self._run.timeline:
            self._run.timeline.cut_short(fault.summary)
        self._assembly.begin_again(self._run, fault.stage)

    def _check_restart(self, fault: StageLostError) -> None:
        if self._restarts.came_back(fault):
            kept = self._run.keep_batch(fault.batch_id)
            raise StageFailedError(
                f"{fault.summary}; it failed there before, so this is no accident{kept}",
                fault.remote_traceback,
            )
        self._restarts.allow(fault, self._clock())

    def _tell_loss(self, fault: StageLostError, repeated: int) -> None:
        step, restarts = self._run.start.position.step, self._restarts
        again = f"back to step {step}, {repeated} fed steps are repeated"
        if fault.nonfinite:
            self._reports.tell(f"{fault.summary}: {again}, {self._run.bad_batches}")
        else:
            count = f"restart {restarts.count} of {restarts.most} within an hour"
            self._reports.tell(f"{fault.summary}: replaced; all go {again} ({count})")

    # messages, and lost stages

    def _pump(self) -> None:
        """Handle all messages that have come, then look for lost stages.

        In this order: what was said while the coordinator was busy must not count as silence.
        Nor must the time in which all processes were stopped (Ctrl-Z, a suspended cluster job).
        """
        until, said = monotonic() + _HEARS_S, self._control.receive(_POLL_S)
        while said:
            self._hear(said)
            said = self._control.receive(0.0) if monotonic() < until else None
        now = self._clock()
        if now - self._looked_at > _ASLEEP_S:
            self._watchdog.skip(now - self._looked_at, now)
        self._looked_at = now
        self._run.recorder.tell_written()
        self._reports.tell(*self._control.rejections.news())
        for event in self._stages.news():
            self._run.observer(event)
        while self._from_link:
            self._reports.tell(self._from_link.popleft())
        self._look_for_lost_stages()

    def _hear(self, said: Said) -> None:
        handler = self._handlers.get(type(said.message))  # none of a heartbeat, nor of a bye
        if self._stages.admit(said) and handler:
            handler(said, said.message)

    def _look_for_lost_stages(self) -> None:
        for stage, end in self._stages.dead().items():
            self._hear_last_words(stage, end)
        if self._feed_thread:
            self._feed_thread.check()
            for event in self._feed_thread.news():
                self._run.observer(event)
        if self._starting:
            return  # the first start-up has a time-out of its own
        feed_waits = self._feed_thread is not None and not self._feed_thread.reading
        problem = self._watchdog.problem(
            self._clock(), feed_waits=feed_waits, silent=self._stages.building
        )
        if problem:
            stage, what = problem
            raise StageLostError(stage, f"{self._stages.name(stage)} {what}")

    @property
    def _starting(self) -> bool:
        """Nothing has been trained yet: what fails now would fail again."""
        return not (self._feed_thread or self._stages.attempt)

    def _hear_last_words(self, stage: int, end: End) -> None:
        """A worker that failed said why before it ended; one that was killed could not."""
        until = self._clock() + _LAST_WORDS_S
        while self._clock() < until and stage in self._stages.dead():
            said = self._control.receive(_POLL_S)
            if said:
                self._hear(said)
            elif end.silent:
                break
        if stage in self._stages.dead():  # else it had left in time, or was replaced
            text = f"{self._stages.name(stage)} {end.how}"
            if end.comes_back and self._starting:
                raise StageFailedError(text, end.traceback)
            raise StageLostError(stage, text, end.traceback)

    def _on_failure(self, said: Said, failure: Failure) -> None:
        at = f" at batch {failure.batch_id}" if failure.batch_id else ""
        block = "" if failure.block is None else f", block {failure.block}"
        text = f"{self._stages.name(said.stage)}{block} failed{at}: {failure.summary}"
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
