"""Who is silent, who is stuck, who is slow, and who only waits. Times are plain numbers."""

from __future__ import annotations

import pytest

from pipeline.coordinator.watchdog import SLOWEST_STEP, Watchdog
from pipeline.protocol.messages import Heartbeat

SILENCE_S, STALL_S = 10.0, 60.0


def beat(doing: str, handled: int = 0, cpu_s: float = 0.0) -> Heartbeat:
    return Heartbeat(handled, handled, doing, cpu_s)


def watch_of(*activities: str) -> Watchdog:
    """One stage each, heard at 0."""
    watch = Watchdog(heartbeat_timeout_s=SILENCE_S, stall_timeout_s=STALL_S)
    for stage, doing in enumerate(activities):
        watch.heard(stage, 0.0, beat(doing))
    return watch


def pulse(watch: Watchdog, until: float, *activities: str, cpu_share: float = 0.0) -> None:
    """The same heartbeat from every stage once a second, after `cpu_share` of a second's work."""
    for second in range(1, int(until) + 1):
        for stage, doing in enumerate(activities):
            watch.heard(stage, float(second), beat(doing, cpu_s=second * cpu_share))


def problem(watch: Watchdog, now: float, feed_waits: bool = False) -> tuple[int, str] | None:
    return watch.problem(now, feed_waits=feed_waits)


def test_nobody_is_watched_before_being_heard() -> None:
    assert problem(watch_of(), 1e9, feed_waits=True) is None


# --- silent -------------------------------------------------------------------------------


@pytest.mark.parametrize("doing", ["starting", "waiting", "working", "blocked"])
def test_silence(doing: str) -> None:
    watch = watch_of(doing, doing)
    watch.heard(0, 5.0)
    assert problem(watch, 10.0) is None
    assert problem(watch, 10.1) == (1, "hangs: no sign of life for 10.1 s")
    watch.heard(1, 10.2)
    assert problem(watch, 15.0) is None
    assert problem(watch, 15.5) == (0, "hangs: no sign of life for 10.5 s")


def test_silence_comes_before_being_stuck() -> None:
    watch = watch_of("working", "working")
    for now in range(0, 100, 5):
        watch.heard(0, float(now))
    assert problem(watch, 99.0) == (1, "hangs: no sign of life for 99.0 s")


# --- stuck --------------------------------------------------------------------------------


def test_a_thread_that_does_not_use_the_processor_is_stuck() -> None:
    watch = watch_of("waiting", "working")
    watch.heard(1, 3.0, beat("working", handled=41, cpu_s=7.0))
    problems = []
    for second in range(4, 67):
        watch.heard(0, float(second), beat("waiting", handled=second))
        watch.heard(1, float(second), beat("working", handled=41, cpu_s=7.0))
        problems.append(problem(watch, float(second)))
    assert problems[:60] == [None] * 60  # up to second 63
    assert problems[60:] == [
        (1, f"is stuck: {idle_s:.1f} s at the item after batch 41") for idle_s in (61, 62, 63)
    ]


def test_signs_of_life_are_no_sign_of_progress() -> None:
    watch = watch_of("working")
    for now in range(61):
        watch.heard(0, float(now))
    assert problem(watch, 60.0) is None
    watch.heard(0, 60.5)
    assert problem(watch, 60.5) == (0, "is stuck: 60.5 s at the item after batch 0")


def test_who_is_cut_off_is_silent_and_not_stuck() -> None:
    """What it does meanwhile, nobody knows."""
    watch = Watchdog(heartbeat_timeout_s=2 * STALL_S, stall_timeout_s=STALL_S)
    watch.heard(0, 0.0, beat("working"))
    assert watch.problem(2 * STALL_S, feed_waits=True) is None
    assert problem(watch, 2 * STALL_S + 1) == (0, "hangs: no sign of life for 121.0 s")


def test_slow_is_not_stuck_before_even_a_very_slow_step_would_be_over() -> None:
    watch = watch_of("working")
    longest_s = SLOWEST_STEP * STALL_S
    pulse(watch, longest_s, "working", cpu_share=0.02)
    assert problem(watch, longest_s, feed_waits=True) is None
    watch.heard(0, longest_s + 1, beat("working", cpu_s=longest_s))
    assert problem(watch, longest_s + 1) == (
        0,
        f"is stuck: {longest_s + 1:.1f} s at the item after batch 0",
    )


def test_the_heartbeats_own_share_of_the_processor_is_no_work() -> None:
    watch = watch_of("working")
    pulse(watch, STALL_S + 1, "working", cpu_share=1e-4)
    assert problem(watch, STALL_S + 1) == (0, "is stuck: 61.0 s at the item after batch 0")


