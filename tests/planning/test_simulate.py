"""The simulation of a pipeline against schedules worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning.simulate import Crowd, Forecast, StageWork, simulate


def forecast(stages: list[StageWork], devices: int = 0, **more: Any) -> Forecast:
    devices = devices or 1 + max(stage.device for stage in stages)
    given = {"capacity": [1.0] * devices, "max_in_flight": 2, "batches": 6, **more}
    return simulate(stages, **given)


def test_one_stage_does_one_batch_after_the_other() -> None:
    found = forecast([StageWork(0, forward_s=1.0, learn_s=2.0)])
    assert found.ends_s == (3.0, 6.0, 9.0, 12.0, 15.0, 18.0)
    assert found.batch_s == 3.0
    assert found.device_busy == found.stage_busy == (1.0,)


def test_the_next_stage_works_while_the_first_learns() -> None:
    """Batch b leaves stage 0 at 3b + 1; stage 1 needs 2 of every 3 seconds.

    stage 0   f l l f l l f l l
    stage 1     f l   f l   f l
    """
    stages = [StageWork(0, 1.0, 2.0), StageWork(1, 1.0, 1.0)]
    found = forecast(stages)
    assert found.ends_s == (3.0, 6.0, 9.0, 12.0, 15.0, 18.0)
    assert found.stage_busy == pytest.approx((1.0, 2 / 3))


def test_a_slow_stage_holds_the_one_before_by_its_credits() -> None:
    """Stage 1 takes 4 s a batch. One credit: stage 0 may send batch 2 when batch 1 is done.

    seconds   0   1   2   3   4   5   6   7   8   9
    stage 0   f1  l1  f2  .   .   l2  f3  .   .   l3
    stage 1       1   1   1   1   2   2   2   2   3
    """
    stages = [StageWork(0, 1.0, 1.0), StageWork(1, 2.0, 2.0)]
    found = forecast(stages, max_in_flight=1, batches=4)
    assert found.ends_s == (5.0, 9.0, 13.0, 17.0)
    assert found.stage_busy == pytest.approx((0.5, 1.0))


def test_stages_on_one_cpu_slow_each_other_down() -> None:
    """Two cores, on which two stages work at half the speed of one. From second 1 on both do.

    seconds   0   1   2   3   4   5   6   7   8   9
    stage 0   f1  l1  l1  f2  f2  l2  l2  f3  f3
    stage 1       f1  f1  l1  l1  f2  f2  l2  l2
    """
    stages = [StageWork(0, 1.0, 1.0), StageWork(0, 1.0, 1.0)]
    found = forecast(stages, capacity=[2.0], crowd=Crowd(0.5))
    assert found.ends_s[:3] == (5.0, 9.0, 13.0)
    assert found.stage_busy == (1.0, 1.0)
    assert found.device_busy == (1.0,)


def test_each_companion_takes_as_much_time() -> None:
    """Three at work take twice the time of one, so two take half as much again, whatever else the
    device could run; a lone stage is as fast as ever."""
    pair = [StageWork(0, 1.5, 1.5), StageWork(0, 1.5, 1.5)]
    for room in (2.0, 3.0, 64.0):
        crowded = forecast(pair, capacity=[room], crowd=Crowd(0.5, at_work=3))
        assert crowded.batch_s == pytest.approx(4.5)
    four = forecast([StageWork(0, 1.5, 1.5)] * 4, capacity=[4.0], crowd=Crowd(0.5, at_work=3))
    assert four.batch_s == pytest.approx(6.0)  # nobody knows more than what three do
    alone = forecast(pair[:1], capacity=[3.0], crowd=Crowd(0.5, at_work=3))
    assert alone.batch_s == pytest.approx(3.0)


def test_turns_on_a_core_cost_more_than_the_turns() -> None:
    """Two at work on one core: each has half of it, and does a quarter less with that."""
    found = forecast([StageWork(0, 1.5, 1.5)] * 2, capacity=[1.0], crowd=Crowd(0.75))
    assert found.batch_s == pytest.approx(8.0)
    assert found.device_busy == (1.0,)


def test_copies_keep_the_device_busy_and_travelling_does_not() -> None:
    """f 0–1, copy 1–1.5, on its way until 2.5; stage 1 works 2.5–3.5."""
    stages = [StageWork(0, 1.0, 1.0, send_s=0.5, link_s=1.0), StageWork(1, 1.0, 0.0)]
    found = forecast(stages, max_in_flight=4)
    assert found.ends_s[:3] == pytest.approx((3.5, 6.0, 8.5))
    assert found.stage_busy == pytest.approx((1.0, 0.4))


def test_a_link_carries_one_batch_after_the_other() -> None:
    """Sent at 1 and 3 s, and so on: 3 s for each on the link, half a second more to arrive.
    However many may be under way, one comes out every 3 s; latency alone delays, and no more."""
    stages = [StageWork(0, 1.0, 1.0, link_s=3.0, latency_s=0.5), StageWork(1, 1.0, 0.0)]
    for in_flight in (2, 16, 64):
        found = forecast(stages, max_in_flight=in_flight, batches=400)
        assert found.ends_s[:3] == pytest.approx((5.5, 8.5, 11.5))
        assert found.batch_s == pytest.approx(3.0)
    far = [replace(stages[0], link_s=0.0, latency_s=30.0), stages[1]]
    assert forecast(far, max_in_flight=64, batches=400).batch_s == pytest.approx(2.0)


def test_stages_on_one_device_share_it() -> None:
    """Two seconds of work for each batch, whatever the order: 2 s a batch."""
    stages = [StageWork(0, 0.5, 0.5), StageWork(0, 0.5, 0.5)]
    found = forecast(stages, batches=20)
    assert found.batch_s == pytest.approx(2.0)
    assert found.device_busy == pytest.approx((1.0,))


def test_sharing_by_hand() -> None:
    """Stage 0: 1 alone (0–1), then learns 1 beside stage 1's forward 1: both at half speed.

    0–1 f0   1–3 l0 and f1 at half speed   then batch 2: f0 beside l1 (3–5), and so on
    """
    stages = [StageWork(0, 1.0, 1.0), StageWork(0, 1.0, 1.0)]
    found = forecast(stages, max_in_flight=1, batches=2)
    assert found.ends_s[0] == pytest.approx(5.0)


def test_two_cores_run_two_stages_at_full_speed() -> None:
    stages = [StageWork(0, 1.0, 1.0)] * 3
    alone, shared = (forecast(stages, capacity=[n], batches=40) for n in (3.0, 2.0))
    assert alone.batch_s == pytest.approx(2.0)
    assert shared.batch_s == pytest.approx(3.0)
    assert shared.device_busy == pytest.approx((1.0,))


def test_a_slow_feed_is_the_bound() -> None:
    found = forecast([StageWork(0, 0.5, 0.5)], feed_s=3.0)
    assert found.batch_s == pytest.approx(3.0)
    assert found.stage_busy == pytest.approx((1 / 3,))


def test_a_feed_on_the_same_device_takes_its_share() -> None:
    """A second of feeding and two of training for each batch, one core: 3 s a batch."""
    found = forecast([StageWork(0, 1.0, 1.0)], feed_s=1.0, feed_device=0, batches=40)
    assert found.batch_s == pytest.approx(3.0)
    assert found.device_busy == pytest.approx((1.0,))


def test_what_piles_up_in_the_steady_state_is_told() -> None:
    """Stage 1 is the slower one: it has 8 slots to fill, then as much goes in as comes out."""
    stages = [StageWork(0, 1.0, 0.0), StageWork(1, 1.0, 1.0)]
    filling = forecast(stages, max_in_flight=8, batches=8)
    assert filling.backlog > 1
    assert abs(forecast(stages, max_in_flight=8, batches=80).backlog) <= 1


works = st.builds(
    StageWork,
    device=st.integers(0, 2),
    forward_s=st.floats(0.001, 1.0),
    learn_s=st.floats(0.001, 1.0),
    send_s=st.floats(0.0, 0.1),
    link_s=st.floats(0.0, 0.1),
    latency_s=st.floats(0.0, 0.1),
)


@given(st.lists(works, min_size=1, max_size=6), st.integers(1, 4))
def test_no_pipeline_beats_its_busiest_device(stages: list[StageWork], in_flight: int) -> None:
    found = simulate(stages, capacity=[1.0] * 3, max_in_flight=in_flight, batches=12)
    stages = [*stages[:-1], replace(stages[-1], send_s=0.0)]  # the last has nobody to send to
    loads = [sum(s.total_s for s in stages if s.device == device) for device in range(3)]
    loads += [stage.link_s for stage in stages[:-1]]
    in_order = list(found.ends_s)
    assert in_order == sorted(in_order)
    learning = sum(stage.learn_s for stage in stages)  # may be going on when the last is done
    assert found.ends_s[-1] >= 12 * max(loads) - learning - 1e-6
    assert found.ends_s[0] >= sum(s.forward_s for s in stages) - 1e-6
    assert all(share <= 1 + 1e-6 for share in (*found.device_busy, *found.stage_busy))


@given(st.lists(works, min_size=1, max_size=5))
def test_more_credits_never_slow_it_down_on_devices_of_their_own(stages: list[StageWork]) -> None:
    apart = [replace(stage, device=number) for number, stage in enumerate(stages)]
    ends = [
        simulate(apart, capacity=[1.0] * len(apart), max_in_flight=n, batches=10).ends_s[-1]
        for n in (1, 2, 4)
    ]
    assert ends[0] >= ends[1] - 1e-9 >= ends[2] - 2e-9
