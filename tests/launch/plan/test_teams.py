"""What `--data-parallel` goes together with, and what a plan says of it."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from torch import nn

from launch.job import Options
from launch.plan.checks import make_job
from launch.plan.dry_run import dry_run_report
from launch.plan.known_speed import cautions
from launch.plan.links import planned_links
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from launch.job import Job

CONFIG = """\
model: {name: mlp, hidden_layers: 3, hidden: 8}
loss: {name: predsim}
data: {name: digits, batch_size: 8}
"""
BOTH = "batch_norm: batch, similarity: batch"


def job(
    path: Path, parallel: str, config: str = CONFIG, members: int = 2, **options: object
) -> Job:
    path = path / "run.yaml"
    path.write_text(f"{config}parallel: {{{parallel}}}\n", encoding="utf-8")
    given = {"gpus": "cpu", "dry_run": True, "data_parallel": members, **options}
    return make_job(Options(path, **given))  # type: ignore[arg-type]


def test_each_member_holds_the_whole_network(tmp_path: Path) -> None:
    stages = job(tmp_path, "", members=3).plan.stages
    assert [(stage.blocks, stage.member, stage.members) for stage in stages] == [
        ((0, 1, 2, 3), member, 3) for member in range(3)
    ]


@pytest.mark.parametrize(
    ("parallel", "seen"),
    [
        ("", ["batch norm", "loss.name predsim"]),
        ("batch_norm: batch", ["loss.name predsim"]),
        ("similarity: batch", ["batch norm"]),
        (BOTH, []),
    ],
)
def test_what_sees_a_share_is_named(parallel: str, seen: list[str], tmp_path: Path) -> None:
    told = cautions(job(tmp_path, parallel))
    notes = [note for note in told if "a share of the batch" in note]
    expected = [f"parallel.members 2: {' and '.join(seen)} see 4 examples, a share"] if seen else []
    assert [note.partition(" of the batch")[0] for note in notes] == expected


def test_a_plan_says_where_members_wait(tmp_path: Path) -> None:
    for parallel, waits in (("", False), (BOTH, True)):
        made = job(tmp_path, parallel)
        shown = StringIO()
        of = made.config, made.facts, made.specs, made.costs, made.plan
        dry_run_report(*of, Console(file=shown))
        text = " ".join(shown.getvalue().split())
        said = "For parallel.batch_norm and parallel.similarity they wait for each other within"
        assert (said in text) == waits


def test_members_do_the_multiply_adds_of_one_and_are_sent_whole_batches(tmp_path: Path) -> None:
    made = job(tmp_path, "", members=2)
    macs = [stage.train_macs for stage in made.plan.stage_costs(made.costs)]
    assert sum(macs) == pytest.approx(sum(cost.train_macs for cost in made.costs), abs=2)
    images = 8 * (64 + 8)  # with a label of eight bytes each
    assert [link.nbytes for link in planned_links(made)] == [images, images]
    of_backprop = job(tmp_path, "", CONFIG.replace("predsim", "glob"), members=2)
    assert [link.nbytes for link in planned_links(of_backprop)] == [images, images]


@pytest.mark.parametrize(
    ("parallel", "others", "options", "said"),
    [
        (BOTH, "", {"members": 1}, "parallel.batch_norm batch: needs parallel.members 2 or more"),
        ("batch_norm: batch", "runtime: {compile: true}", {}, "doesn't go with runtime.compile"),
        ("", "", {"members": 5}, "5: each needs two examples of a batch, and data.batch_size is 8"),
        ("", "", {"stages": 2}, "--stages 2: parallel.members 2: every process holds the whole"),
        ("replicas: {1: 2}", "", {}, "don't go together with parallel.members 2"),
        ("", "", {"replicas": ("auto",)}, "--replicas: parallel.members 2: every process holds"),
    ],
)
def test_what_does_not_go_together(
    parallel: str, others: str, options: dict[str, int], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        job(tmp_path, parallel, f"{CONFIG}{others}\n", **options)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_similarities_need_a_similarity_loss(tmp_path: Path) -> None:
    config = CONFIG.replace("predsim", "pred")
    with pytest.raises(ConfigError, match=r"similarity batch: needs loss.name sim or predsim"):
        job(tmp_path, "similarity: batch", config)


class Odd(nn.BatchNorm1d):
    """One that may do anything."""


def odd() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Odd(8), nn.ReLU(), nn.Linear(8, 10))


def test_a_batch_norm_of_a_users_own_kind_is_named(tmp_path: Path) -> None:
    config = f"""\
model: {{factory: "{__name__}:odd"}}
loss: {{name: pred}}
data: {{name: digits, batch_size: 8}}
"""
    assert job(tmp_path, "", config).plan.members == 2
    with pytest.raises(ConfigError, match=r"batch: block \d has a Odd, which may have a way"):
        job(tmp_path, "batch_norm: batch", config)
