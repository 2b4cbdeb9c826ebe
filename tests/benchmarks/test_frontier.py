"""The frontier: who is beaten, what is told of it, and how memory of several processes is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.frontier import (
    Way,
    draw,
    findings,
    front,
    lap,
    points_of,
    rows_of,
    table,
    ways_of,
)
from benchmarks.lib.contenders import Contender, Task
from benchmarks.lib.watched import watched
from launch.referee.rows import Row
from launch.referee.table import read_table
from launch.referee.tasks import Request, config_of
from launch.referee.tasks import Task as RefereeTask
from pipeline.config.config_file import config_of as config_of_text
from pipeline.config.sections import config_tree
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError
from pipeline.network.from_config import network_specs

if TYPE_CHECKING:
    from pathlib import Path


def point(
    label: str, speed: float, error: float | None, nbytes: int, **more: Any
) -> dict[str, Any]:
    laps = [{"images_per_s": speed, "peak_bytes": nbytes}]
    return {
        "label": label,
        "rounds": laps,
        "error_pct": error,
        "is_local": "local" in label,
        **more,
    }


RESULT: dict[str, Any] = {
    "title": "A network",
    "ways": [
        point("backprop", 100.0, 2.0, 1000),
        point("local fast", 300.0, 3.0, 800),
        point("local slow", 90.0, 2.0, 1000),
        point("local small", 50.0, 4.0, 100),
        point("local unknown", 50.0, None, 100),
        {**point("backprop failed", 1.0, 2.0, 1), "rounds": [{"failed": "no memory"}]},
    ],
}


def test_on_the_front_is_what_no_other_beats_in_all_three() -> None:
    points = points_of(RESULT)
    assert [one["label"] for one in points] == [
        "backprop", "local fast", "local slow", "local small"
    ]  # fmt: skip
    assert front(points) == ["backprop", "local fast", "local small"]
    assert front([points[0], {**points[0], "label": "same"}]) == ["backprop", "same"]


def test_what_is_told_names_the_best_of_both_kinds_and_what_failed() -> None:
    told = {one.what: one.found for one in findings(RESULT)}
    assert told["images/s: the best local"] == "300, local fast"
    assert told["error, %: the best backprop"] == "2, backprop"
    assert told["memory: the best local"] == "100 B, local small"
    text = table(RESULT)
    assert "| local fast * | 3.00 | 300 | 800 B |" in text
    assert "| local slow | 2.00 | 90 | 1000 B |" in text
    assert "- backprop failed: no memory" in text


def test_a_picture_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    pictures = []
    for name in ("one", "other"):
        draw(RESULT, tmp_path / f"{name}.svg")
        pictures.append((tmp_path / f"{name}.svg").read_bytes())
    assert pictures[0] == pictures[1]
    assert b"local fast" in pictures[0]


def test_all_ways_are_asked_for() -> None:
    referee = read_table()
    network = referee.networks["mlp"]
    request = Request(referee, [network], [])
    rows = {
        name: Row(
            f"mlp/{name}/seed=1",
            config_tree(config_of(RefereeTask(network, referee.rules[name], "train"), request)),
            (),
            {},
        )
        for name in ("backprop", "pred")
    }
    ways = {way.label: way for way in ways_of("mlp", rows, [2, 3], 2, 1.0)}
    assert list(ways) == [
        "backprop, 1 thread", "backprop, 2 threads", "pred, 1 thread", "pred, 2 processes",
        "pred, 3 processes", "DistributedDataParallel, 2 processes", "1F1B, 2 processes in 1",
        "1F1B, 2 processes in 2",
    ]  # fmt: skip
    config = config_of_text(ways["backprop, 2 threads"].config, "test")
    assert (config.runtime.threads_per_stage, config.runtime.eval_every_epochs) == (2, 0)
    assert ways["pred, 1 thread"].images == config.data.train_limit == 40 * 128
    rival = config_of_text(ways["DistributedDataParallel, 2 processes"].config, "test")
    assert (rival.loss.name, rival.runtime.threads_per_stage) == ("glob", 1)


@pytest.mark.parametrize("name", ["mlp", "cnn3"])
def test_rivals_train_the_referees_networks(name: str) -> None:
    referee = read_table()
    network, backprop = referee.networks[name], referee.rules["backprop"]
    ours = config_of(
        RefereeTask(network, backprop, "train"), Request(referee, [network], [backprop])
    )
    task = Task(name, Contender("1f1b", "glob", "fp32"), None, 1, 1.0, ("model.dropout=0.0",))
    theirs = task.config()
    assert network_specs(theirs, data_facts(theirs.data)) == network_specs(
        ours, data_facts(ours.data)
    )
    assert theirs.data.batch_size == ours.data.batch_size


def test_without_rows_it_says_who_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pipeline-referee --networks mlp makes them"):
        rows_of("mlp", tmp_path)


@pytest.mark.processes
def test_memory_is_that_of_all_processes_together() -> None:
    fills = "x = bytearray(b'1') * (64 << 20); import time; time.sleep(1)"
    once = ["timeit", "-n", "1", "-r", "1"]
    alone = watched([*once, fills], 60.0)
    starts = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {fills!r}])"
    both = watched([*once, "-s", starts, fills], 60.0)
    assert (alone.failed, both.failed) == ("", "")
    assert 64 << 20 < alone.peak_bytes < 200 << 20
    assert both.peak_bytes > alone.peak_bytes + (60 << 20)


TINY = """\
model: {name: mlp, hidden_layers: 1, hidden: 16}
loss: {name: glob}
schedule: {epochs: 2}
data: {name: digits, batch_size: 32, train_limit: 320, test_limit: 64}
runtime: {eval_every_epochs: 0}
"""


@pytest.mark.processes
def test_a_rival_of_two_processes_trains_the_same_config() -> None:
    words = ("benchmarks.rivals.ddp", "--processes", "2")
    found = lap(Way("DDP", "backprop", words, TINY, 320, is_run=False), 1.0)
    assert found["images_per_s"] > 0, found
    assert found["peak_bytes"] > 100 << 20


@pytest.mark.processes
def test_a_command_that_fails_says_why() -> None:
    found = watched(["json.tool", "/no/such/file"], 60.0)
    assert "No such file" in found.failed
