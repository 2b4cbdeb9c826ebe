"""How long somebody waits who may be stopped meanwhile."""

from __future__ import annotations

import pytest

from pipeline.transport.timeout import POLL_S, Timeout


def test_it_is_used_up_look_by_look() -> None:
    now = [0.0]
    timeout, looks = Timeout(0.5, lambda: now[0]), []
    while poll_s := timeout.next_poll_s():
        looks.append(poll_s)
        now[0] += poll_s
    assert looks == pytest.approx([POLL_S, POLL_S, 0.5 - 2 * POLL_S])


def test_to_be_stopped_is_not_to_wait() -> None:
    now = [0.0]
    timeout = Timeout(10.0, lambda: now[0])
    now[0] += 3600.0
    assert timeout.next_poll_s() == POLL_S
    now[0] += 0.9
    assert timeout.next_poll_s() == POLL_S


def test_without_patience_one_look_is_taken_and_takes_no_time() -> None:
    assert Timeout(0.0, lambda: 0.0).next_poll_s() == 0.0
