"""Brings the stages of an attempt together: hello ─▶ setup ─▶ ready ─▶ connect ─▶ connected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.coordinator.stages import attached_to, setup_of
from pipeline.errors import StageFailedError, StageLostError, TimedOutError
from pipeline.protocol.life_cycle import Phase
from pipeline.protocol.messages import Hello, Ready, Setup
from pipeline.run.events import Note, Waiting
from pipeline.system.sources import difference, difference_between_hosts, running_code
from pipeline.transport.timeout import Timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.coordinator.stages import Files, Stages
    from pipeline.protocol.addresses import LinkAddress
    from pipeline.run.run import Run
    from pipeline.transport.interfaces import Said

_TELL_EVERY_S = 2.0
_TELL_ROOM_EVERY_S = 10.0


class Assembly:
    """Of one run, through all its attempts.

    Args:
        bind: where (stage, attempt) is to listen for the stage before it, or (stage, attempt,
            member) for another member of its team.
        pump: handles the messages that have come, and raises where a stage is lost.
    """

    def __init__(
        self,
        run: Run,
        stages: Stages,
        bind: Callable[..., str],
        pump: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._run, self._stages, self._bind = run, stages, bind
        self._pump, self._clock = pump, clock
        self._addresses: dict[int, LinkAddress] = {}
        self._teams: dict[int, tuple[LinkAddress, ...]] = {}
        """Where a member listens for each of the others, in order."""
        self.handlers: dict[type, Callable[[Said, Any], None]] = {
            Hello: self._on_hello,
            Ready: self._on_ready,
        }

    def connect_all(self) -> LinkAddress:
        """Wait for all stages, and connect each to the next; where the first one listens."""
        self._wait_for(Phase.READY)
        for stage in range(len(self._stages)):
            self._stages.connect(stage, self._addresses.get(stage + 1), self._team(stage))
        self._wait_for(Phase.RUNNING)
        return self._addresses[0]

    def _team(self, stage: int) -> tuple[LinkAddress, ...]:
        """Where each other member of a team listens for this one."""
        own = self._run.plan.stages[stage].member
        # in the list of another one this member stands one place earlier, if it comes after it
        return tuple(
            self._teams[other.stage][own - (own > other.member)]
            for other in self._run.plan.team(stage)
            if other.stage != stage
        )

    def begin_again(self, run: Run, lost: int) -> None:
        """Another process takes the place of `lost`; the others are told where `run` begins."""
        self._run = run
        kept = bool(run.start.files)
        self._stages.begin_again(lost, lambda stage: self._setup(stage, kept=kept))

    def _setup(self, stage: int, *, kept: bool) -> tuple[Setup, Files]:
        attempt = self._stages.attempt
        device = self._stages.home(stage).device
        setup = setup_of(self._run, stage, attempt, device, self._bind, kept=kept)
        return setup, attached_to(self._run, setup)

    def _wait_for(self, phase: Phase) -> None:
        """A wait for room has no end but the run's: it is said again and again."""
        timeout = Timeout(self._run.config.runtime.start_timeout_s, self._clock)
        told = told_room = self._clock()
        while missing := self._missing(phase):
            self._pump()
            now, waiting = self._clock(), self._stages.waiting()
            if self._run.interrupted():
                raise self._run.interruption()
            if waiting:
                timeout.pause()
                if now - told_room > _TELL_ROOM_EVERY_S:
                    told_room = now
                    self._run.observer(Note(_no_room(waiting)))
            elif not timeout.next_poll_s():
                self._give_up(phase, timeout.used_s)
            if now - told > _TELL_EVERY_S:
                told = now
                if not waiting:  # else there was a line of what they wait for
                    self._run.observer(Waiting(missing, timeout.used_s))
                self._stages.wake(phase)

    def _give_up(self, phase: Phase, waited_s: float) -> None:
        if self._stages.attempt:  # one that lived before may hang; another may take its place
            late = self._stages.behind(phase)[0]
            name = self._stages.name(late)
            raise StageLostError(late, f"{name} did not come back in {waited_s:.1f} s")
        missing, most_s = ", ".join(self._missing(phase)), self._run.config.runtime.start_timeout_s
        raise TimedOutError(
            f"waited {waited_s:.1f} s for {missing} (runtime.start_timeout_s {most_s:g})"
        )

    def _missing(self, phase: Phase) -> tuple[str, ...]:
        user_code, building = self._run.config.user_code, self._stages.building
        made = " and ".join(f"{key} {name}" for key, name in user_code.items())
        return tuple(
            f"{self._run.plan.name(stage)} on {self._stages.device(stage)}"
            + (f" (making the network with {made})" if stage in building else "")
            for stage in self._stages.behind(phase)
        )

    def _on_hello(self, said: Said, hello: Hello) -> None:
        is_here = not self._stages.home(said.stage).host.name
        differs = difference if is_here else difference_between_hosts
        self._check_code(said.stage, differs(running_code(), hello.code))
        self._stages.say(said.stage, *self._setup(said.stage, kept=False))

    def _on_ready(self, said: Said, ready: Ready) -> None:
        self._check_code(said.stage, difference(self._run.own_code, ready.own_code, common=True))
        self._run.check_initial(ready.initial, f"the process of {self._stages.name(said.stage)}")
        self._addresses[said.stage] = ready.address
        self._teams[said.stage] = ready.team

    def _check_code(self, stage: int, difference: str | None) -> None:
        if difference:
            raise StageFailedError(
                f"{self._stages.name(stage)} runs other code than the launcher: {difference}; "
                "files were replaced since the command was given: give it again (--resume goes on)"
            )


def _no_room(waiting: Mapping[int, str]) -> str:
    missing = "; ".join(f"stage {stage} waits for {what}" for stage, what in waiting.items())
    return (
        f"no room: {missing}. A host that joins is used at once; Ctrl-C ends the run, with a "
        "checkpoint of what is trained"
    )
