"""Which stages `--replicas` gives how many processes."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from launch.display.format import count_text
from launch.job import KnownSpeed, Options
from launch.plan.checks import make_job, network_costs
from launch.plan.dry_run import dry_run_report
from launch.plan.known_speed import cautions
from launch.plan.replicas import asked_for
from pipeline.errors import ConfigError
from pipeline.planning.hosts import Host
from pipeline.planning.plan import make_plan, speedup_bound_free, with_replicas
from pipeline.planning.prediction import BlockTimes, Timing

if TYPE_CHECKING:
    from pathlib import Path

    from launch.job import Job

CONFIG = """\
model: {name: mlp, hidden_layers: 3, hidden: 8}
loss: {name: pred}
data: {name: digits, batch_size: 8}
"""


def job(path: Path, *replicas: str, stages: int = 3, config: str = CONFIG) -> Job:
    path = path / "run.yaml"
    path.write_text(config, encoding="utf-8")
    return make_job(Options(path, stages=stages, gpus="cpu", replicas=replicas, dry_run=True))


def test_a_stage_gets_processes_of_which_the_first_takes_the_last_batch(tmp_path: Path) -> None:
    made = job(tmp_path, "1:3")
    assert made.config.parallel.replicas == {1: 3}
    found = [(stage.blocks, stage.member, stage.members) for stage in made.plan.stages]
    assert found == [((0,), 0, 1), ((1,), 2, 3), ((1,), 1, 3), ((1,), 0, 3), ((2, 3), 0, 1)]
    assert [made.plan.name(stage) for stage in (0, 1)] == ["stage 0", "stage 1, replica 2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1:1", "expected STAGE:N, as 1:2, with N from 2 to 64, or auto"),
        ("one", "expected STAGE:N"),
        ("3:2", "the plan has stages 0 to 2; name one of these"),
        ("auto", "chooses by times of blocks: measure them with --measure"),
    ],
)
def test_what_is_asked_for_in_vain(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--replicas ") as caught:
        job(tmp_path, text)
    assert said in str(caught.value)


def test_replicas_share_the_multiply_adds_of_their_stage(tmp_path: Path) -> None:
    """So that with a device each the plan is as much faster as the stage then is."""
    made = job(tmp_path, "0:2", stages=2)
    one, other = (
        sum(made.costs[block].train_macs for block in made.plan.stages[stage].blocks)
        for stage in (0, 2)
    )
    stages = made.plan.stage_costs(made.costs)
    assert [stage.train_macs for stage in stages] == [one // 2, one // 2, other]
    bound = (one + other) / max(one / 2, other)
    assert speedup_bound_free(stages, 3) == pytest.approx(bound, rel=0.01)
    shown = StringIO()
    of = made.config, made.facts, made.specs, made.costs, made.plan
    dry_run_report(*of, Console(file=shown, width=200))
    (total,) = [line for line in shown.getvalue().splitlines() if line.startswith("total")]
    parameters = sum(cost.parameters for cost in made.costs)
    assert total.split()[1] == count_text(parameters)


def test_a_stage_whose_blocks_differ_is_refused(tmp_path: Path) -> None:
    config = CONFIG + "parallel: {replicas: {1: 2}}\n"
    assert len(job(tmp_path, config=config).plan.stages) == 4
    with pytest.raises(ConfigError, match=r"stage 0 has blocks with different numbers of replicas"):
        job(tmp_path, stages=1, config=config)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ("schedule: {greedy: true}", "schedule.greedy"),
        ("runtime: {on_nonfinite: rollback}", "runtime.on_nonfinite rollback"),
    ],
)
def test_what_replicas_do_not_go_together_with(others: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"don't go together with {said}: leave one of them out"):
        job(tmp_path, "1:2", config=f"{CONFIG}{others}\n")


def test_auto_helps_the_stage_that_the_others_wait_for(tmp_path: Path) -> None:
    made = job(tmp_path)
    times = tuple(BlockTimes(block, t / 2, t / 2) for block, t in enumerate((0.1, 0.4, 0.09, 0.01)))
    costs = network_costs(made.config, made.specs)
    timing = Timing(times, costs, 8, capacity=8.0)
    known, plan = KnownSpeed(timing, "here"), made.plan
    few, many = ([Host("", "127.0.0.1", ("cpu",), room)] for room in (4, 8))
    assert asked_for(["auto"], made.config, plan, known, ["cpu"], few) == {1: 2}
    found = asked_for(["auto"], made.config, plan, known, ["cpu"], many)
    assert found == {1: 4}
    before = timing.prospect(plan, 2).images_per_s
    grown = with_replicas(plan, found, costs, ["cpu"], timing.loads)
    assert timing.prospect(grown, 2).images_per_s == pytest.approx(4 * before, rel=0.05)


def test_auto_says_where_it_finds_none(tmp_path: Path) -> None:
    made = replace(job(tmp_path), auto_replicas=True)
    (said,) = [line for line in cautions(made) if line.startswith("--replicas auto: ")]
    assert "every stage keeps one process" in said


def test_replicas_are_placed_on_devices_of_their_own(tmp_path: Path) -> None:
    made = job(tmp_path)
    devices = [f"cuda:{number}" for number in range(4)]
    plan = make_plan(made.specs, made.costs, stages=2, devices=devices[:2])
    grown = with_replicas(plan, dict.fromkeys(plan.stages[1].blocks, 3), made.costs, devices)
    assert sorted(stage.device for stage in grown.stages) == devices
