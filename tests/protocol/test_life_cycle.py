"""The life cycle of a stage: every message in every phase moves as drawn, or is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import pytest

from pipeline.data.facts import DataFacts
from pipeline.errors import ProtocolError
from pipeline.protocol.addresses import Carrier, LinkAddress
from pipeline.protocol.life_cycle import TABLE, LifeCycle, Phase
from pipeline.protocol.messages import (
    Bye,
    CloseLink,
    Complete,
    Connect,
    Connected,
    CoordinatorMessage,
    Credit,
    Failure,
    Header,
    Heartbeat,
    Hello,
    LinkMessage,
    Message,
    OpenLink,
    ProgressNow,
    Ready,
    Remark,
    Report,
    Setup,
    WorkerMessage,
)
from pipeline.schedule.items import Stop
from pipeline.schedule.reports import PassReport, StageState, Usage

if TYPE_CHECKING:
    from typing import Any

FACTS = DataFacts(1, 8, 10, 100, 20, (0.5,), (0.25,))
MESSAGES: list[Any] = [
    Hello("run", 1, 5),
    Setup(0, {}, FACTS, (0,), "cpu", "ipc://x", False, False, 0, 0, (), 2, 0.0),
    Ready(0, LinkAddress("ipc://x", None, "word")),
    Connect(None),
    Connected(Carrier("frames")),
    Complete(3),
    Report(PassReport(0, 1, True, (), Usage(1.0, 1.0, 1))),
    StageState(1, 1, True, (0,), ()),
    ProgressNow(1, 1.0, 0, ()),
    Remark("text"),
    Failure("broken", None, 1, ""),
    Bye(),
    Header(Stop()),
    OpenLink("run", 1),
    Credit(0),
    CloseLink(),
]

DRAWING = """
STARTING   Hello       GREETED
GREETED    Setup       BUILDING
BUILDING   Ready       READY
READY      Connect     CONNECTING
CONNECTING Connected   RUNNING
RUNNING    Report      RUNNING
RUNNING    StageState  RUNNING
RUNNING    ProgressNow RUNNING
RUNNING    Bye         DONE
RUNNING    Complete    RUNNING
RUNNING    Remark      RUNNING
BUILDING   Setup       BUILDING
READY      Setup       BUILDING
CONNECTING Setup       BUILDING
RUNNING    Setup       BUILDING
STARTING   Failure     FAILED
GREETED    Failure     FAILED
BUILDING   Failure     FAILED
READY      Failure     FAILED
CONNECTING Failure     FAILED
RUNNING    Failure     FAILED
"""
ARROWS = {
    (before, message): after for before, message, after in map(str.split, DRAWING.split("\n")[1:-1])
}


def test_every_message_is_tried() -> None:
    kinds = {type(message) for message in MESSAGES} | {Heartbeat}
    assert kinds == set(get_args(Message))
    assert kinds == {
        *get_args(LinkMessage),
        *get_args(WorkerMessage),
        *get_args(CoordinatorMessage),
    }


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name)
@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_in_every_phase(phase: Phase, message: object) -> None:
    life = LifeCycle(3)
    life.phase = phase
    name = type(message).__name__
    after = ARROWS.get((phase.name, name))
    if after is not None:
        life.on(message)
        assert life.phase.name == after
        return
    with pytest.raises(ProtocolError) as caught:
        life.on(message)
    allowed = [message for before, message in ARROWS if before == phase.name]
    said = str(caught.value)
    assert said.startswith(f"stage 3 is {phase.name}: received {name}, expected ")
    expected = said.rpartition("expected ")[2].split(", ")
    assert sorted(expected) == sorted(allowed or ["nothing"])
    assert life.phase is phase


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name)
def test_heartbeats_come_at_any_time(phase: Phase) -> None:
    life = LifeCycle(0)
    life.phase = phase
    life.on(Heartbeat(1, 1, "working", 0.5))
    assert life.phase is phase


def test_a_whole_life() -> None:
    life = LifeCycle(0)
    seen = []
    for message in MESSAGES[:9]:
        life.on(message)
        seen.append(life.phase.name)
    life.on(Bye())
    assert seen == ["GREETED", "BUILDING", "READY", "CONNECTING", *["RUNNING"] * 5]
    assert life.phase is Phase.DONE


def test_phases_are_in_the_order_of_life() -> None:
    """The coordinator waits for a phase, or any later one."""
    assert [phase.name for phase in Phase] == [
        "STARTING",
        "GREETED",
        "BUILDING",
        "READY",
        "CONNECTING",
        "RUNNING",
        "DONE",
        "FAILED",
    ]
    assert [phase.value for phase in Phase] == list(range(1, 9))
    assert set(TABLE) == set(Phase)


def test_a_failed_stage_says_no_more() -> None:
    life = LifeCycle(0)
    life.on(Failure("broken", None, 1, ""))
    with pytest.raises(ProtocolError, match="stage 0 is FAILED: received Bye, expected nothing"):
        life.on(Bye())
