"""How stages on the cores of one CPU slow each other down: measured in turns, alone and among
others."""

from __future__ import annotations

from contextlib import contextmanager
from multiprocessing import active_children
from operator import gt
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest
from processes import until

from launch.job import Job, Options, make_job
from pipeline import crowd
from pipeline.crowd import TURNS, crowded_speed
from pipeline.datasets import data_facts
from pipeline.errors import TimedOutError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def job(tiny: Path) -> Job:
    return make_job(Options(tiny, gpus="cpu"))


class Clock:
    """In place of a process and of its company: a step takes 1 s alone, among others what is
    given."""

    def __init__(self, crowded_s: float) -> None:
        self.asked: list[float] = []
        self._crowded_s, self._now_s = crowded_s, 1.0

    def step_s(self) -> float:
        self.asked.append(self._now_s)
        return self._now_s

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self._now_s = self._crowded_s
        yield
        self._now_s = 1.0


def test_the_speed_is_that_among_others_as_a_share_of_that_alone(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(1.25)

    @contextmanager
    def company(*given: Any) -> Iterator[Clock]:
        yield clock

    monkeypatch.setattr(crowd, "_company", company)
    monkeypatch.setattr(crowd, "_warm_trainer", lambda *given: None)
    monkeypatch.setattr(crowd, "_step_s", lambda trainer: clock.step_s())
    monkeypatch.setattr(crowd, "SECONDS", 0.0)
    facts = data_facts(job.config.data)
    assert crowded_speed(job.config, facts, [0, 1]) == pytest.approx(0.8)
    assert clock.asked == [1.0, 1.25] * TURNS
    clock = Clock(0.5)
    assert crowded_speed(job.config, facts, [0, 1]) == 1.0


@pytest.mark.processes
@pytest.mark.usefixtures("torch_settings")
def test_others_train_and_rest_together(job: Job) -> None:
    with crowd._company(job.config, data_facts(job.config.data), [0, 2]) as company:
        for _ in range(2):
            with company.at_work():
                before = worked()
                until(lambda before=before: all(map(gt, worked(), before)), "work of all")
            before = worked()
            sleep(0.1)
            assert worked() == before


def worked() -> list[int]:
    """Ticks of processor time that each child has had in its own code."""
    pids = sorted(child.pid or 0 for child in active_children())
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in pids]
    return [int(stat.rpartition(")")[2].split()[11]) for stat in stats]


@pytest.mark.processes
@pytest.mark.usefixtures("torch_settings")
def test_nobody_waits_for_ever_for_others(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "_PATIENCE_S", 0.05)
    with pytest.raises(TimedOutError, match=r"another process has not begun training within 0.05"):
        crowded_speed(job.config, data_facts(job.config.data), [1, 0])
