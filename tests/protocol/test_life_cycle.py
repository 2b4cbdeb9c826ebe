"""The life cycle of a stage: every message in every phase moves as drawn, or is refused."""

from __future__ import annotations

import pytest
from fuzz.examples import EXAMPLES

from pipeline.errors import ProtocolError
from pipeline.protocol.life_cycle import TABLE, LifeCycle, Phase
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
    Setup,
)
from pipeline.schedule.reports import PassReport, StageState

MESSAGES = {type(message): message for message in EXAMPLES}
"""One of each kind; `test_codec.py` checks that there is one."""
LIFE = (Hello, Setup, Ready, Connect, Connected, Complete, PassReport, StageState, ProgressNow, Bye)

DRAWING = """
STARTING   Hello       GREETED
GREETED    Setup       BUILDING
BUILDING   Ready       READY
READY      Connect     CONNECTING
CONNECTING Connected   RUNNING
RUNNING    PassReport  RUNNING
RUNNING    StageState  RUNNING
RUNNING    Timeline    RUNNING
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


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name)
def test_every_message_in_every_phase(phase: Phase) -> None:
    for kind, message in MESSAGES.items():
        if kind is not Heartbeat:
            check_message(phase, kind.__name__, message)


def check_message(phase: Phase, name: str, message: object) -> None:
    life = LifeCycle(3)
    life.phase = phase
    after = ARROWS.get((phase.name, name))
    if after is not None:
        life.on(message)
        assert life.phase.name == after, name
        return
    with pytest.raises(ProtocolError) as caught:
        life.on(message)
    allowed = [message for before, message in ARROWS if before == phase.name]
    said = str(caught.value)
    assert said.startswith(f"stage 3 is {phase.name}: received {name}, expected ")
    expected = said.rpartition("expected ")[2].split(", ")
    assert sorted(expected) == sorted(allowed or ["nothing"]), name
    assert life.phase is phase, name


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name)
def test_heartbeats_come_at_any_time(phase: Phase) -> None:
    life = LifeCycle(0)
    life.phase = phase
    life.on(Heartbeat(1, 1, "working", 0.5))
    assert life.phase is phase


def test_a_whole_life() -> None:
    life = LifeCycle(0)
    seen = []
    for kind in LIFE:
        life.on(MESSAGES[kind])
        seen.append(life.phase.name)
    assert seen == ["GREETED", "BUILDING", "READY", "CONNECTING", *["RUNNING"] * 5, "DONE"]


def test_phases_are_in_the_order_of_life() -> None:
    """The coordinator waits for a phase, or any later one."""
    names = "STARTING GREETED BUILDING READY CONNECTING RUNNING DONE FAILED"
    assert " ".join(phase.name for phase in Phase) == names
    assert [phase.value for phase in Phase] == list(range(1, 9))
    assert set(TABLE) == set(Phase)


def test_a_failed_stage_says_no_more() -> None:
    life = LifeCycle(0)
    life.on(Failure("broken", None, 1, ""))
    with pytest.raises(ProtocolError, match="stage 0 is FAILED: received Bye, expected nothing"):
        life.on(Bye())
