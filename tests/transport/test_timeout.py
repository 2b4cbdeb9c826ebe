"""How long somebody waits who may be stopped meanwhile."""

from __future__ import annotations

import pytest

from pipeline.transport.timeout import LOOK_S, Patience


def test_it_is_used_up_look_by_look() -> None:
    now = [0.0]
    patience, looks = Patience(0.5, lambda: now[0]), []
    while look_s := patience.next_look_s():
        looks.append(look_s)
        now[0] += look_s
    assert looks == pytest.approx([LOOK_S, LOOK_S, 0.5 - 2 * LOOK_S])


def test_to_be_stopped_is_not_to_wait() -> None:
    now = [0.0]
    patience = Patience(10.0, lambda: now[0])
    now[0] += 3600.0
    assert patience.next_look_s() == LOOK_S
    now[0] += 0.9
    assert patience.next_look_s() == LOOK_S


def test_without_patience_one_look_is_taken_and_takes_no_time() -> None:
    assert Patience(0.0, lambda: 0.0).next_look_s() == 0.0
