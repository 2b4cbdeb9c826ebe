"""The closed form against schedules worked out by hand, simulations, and what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from statistics import median
from typing import Any

import pytest
from support import REPOSITORY

from pipeline.planning.prediction import StageWork, batch_s

SIMULATED = json.loads((REPOSITORY / "tests/planning/simulated.json").read_text(encoding="utf-8"))
SHARES = {
    "mlp": [(1.0,), (0.488, 0.512), (0.488, 0.256, 0.257), (0.232, 0.256, 0.256, 0.257)],
    "vgg8b": [(1.0,), (0.516, 0.484), (0.409, 0.448, 0.143), (0.409, 0.107, 0.341, 0.143)],
}
"""Of multiply-adds, of each stage where `benchmarks.scaling` makes one to four of them."""


def on_a_cpu(*seconds: float, learn: float = 0.5) -> list[StageWork]:
    return [StageWork(0, s * (1 - learn), s * learn) for s in seconds]


@pytest.mark.parametrize(
    ("works", "given", "seconds"),
    [
        ([StageWork(0, 1.0, 2.0)], {}, 3.0),
        ([StageWork(0, 1.0, 2.0), StageWork(1, 1.0, 1.0)], {}, 3.0),
        ([StageWork(0, 1.0, 1.0), StageWork(1, 2.0, 2.0)], {"slots": 1}, 4.0),
        ([StageWork(0, 1.0, 1.0, send_s=0.5, link_s=1.0), StageWork(1, 1.0, 0.0)], {}, 2.5),
        ([StageWork(0, 0.5, 0.5)] * 2, {}, 2.0),
        (on_a_cpu(2.0, 2.0, 2.0), {"capacity": 3.0}, 2.0),
        (on_a_cpu(2.0, 2.0, 2.0), {"capacity": 2.0}, 3.0),
        ([StageWork(0, 0.5, 0.5)], {"feed": StageWork(-1, 3.0, 0.0)}, 3.0),
        ([StageWork(0, 1.0, 1.0)], {"feed": StageWork(0, 1.0, 0.0)}, 3.0),
    ],
    ids=["stage", "slowest", "one slot", "copies", "turns", "cores", "few cores", "feed", "shared"],
)
def test_what_is_always_at_work_is_the_bound(
    works: list[StageWork], given: dict[str, Any], seconds: float
) -> None:
    assert batch_s(works, **{"capacity": 1.0, "slots": 2, **given}) == pytest.approx(seconds)


def test_a_link_carries_one_batch_after_the_other_and_slots_hide_latency() -> None:
    """Two batches in 31 s of travel and one of work; 64 of them hide that behind stage 0."""
    works = [StageWork(0, 1.0, 1.0, link_s=3.0, latency_s=0.5), StageWork(1, 1.0, 0.0)]
    assert [batch_s(works, capacity=1.0, slots=slots) for slots in (2, 16)] == [3.0, 3.0]
    far = [StageWork(0, 1.0, 1.0, latency_s=30.0), StageWork(1, 1.0, 0.0)]
    assert [batch_s(far, capacity=1.0, slots=slots) for slots in (2, 64)] == [15.5, 2.0]


def test_between_hosts_a_slot_is_free_again_when_its_credit_is_back() -> None:
    works = [
        StageWork(0, 1.0, 1.0, link_s=1.0, latency_s=10.0, credit_s=10.0),
        StageWork(1, 1.0, 0),
    ]
    assert [batch_s(works, capacity=1.0, slots=slots) for slots in (2, 4, 32)] == [11.0, 5.5, 2.0]


def test_from_another_host_examples_come_as_the_wire_and_the_slots_let_them() -> None:
    """Of a slot of stage 0: 2 s on the wire, 5 s of latency, 2 s of work, 5 s until the credit."""
    feed = StageWork(-1, 0.5, 0.0, link_s=2.0, latency_s=5.0, credit_s=5.0)
    works = [StageWork(0, 1.0, 1.0), StageWork(0, 0.0, 0.0)]
    found = [batch_s(works, capacity=1.0, slots=slots, feed=feed) for slots in (1, 2, 32)]
    assert found == [14.0, 7.0, 2.0]
    slow = replace(feed, link_s=3.0)
    assert batch_s(works, capacity=1.0, slots=32, feed=slow) == 3.0


def test_three_at_work_on_two_cores_hold_up_the_longest() -> None:
    """It has half of the work, so it would be the bound if it had a core of its own."""
    assert 2.1 < batch_s(on_a_cpu(2.0, 1.0, 1.0), capacity=2.0, slots=2) < 2.4


def drawn(rng: Random) -> tuple[list[StageWork], dict[str, Any]]:
    """A pipeline on one CPU, or on up to four devices, on which stages lie in order or anyhow."""
    n, on_cpu = rng.randint(1, 12), rng.random() < 0.4
    most = 1 if on_cpu else rng.randint(1, min(4, n))
    devices = [0] * n
    if most > 1:
        in_order = rng.random() < 0.5
        devices = [rng.randrange(most) for _ in range(n)]
        devices = sorted(devices) if in_order else devices
    capacity = rng.choice([1.0, 1.5, 2.0, 3.0, 4.0, 8.0]) if on_cpu else 1.0
    even, size = rng.random() < 0.5, rng.choice([0.0, 0.0, 0.03, 0.3, 1.0])
    works = []
    for stage in range(n):
        total = rng.uniform(0.8, 1.2) if even else rng.uniform(0.1, 2)
        forward = total * rng.uniform(0.1, 0.6)
        here = stage + 1 == n or devices[stage + 1] == devices[stage]
        send = 0.0 if stage + 1 == n else rng.uniform(0, 0.1) * (size > 0)
        link, latency = (0.0 if here else size * rng.uniform(0, 2) for _ in range(2))
        works.append(StageWork(devices[stage], forward, total - forward, send, link, latency))
    slots = rng.randint(1, 8)
    feed_s = rng.choice([0.0, 0.1, 0.5, 1.0, 2.0]) * rng.random()
    feed = StageWork(0 if on_cpu else -1, feed_s, 0.0)
    return works, {"capacity": capacity, "slots": slots, "feed": feed}


def test_it_agrees_with_a_simulation_of_every_event() -> None:
    """`simulated.json` has the seconds per batch of the simulation that came before it, of these
    very pipelines; 19 of 20 within 5 %."""
    rng = Random(SIMULATED["seed"])
    off = []
    for seconds in SIMULATED["batch_s"]:
        works, given = drawn(rng)
        off.append(abs(batch_s(works, **given) / seconds - 1))
    assert len(off) == 600
    assert max(off) < 0.15
    assert sorted(off)[570] < 0.05


@pytest.mark.parametrize("network", ["mlp", "vgg8b"])
@pytest.mark.parametrize("name", ["2026-11-22-397eef5", "2026-11-28-bf323df"])
def test_it_agrees_with_what_was_measured(name: str, network: str) -> None:
    """Of two to four stages on two cores, by the speed of one stage and multiply-adds, and by one
    number of each machine and network: how fast stages are while the others work, too. A hundredth
    of a batch's work is to feed it."""
    path = REPOSITORY / f"benchmarks/results/scaling-{name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))[network]
    alone = rows[0]["rounds"]
    quotients = []
    for row, shares in zip(rows[1:], SHARES[network][1:], strict=True):
        pairs = zip(row["rounds"], alone, strict=True)
        speedup = median(one["measured"] / before["measured"] for one, before in pairs)
        feed = StageWork(0, 0.01, 0.0)
        plain_s = batch_s(on_a_cpu(*shares), capacity=2.0, slots=2, feed=feed)
        quotients.append(plain_s * speedup)
    crowded_speed = median(quotients)
    assert all(abs(crowded_speed / quotient - 1) < 0.1 for quotient in quotients)
    assert 0.85 < crowded_speed < 1.0
