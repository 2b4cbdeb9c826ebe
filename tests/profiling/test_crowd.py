"""How stages on the cores of one CPU slow each other down: all are trained at once."""

from __future__ import annotations

import os
import signal
from multiprocessing import active_children
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest

from launch.job import Job, Options
from launch.plan import cost_cache as costfile
from launch.plan.checks import make_job
from pipeline.data.facts import data_facts
from pipeline.errors import TimedOutError
from pipeline.planning.prediction import BlockTimes
from pipeline.planning.simulate import NO_CROWD, Crowd
from pipeline.profiling import crowd
from pipeline.profiling.crowd import crowded_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture
def job(tiny: Path) -> Job:
    """Of three stages, the last of two blocks."""
    return make_job(Options(tiny, gpus="cpu"))


def found(job: Job, device: str = "cpu", threads: int = 1) -> Crowd:
    """Where blocks take 1, 2, 0 and 3 s alone."""
    times = [BlockTimes(n, 0.25 * s, 0.75 * s) for n, s in enumerate((1.0, 2.0, 0.0, 3.0))]
    runtime = job.config.runtime.model_copy(update={"threads_per_stage": threads})
    config = job.config.model_copy(update={"runtime": runtime})
    facts = data_facts(config.data)
    alone = costfile._units(job.specs, times)
    return costfile._crowd(config, facts, alone, device, lambda text: None)


def test_the_speed_is_that_alone_over_that_among_all(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {0: 1.5, 1: 2.0, 2: 4.0}

    def crowded(config: Any, facts: Any, units: Sequence[int]) -> dict[int, float]:
        return {unit: taken[unit] for unit in units}

    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(crowd, "crowded_seconds", crowded)
    assert found(job) == Crowd(6 / 7.5, at_work=3)
    assert found(job, threads=2) == Crowd(5 / 6, at_work=2)  # as many as there is room for
    assert found(job, threads=4) == NO_CROWD  # which has no other beside it
    assert found(job, device="cuda:0") == NO_CROWD
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    assert found(job) == Crowd(6 / 7.5, at_work=2)  # all three are, but on two cores
    taken = {0: 0.5, 1: 1.0, 2: 2.5}  # the machine has become faster meanwhile
    assert found(job) == Crowd(1.5, at_work=2)


@pytest.mark.processes
def test_all_are_trained_and_no_process_is_left(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "SECONDS", 0.05)
    before = active_children()
    seconds = crowded_seconds(job.config, data_facts(job.config.data), [0, 2])
    assert sorted(seconds) == [0, 2]
    assert all(0 < one < 1 for one in seconds.values())
    assert active_children() == before


def work_that_ends(unit: int, *others: Any) -> None:
    """Part 1 does; the others go on."""
    sleep(0 if unit == 1 else 60)


@pytest.mark.processes
def test_a_process_that_ends_is_noticed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "_work", work_that_ends)
    with pytest.raises(TimedOutError, match=r"trains part 1 of the network .* has ended; is there"):
        crowded_seconds(job.config, data_facts(job.config.data), [0, 1, 2])


@pytest.mark.processes
def test_ctrl_c_is_for_who_measures(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "SECONDS", 60.0)
    before = signal.getsignal(signal.SIGINT)
    with crowd._crowd(job.config, data_facts(job.config.data), [0, 1]):
        children = [child for child in active_children() if child.daemon and child.pid]
        for child in children:
            os.kill(child.pid or 0, signal.SIGINT)
        children[0].join(0.3)
        assert all(child.is_alive() for child in children)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.processes
def test_nobody_waits_for_ever(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "_PATIENCE_S", 0.05)
    with pytest.raises(TimedOutError, match=r"has said nothing for 0\.05 s"):
        crowded_seconds(job.config, data_facts(job.config.data), [1, 0])
    assert not [child for child in active_children() if child.daemon]
