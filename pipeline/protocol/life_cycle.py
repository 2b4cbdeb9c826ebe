"""The life cycle of a stage as a table: (state, message) -> state.

    STARTING ─Hello▶ GREETED ─Setup▶ BUILDING ─Ready▶ READY ─Connect▶ CONNECTING ─Connected▶ RUNNING
    RUNNING ─PassReport, StageState, Timeline, ProgressNow, Remark, Complete▶ RUNNING ─Bye▶ DONE
    any but STARTING and DONE ─Setup▶ BUILDING (the run begins again)  any but DONE ─Failure▶ FAILED

Both ends keep one and hold every message, sent or received, against it; whatever is not listed
is an error that names state, message and what was expected. Heartbeats come on a socket of
their own and may arrive at any time.
"""

from __future__ import annotations

from enum import Enum, auto

from pipeline.errors import ProtocolError
from pipeline.protocol.messages import (
    Bye,
    Complete,
    Connect,
    Connected,
    Failure,
    Heartbeat,
    Hello,
    ProgressNow,
    Ready,
    Remark,
    Setup,
)
from pipeline.schedule.reports import PassReport, StageState, Timeline


class Phase(Enum):
    """Where a stage is in its life."""

    STARTING = auto()
    GREETED = auto()
    BUILDING = auto()
    READY = auto()
    CONNECTING = auto()
    RUNNING = auto()
    DONE = auto()
    FAILED = auto()


_FAILURE: dict[type, Phase] = {Failure: Phase.FAILED}
_AGAIN: dict[type, Phase] = {Setup: Phase.BUILDING, **_FAILURE}
_WHILE_RUNNING = (Complete, PassReport, StageState, Timeline, ProgressNow, Remark)
TABLE: dict[Phase, dict[type, Phase]] = {
    Phase.STARTING: {Hello: Phase.GREETED, **_FAILURE},
    Phase.GREETED: {Setup: Phase.BUILDING, **_FAILURE},
    Phase.BUILDING: {Ready: Phase.READY, **_AGAIN},
    Phase.READY: {Connect: Phase.CONNECTING, **_AGAIN},
    Phase.CONNECTING: {Connected: Phase.RUNNING, **_AGAIN},
    Phase.RUNNING: {**dict.fromkeys(_WHILE_RUNNING, Phase.RUNNING), Bye: Phase.DONE, **_AGAIN},
    Phase.DONE: {},
    Phase.FAILED: {},
}


class LifeCycle:
    """One stage's place in the table."""

    def __init__(self, stage: int) -> None:
        self.stage = stage
        self.phase = Phase.STARTING

    def on(self, message: object) -> None:
        """Follow one message.

        Raises:
            ProtocolError: where the table does not list it.
        """
        if isinstance(message, Heartbeat):
            return
        allowed = TABLE[self.phase]
        if type(message) not in allowed:
            expected = ", ".join(kind.__name__ for kind in allowed) or "nothing"
            raise ProtocolError(
                f"stage {self.stage} is {self.phase.name}: received {type(message).__name__}, "
                f"expected {expected}"
            )
        self.phase = allowed[type(message)]