def test_a_thread_that_stops_working_is_stuck_from_then_on() -> None:
    watch = watch_of("working")
    pulse(watch, 100, "working", cpu_share=1.0)
    for second in range(101, 162):
        assert problem(watch, second - 1.0) is None
        watch.heard(0, float(second), beat("working", cpu_s=100.0))
    found = problem(watch, 161.0)
    assert found == (0, "is stuck: 161.0 s at the item after batch 0")


@pytest.mark.parametrize("news", [beat("working", handled=1), beat("blocked")])
def test_progress_ends_the_suspicion(news: Heartbeat) -> None:
    watch = watch_of("working")
    pulse(watch, 59, "working")
    watch.heard(0, 60.0, news)
    for now in (65.0, 75.0, 85.0, 95.0, 105.0):
        watch.heard(0, now)
    assert problem(watch, 106.0) is None


@pytest.mark.parametrize("doing", ["waiting", "blocked", "starting"])
def test_waiting_is_no_problem_while_the_feed_does_not_wait(doing: str) -> None:
    watch = watch_of(doing, doing)
    pulse(watch, 5000, doing, doing)
    assert problem(watch, 5000.0) is None


# --- deadlock -----------------------------------------------------------------------------


def test_all_wait_for_each_other() -> None:
    watch = watch_of("waiting", "blocked")
    assert problem(watch, 0.0, feed_waits=True) is None
    pulse(watch, 70, "waiting", "blocked")
    assert problem(watch, 60.0, feed_waits=True) is None
    assert problem(watch, 70.0, feed_waits=True) == (
        0,
        "does not take what comes next: all wait since 70.0 s",
    )


def test_waiting_for_the_feed_is_no_deadlock_once_it_goes_on() -> None:
    """It reads, or is not there yet, while all others are; the next heartbeat may take a while."""
    watch = watch_of("waiting", "waiting")
    for second in range(70):
        assert problem(watch, float(second)) is None
        pulse(watch, second + 1, "waiting", "waiting")
    assert problem(watch, 70.0, feed_waits=True) is None
    pulse(watch, 130, "waiting", "waiting")
    assert problem(watch, 129.0, feed_waits=True) is None
    assert problem(watch, 129.5, feed_waits=True) is not None


def test_what_is_on_its_way_has_time_to_arrive() -> None:
    watch = Watchdog(heartbeat_timeout_s=1000.0, stall_timeout_s=60.0, transfer_s=100.0)
    watch.heard(0, 0.0, beat("blocked"))
    assert problem(watch, 0.0, feed_waits=True) is None
    assert problem(watch, 160.0, feed_waits=True) is None
    assert problem(watch, 161.0, feed_waits=True) is not None


def test_one_that_has_moved_is_no_deadlock() -> None:
    watch = watch_of("waiting", "waiting")
    for second in range(1, 101):
        watch.heard(0, float(second), beat("waiting"))
        watch.heard(1, float(second), beat("waiting", handled=second // 50))
    assert problem(watch, 105.0, feed_waits=True) is None


def test_one_that_works_is_no_deadlock() -> None:
    watch = watch_of("blocked", "working")
    for second in range(1, 501):
        watch.heard(0, float(second), beat("blocked"))
        watch.heard(1, float(second), beat("working", cpu_s=float(second)))
    assert problem(watch, 500.0, feed_waits=True) is None


# --- the rest -----------------------------------------------------------------------------


def test_who_said_goodbye_is_not_watched() -> None:
    watch = watch_of("working", "waiting")
    watch.gone(0)
    watch.gone(0)
    watch.heard(1, 1000.0)
    assert problem(watch, 1005.0) is None
    watch.gone(1)
    assert problem(watch, 9999.0, feed_waits=True) is None


def test_activity_is_what_was_said_last() -> None:
    watch = watch_of("working")
    assert watch.activity(0) == "working"
    watch.heard(0, 1.0)
    assert watch.activity(0) == "working"
    watch.heard(0, 1.0, beat("waiting"))
    assert watch.activity(0) == "waiting"
    assert watch.activity(5) == "starting"
    watch.heard(5, 1.0)
    assert watch.activity(5) == "starting"


def test_a_time_in_which_nobody_listened_does_not_count() -> None:
    watch = Watchdog(heartbeat_timeout_s=10.0, stall_timeout_s=60.0)
    watch.heard(0, 100.0)
    watch.heard(1, 104.0)
    watch.skip(50.0, 154.0)
    assert watch.problem(160.0, feed_waits=False) is None
    found = watch.problem(160.5, feed_waits=False)
    assert found is not None
    assert found[0] == 0  # it had been silent for 4 s before
    watch.heard(0, 160.5)
    assert watch.problem(164.0, feed_waits=False) is None
    found = watch.problem(164.5, feed_waits=False)
    assert found is not None
    assert found[0] == 1
