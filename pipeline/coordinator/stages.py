"""The stages of a run as the coordinator knows them: where each is in its life, who is admitted
to speak for it, and what it is told to be. What does not fit is rejected, and told once."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, get_args

from pipeline.config.sections import config_tree
from pipeline.errors import ProtocolError
from pipeline.protocol.life_cycle import LifeCycle, Phase
from pipeline.protocol.messages import (
    PROTOCOL_VERSION,
    Bye,
    Connect,
    Failure,
    Heartbeat,
    Hello,
    Ready,
    Setup,
    WorkerMessage,
    name_of_run,
)
from pipeline.schedule.reports import PassReport, StageState, Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    from pipeline.coordinator.engine import End, Workers
    from pipeline.coordinator.watchdog import Watchdog
    from pipeline.planning.hosts import Place
    from pipeline.protocol.addresses import LinkAddress
    from pipeline.protocol.messages import Complete
    from pipeline.run.events import Detail, Note
    from pipeline.run.run import Run
    from pipeline.schedule.reports import Tally
    from pipeline.transport.interfaces import ControlServer, Said

    Files: TypeAlias = Sequence[bytes | memoryview]

_WORKERS_SAY = get_args(WorkerMessage)


class Stages:
    """All stages of a run, through all its attempts; `attempt` counts how often it has begun
    again."""

    def __init__(
        self,
        run: Run,
        control: ControlServer,
        workers: Workers,
        watchdog: Watchdog,
        clock: Callable[[], float],
    ) -> None:
        self._run, self._control, self._workers = run, control, workers
        self._watchdog, self._clock = watchdog, clock
        self._lives = [LifeCycle(plan.stage) for plan in run.plan.stages]
        self._recalled: set[int] = set()
        """Stages that were told to begin again; what they say until they are ready is past."""
        self.attempt = 0
        for stage in range(len(self)):
            control.expect(stage, self.attempt)

    def __len__(self) -> int:
        return len(self._lives)

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
        """Stages that may be in a user's own code, which may hold the interpreter: they say
        nothing meanwhile, and `runtime.start_timeout_s` ends the wait."""
        if not self._run.config.user_code:
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

    def say(self, stage: int, message: Setup | Connect | Complete, attached: Files = ()) -> None:
        """To one stage, whose life goes on accordingly."""
        self._lives[stage].on(message)
        self._control.send(stage, message, attached)

    def connect(
        self, stage: int, address: LinkAddress | None, team: tuple[LinkAddress, ...] = ()
    ) -> None:
        """Tell a stage where the next one listens, None: it is the last; who will connect; and
        where the others of its team listen."""
        self.say(stage, Connect(address, self._control.key_before(stage), team))

    def home(self, stage: int) -> Place:
        """Where its process runs."""
        place = self._workers.home(stage)
        assert place, f"stage {stage} has no place, and has spoken"
        return place

    def device(self, stage: int) -> str:
        """Where it runs or, while it waits for room, was to run."""
        place = self._workers.home(stage)
        return place.name if place else self._run.plan.stages[stage].device

    def waiting(self) -> dict[int, str]:
        """Stages without a place, each with what it waits for."""
        return self._workers.waiting()

    def news(self) -> list[Note | Detail]:
        """What the engine has to tell."""
        return self._workers.news()

    def dead(self) -> dict[int, End]:
        """Stages that ended before they had said bye, each with how."""
        ended = self._workers.dead().items()
        return {stage: end for stage, end in ended if self._lives[stage].phase is not Phase.DONE}

    def begin_again(self, lost: int, setup: Callable[[int], tuple[Setup, Files]]) -> None:
        """Replace stages whose process is lost or has left, and recall the others.

        Args:
            setup: what a recalled stage is told, and the files that go beside it.
        """
        self._watchdog.forget()
        gone = {lost, *self._workers.dead()}
        for stage, life in enumerate(list(self._lives)):
            if stage in gone or life.phase in (Phase.DONE, Phase.FAILED):
                self._replace(stage)
            elif life.phase not in (Phase.STARTING, Phase.GREETED):
                self._recalled.add(stage)
                self._watchdog.heard(stage, self._clock())  # it lives, and must say something
                self.say(stage, *setup(stage))

    def _replace(self, stage: int) -> None:
        """Another process takes the stage's place."""
        self._recalled.discard(stage)
        self._watchdog.gone(stage)
        self._lives[stage] = LifeCycle(stage)
        self._control.expect(stage, self.attempt)
        self._workers.replace(stage, self.attempt)

    def wake(self, phase: Phase) -> None:
        """Let stages that have not reached `phase` go on: one that was stopped (SIGSTOP) before its
        hello is not watched yet."""
        for stage in self.behind(phase):
            self._workers.wake(stage)

    def name(self, stage: int) -> str:
        """How people call it: `stage 1 (blocks 2–3, cuda:0)`."""
        plan = self._run.plan.stages[stage]
        device, team = self.device(stage), self._run.plan.members > 1
        what = device if team else f"{plan.blocks_in_words}, {device}"
        return f"{self._run.plan.name(stage)} ({what})"

    def admit(self, said: Said) -> bool:
        """Whether a message is to be handled; it moves its stage on in the life cycle.

        What belongs to an earlier attempt is dropped. What the life cycle does not allow is
        rejected and ends nothing: a stage that was wrong is found missing later, and a stranger
        must not stop the run.
        """
        try:
            return self._admitted(said)
        except ProtocolError as error:
            self._control.rejections.reject(f"stage {said.stage}", str(error))
            return False

    def _admitted(self, said: Said) -> bool:
        if said.stage >= len(self):
            raise ProtocolError(f"the plan has {len(self)} stages")
        _check_contents(said, self._run)
        if self._is_past(said):
            return False
        life = self._lives[said.stage]
        life.on(said.message)
        if life.phase is Phase.DONE:
            self._watchdog.gone(said.stage)
        else:
            heartbeat = said.message if isinstance(said.message, Heartbeat) else None
            self._watchdog.heard(said.stage, self._clock(), heartbeat)
        return True

    def _is_past(self, said: Said) -> bool:
        if isinstance(said.message, Failure) and said.message.attempt < self.attempt:
            self._replace(said.stage)  # of the same cause, or it will come back
            return True
        if said.stage not in self._recalled or isinstance(said.message, Heartbeat | Failure):
            return False
        if isinstance(said.message, Ready) and said.message.attempt == self.attempt:
            self._recalled.discard(said.stage)
            return False
        if isinstance(said.message, Bye):  # it had left before it could hear
            self._replace(said.stage)
        return True


