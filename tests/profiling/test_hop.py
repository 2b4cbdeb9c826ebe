"""What a hop from one stage to the next takes, measured over a link from a process to itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from launch.job import Job, Options
from launch.plan import cost_cache as costfile
from launch.plan.checks import make_job
from pipeline.data.facts import data_facts
from pipeline.profiling import hop
from pipeline.profiling.blocks import BATCHES, WARM_UP

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.network.specs import BlockSpec


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hop, "SECONDS", 0.0)


@pytest.fixture
def job(tiny: Path) -> Job:
    """Of three stages, the last of two blocks."""
    return make_job(Options(tiny, gpus="cpu"))


def test_only_hops_count_and_each_comes_after_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = [0.0], ""

    def cross() -> None:
        nonlocal done
        done += "c"
        clock[0] += 1.0 if len(done) > 2 * WARM_UP else 50.0

    def train() -> None:
        nonlocal done
        done += "t"
        clock[0] += 7.0

    monkeypatch.setattr(hop, "process_time", lambda: clock[0])
    assert hop._mean_s(cross, train) == 1.0
    assert done == "tc" * (WARM_UP + BATCHES)


def test_more_batches_cross_than_there_are_slots() -> None:
    with hop.link_to_itself(images=4, slots=2) as cross:
        assert isinstance(cross, hop._Crossing)
        for _ in range(5):
            cross()  # ends once the batch has arrived


def test_a_long_name_of_the_folder_for_passing_files_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sockets have paths of 107 bytes at most."""
    folder = tmp_path / ("long-" * 25)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with hop.link_to_itself(images=4, slots=1) as cross:
        cross()
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("torch_settings")
def test_a_hop_takes_some_of_the_processor(job: Job) -> None:
    config, unit = job.config, job.specs[:1]
    assert 0 < hop.hop_s(config, data_facts(config.data), unit) < 1


def test_it_is_measured_beside_the_soonest_part_of_a_network_on_a_cpu(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beside(config: object, facts: object, unit: Sequence[BlockSpec]) -> float:
        return float(unit[0].index)

    monkeypatch.setattr(hop, "hop_s", beside)
    facts, told = data_facts(job.config.data), list[str]()

    def found(device: str) -> float:
        return costfile._hop_s(
            job.config, facts, job.specs, {0: 3.0, 2: 2.0, 1: 1.0}, device, told.append
        )

    assert found("cpu") == 1.0
    assert found("cuda:0") == 0.0
    assert told == ["what a hop from stage to stage takes"]
