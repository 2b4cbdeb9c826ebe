"""The stages of a run as the coordinator knows them: where each is in its life, who is admitted
to speak for it, and what it was told. What does not fit is turned away, and told once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.coordinator.hearing import check_contents
from pipeline.errors import ProtocolError
from pipeline.protocol.life_cycle import LifeCycle, Phase
from pipeline.protocol.messages import Bye, Failure, Heartbeat, Ready

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.coordinator.watchdog import Watch
    from pipeline.protocol.messages import Complete, Connect, Setup
    from pipeline.run.run import Run
    from pipeline.transport.interfaces import ControlServer, Said


@dataclass(frozen=True, slots=True)
class End:
    """How a stage's process ended: `how`, as the end of a sentence ("was killed by SIGKILL").

    `silent`: it could say nothing before. `comes_back`: another process would end the same way,
    where this one had not begun to train. `traceback`: its own, or empty.
    """

    how: str
    silent: bool = False
    comes_back: bool = False
    traceback: str = ""


class Fleet(Protocol):
    """The worker processes, as far as the coordinator needs to know."""

    def dead(self) -> dict[int, End]:
        """Stages whose process has ended, each with how."""

    def replace(self, stage: int, attempt: int) -> None:
        """End the stage's process, if it still runs, and start another for this attempt."""

    def wake(self, stage: int) -> None:
        """Let the stage's process go on, where somebody has stopped it (SIGSTOP)."""


class Crew:
    """All stages of a run; `attempt` counts how often it has begun again."""

    def __init__(
        self,
        run: Run,
        control: ControlServer,
        fleet: Fleet,
        watch: Watch,
        clock: Callable[[], float],
    ) -> None:
        self._plan, self._control, self._fleet = run.plan, control, fleet
        self._watch, self._clock = watch, clock
        self._lives = [LifeCycle(plan.stage) for plan in run.plan.stages]
        self._recalled: set[int] = set()
        self._has_factory = run.config.model.factory is not None
        self.attempt = 0
        for stage in range(len(self._lives)):
            control.expect(stage, self.attempt)

    def __len__(self) -> int:
        return len(self._lives)

    def phase(self, stage: int) -> Phase:
        """Where the stage is in its life."""
        return self._lives[stage].phase

    def behind(self, phase: Phase) -> list[int]:
        """Stages that have not come as far as `phase`, or have not made all their connections."""
        absent = self._control.absent
        return [
            life.stage
            for life in self._lives
            if life.phase.value < phase.value or life.stage in absent
        ]

    @property
    def building(self) -> list[int]:
        """Stages that may be in a user's `model.factory`, which may hold the interpreter: they say
        nothing meanwhile, and `runtime.start_timeout_s` ends the wait."""
        if not self._has_factory:
            return []
        return [life.stage for life in self._lives if life.phase is Phase.BUILDING]

    @property
    def done(self) -> bool:
        """Whether all have said bye."""
        return all(life.phase is Phase.DONE for life in self._lives)

    @property
    def serving(self) -> list[int]:
        """Stages that run, in this attempt."""
        running = (life.stage for life in self._lives if life.phase is Phase.RUNNING)
        return [stage for stage in running if stage not in self._recalled]

    def say(
        self,
        stage: int,
        message: Setup | Connect | Complete,
        attached: Sequence[bytes | memoryview] = (),
    ) -> None:
        """To one stage, whose life goes on accordingly."""
        self._lives[stage].on(message)
        self._control.send(stage, message, attached)

    def replace(self, stage: int) -> None:
        """Another process takes the stage's place."""
        self._recalled.discard(stage)
        self._watch.gone(stage)
        self._lives[stage] = LifeCycle(stage)
        self._control.expect(stage, self.attempt)
        self._fleet.replace(stage, self.attempt)

    def recall(self, stage: int, setup: Setup) -> None:
        """The stage begins again: what it says until it is ready belongs to the past; but it must
        say something, since it lives."""
        self._recalled.add(stage)
        self._watch.heard(stage, self._clock())
        self.say(stage, setup)

    def dead(self) -> dict[int, End]:
        """Stages that ended before they had said bye, each with how."""
        ended = self._fleet.dead()
        return {stage: how for stage, how in ended.items() if not self._has_left(stage)}

    def begin_again(self, lost: int, setup: Callable[[int], Setup]) -> None:
        """Replace stages whose process is lost or has left, and recall the others.

        Args:
            setup: what a recalled stage is told.
        """
        self._watch.forget()
        gone = {lost, *self._fleet.dead()}
        for life in list(self._lives):
            if life.stage in gone or life.phase in (Phase.DONE, Phase.FAILED):
                self.replace(life.stage)
            elif life.phase not in (Phase.STARTING, Phase.GREETED):
                self.recall(life.stage, setup(life.stage))

    def wake(self, phase: Phase) -> None:
        """Whoever is awaited: what is stopped before it could greet is silent, but not found so."""
        for stage in self.behind(phase):
            self._fleet.wake(stage)

    def name(self, stage: int) -> str:
        """How people call it: `stage 1 (blocks 2–3, cuda:0)`."""
        plan = self._plan.stages[stage]
        first, last = plan.blocks[0], plan.blocks[-1]
        blocks = f"block {first}" if first == last else f"blocks {first}–{last}"
        return f"stage {stage} ({blocks}, {plan.device})"

    def device(self, stage: int) -> str:
        """Where it trains."""
        return self._plan.stages[stage].device

    def admit(self, said: Said, run: Run) -> bool:
        """Whether to heed what was said; the speaker's life goes on accordingly.

        What belongs to the past is not heeded, and what can't be so is turned away: a stage that
        was mistaken will be found missing, and a stranger must not stop the run.
        """
        try:
            return self._admitted(said, run)
        except ProtocolError as error:
            self._control.rejections.reject(f"stage {said.stage}", str(error))
            return False

    def _admitted(self, said: Said, run: Run) -> bool:
        if said.stage >= len(self._lives):
            raise ProtocolError(f"the plan has {len(self._lives)} stages")
        check_contents(said, run)
        if self._is_past(said):
            return False
        life = self._lives[said.stage]
        life.on(said.message)
        if life.phase is not Phase.DONE:
            heartbeat = said.message if isinstance(said.message, Heartbeat) else None
            self._watch.heard(said.stage, self._clock(), heartbeat)
        return True

    def _is_past(self, said: Said) -> bool:
        if isinstance(said.message, Failure) and said.message.attempt < self.attempt:
            self.replace(said.stage)  # of the same cause, or it will come back
            return True
        if said.stage not in self._recalled or isinstance(said.message, Heartbeat | Failure):
            return False
        if isinstance(said.message, Ready) and said.message.attempt == self.attempt:
            self._recalled.discard(said.stage)
            return False
        if isinstance(said.message, Bye):  # it had left before it could hear
            self.replace(said.stage)
        return True

    def _has_left(self, stage: int) -> bool:
        return self._lives[stage].phase is Phase.DONE