def _check_contents(said: Said, run: Run) -> None:
    """A message may be well formed and yet speak for others: a stage speaks of its own blocks, and
    of epochs and steps that the run has.

    Raises:
        ProtocolError: saying what does not fit.
    """
    message, course = said.message, run.feed.course
    _check(isinstance(message, _WORKERS_SAY), type(message).__name__)
    plan, files = run.plan.stages[said.stage], 0
    blocks = plan.blocks
    tallies: Iterable[Tally] = ()
    if isinstance(message, Hello):
        _check(
            (message.run, message.protocol) == (run.id, PROTOCOL_VERSION),
            f"a hello of {name_of_run(message.run, message.protocol)}, "
            f"this is {name_of_run(run.id)}",
        )
    elif isinstance(message, PassReport):
        _check(message.stage == said.stage, f"a report of stage {message.stage}")
        _check(0 <= message.epoch <= course.all_epochs, f"a report of epoch {message.epoch}")
        _check(_is_square(len(message.confusion)), f"{len(message.confusion)} confusions")
        tallies = message.tallies
    elif isinstance(message, StageState):
        _check(message.blocks == blocks, f"a state of blocks {message.blocks[:20]}")
        _check(0 <= message.step <= course.steps, f"a state after step {message.step}")
        tallies, files = message.tallies, len(blocks)
        if plan.member:
            _check(bool(message.digest), "a state without a digest")
            files = 0
    elif isinstance(message, Ready):
        _check(len(message.team) == plan.members - 1, f"{len(message.team)} addresses for its team")
    elif isinstance(message, Timeline):
        _check(run.timeline is not None, "a timeline that nobody asked for")
    found = {tally.block for tally in tallies}
    _check(found <= set(blocks), f"counters of blocks {sorted(found)[:20]}, it has {blocks}")
    _check(len(said.attached) == files, f"{len(said.attached)} files where {files} belong")


def _is_square(count: int) -> bool:
    return isqrt(count) ** 2 == count


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ProtocolError(f"it sent {what}")


def _initial(run: Run, stage: int) -> tuple[int, ...]:
    """Blocks of a stage that begin with what another run has learned."""
    if run.start.files:
        return ()
    return tuple(b for b in run.plan.stages[stage].blocks if b in run.start.initial.files)


def attached_to(run: Run, setup: Setup) -> Files:
    """The block files that go beside a `Setup`."""
    if setup.resumed:
        return [] if setup.kept else [run.start.files[block] for block in setup.blocks]
    return [run.start.initial.files[block] for block in setup.initial]


def setup_of(
    run: Run, stage: int, attempt: int, device: str, bind: Callable[..., str], *, kept: bool
) -> Setup:
    """Everything a stage needs to know to begin, but for its block files.

    Args:
        attempt: how often the run has begun again.
        device: as its process calls it.
        bind: as for `Assembly`.
        kept: whether it has the block files of the start itself.
    """
    plan, start = run.plan.stages[stage], run.start
    config = config_tree(run.config)
    # a stage reads no images and no other run, and a path need not be UTF-8
    del config["data"]["root"]
    config["model"].pop("init_from", None)
    return Setup(
        attempt=attempt,
        config=config,
        facts=run.batches.facts,
        blocks=plan.blocks,
        device=device,
        bind=bind(stage, attempt),
        resumed=bool(start.files),
        kept=kept,
        last_batch_id=start.position.step,
        epoch=run.feed.course.epoch_of(start.position.step),
        tallies=start.tallies_of(plan.blocks, plan.place),
        max_in_flight=run.config.runtime.max_in_flight,
        progress_interval_s=run.progress_interval_s,
        check_until=run.bad_batches.check_until,
        # a record ends where the run begins again
        record_until=run.timeline.until if run.timeline and not attempt else 0,
        initial=_initial(run, stage),
        member=plan.member,
        in_rounds=plan.in_rounds,
        team=tuple(
            bind(stage, attempt, member) for member in range(plan.members) if member != plan.member
        ),
    )
