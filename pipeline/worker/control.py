"""What a stage and the coordinator say to each other, as the stage sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import CalledOffError
from pipeline.protocol.life_cycle import LifeCycle, Phase
from pipeline.protocol.messages import Complete, Connect, Remark, Setup
from pipeline.transport.interfaces import LINK_TIMEOUT_S
from pipeline.worker.kept_snapshots import KeptStates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.protocol.messages import WorkerMessage
    from pipeline.schedule.reports import PassReport, StageState
    from pipeline.transport.interfaces import ControlClient, Said


class StageControl:
    """A stage's side of control: every message, said or heard, is held against its life cycle.

    A new `Setup` calls off what the stage is doing: waits end with CalledOffError, `called_off`
    is true until `await_setup` has given it. No wait lasts longer than `LINK_TIMEOUT_S`.
    """

    def __init__(self, stage: int, client: ControlClient) -> None:
        self._life, self._client = LifeCycle(stage), client
        self._kept = KeptStates()
        self._setup: tuple[Setup, Sequence[memoryview]] | None = None
        """With its block files; not begun with yet."""
        self._initial: dict[int, memoryview] = {}

    def say(self, message: WorkerMessage, attached: Sequence[bytes | memoryview] = ()) -> None:
        """To the coordinator. Raises ProtocolError where it is not this stage's turn to say so."""
        self._life.on(message)
        self._client.send(message, attached)

    def report(self, report: PassReport) -> None:
        """Counters of a pass."""
        self.say(report)

    def remark(self, *texts: str) -> None:
        """For the person who watches."""
        for text in texts:
            self.say(Remark(text))

    def snapshot(self, state: StageState, files: Sequence[bytes]) -> None:
        """State at a marker; its bytes leave in the background, unless another member of the team
        sends the same. They are kept here, too, in case the run has to go back to them."""
        self._kept.add(state.step, files)
        self.say(state, () if state.digest else files)

    def await_setup(self) -> Setup:
        """What to be; block files of a state that came with it are kept."""
        while self._setup is None:
            self._hear(LINK_TIMEOUT_S)
        (setup, files), self._setup = self._setup, None
        if setup.resumed and not setup.kept:
            self._kept.add(setup.last_batch_id, files)
        elif not setup.resumed:
            self._initial = dict(zip(setup.initial, files, strict=True))
        self._kept.drop_after(setup.last_batch_id)
        return setup

    def take_initial(self) -> dict[int, memoryview]:
        """By block, the files of what it begins with, as far as another run has learned that."""
        initial, self._initial = self._initial, {}
        return initial

    def files_after(self, step: int) -> Sequence[bytes | memoryview]:
        """The block files of a state that is kept.

        Raises:
            ProtocolError: where it is not.
        """
        return self._kept.at(step)

    def await_connect(self) -> Connect:
        """Where the stage after this one listens, by which key the one before is known, and where
        the others of a team listen."""
        message = self._hear(LINK_TIMEOUT_S).message
        if not isinstance(message, Connect):
            raise CalledOffError("the run begins again")
        return message

    def await_complete(self) -> None:
        """Returns when the coordinator has the newest snapshot of every stage."""
        while not self._kept.all_complete:
            self._hear(LINK_TIMEOUT_S)
            self.check_wanted()

    def called_off(self) -> bool:
        """Whether the run begins again, as far as the coordinator has said by now."""
        while self._setup is None and self._client.waiting and self._life.phase is Phase.RUNNING:
            self._hear(0.0)
        return self._setup is not None

    def check_wanted(self) -> None:
        """Raises CalledOffError where the run begins again."""
        if self.called_off():
            raise CalledOffError("the run begins again")

    def _hear(self, timeout_s: float) -> Said:
        said = self._client.receive(timeout_s)
        self._life.on(said.message)
        if isinstance(said.message, Complete):
            self._kept.drop_before(said.message.step)
        elif isinstance(said.message, Setup):
            self._setup = said.message, said.attached
        return said
