"""Time-outs that don't count the time in which the process was stopped."""

from __future__ import annotations

import pytest

from pipeline.transport.timeout import POLL_S, Timeout


def test_it_is_used_up_poll_by_poll() -> None:
    now = [0.0]
    timeout, polls = Timeout(0.5, lambda: now[0]), []
    while poll_s := timeout.next_poll_s():
        polls.append(poll_s)
        now[0] += poll_s
    assert polls == pytest.approx([POLL_S, POLL_S, 0.5 - 2 * POLL_S])


def test_to_be_stopped_is_not_to_wait() -> None:
    now = [0.0]
    timeout = Timeout(10.0, lambda: now[0])
    now[0] += 3600.0
    assert timeout.next_poll_s() == POLL_S
    now[0] += 0.9
    assert timeout.next_poll_s() == POLL_S


def test_without_time_one_poll_is_made_and_takes_none() -> None:
    assert Timeout(0.0, lambda: 0.0).next_poll_s() == 0.0
