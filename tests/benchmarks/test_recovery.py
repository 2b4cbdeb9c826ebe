"""The parts of benchmarks/recovery.py that need no run: what it reads, and what it asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.recovery import (
    KILLED,
    NONE,
    Run,
    Timed,
    findings,
    in_epochs,
    ratios,
    snapshots_in,
    timed_config,
)
from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.network.from_config import network_specs
from pipeline.schedule.feed import Feed, Position, course_of
from pipeline.schedule.items import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from subprocess import Popen

LOG = """\
2026-01-01 00:00:00 checkpoint step-00000012
2026-01-01 00:00:00 epoch 5/9  step 20  lr 5e-04
2026-01-01 00:00:01 checkpoint step-00000024
2026-01-01 00:00:02 checkpoint step-00000036
"""


class Writer:
    """Stands for a process: whenever it is asked how it does, it writes its next part."""

    def __init__(self, path: Path, *parts: str) -> None:
        self._path, self._parts = path, list(parts)

    def poll(self) -> int | None:
        if not self._parts:
            return 0
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._parts.pop(0))
        return None


def lines_written(folder: Path, *parts: str) -> Iterator[str]:
    process: Popen[bytes] = Writer(folder / "run.log", *parts)  # type: ignore[assignment]
    return Run(process, folder).lines("run.log")


def test_lines_are_given_once_and_whole(tmp_path: Path) -> None:
    lines = lines_written(tmp_path, "one\ntw", "o\n", "three\nfo", "", "ur\nhalf")
    assert [next(lines) for _ in range(4)] == ["one", "two", "three", "four"]
    with pytest.raises(SystemExit, match=r"ended.*run\.log"):
        next(lines)


def test_a_run_that_writes_nothing_has_no_lines(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"ended.*run\.log"):
        next(lines_written(tmp_path))


def snapshots_of(tree: dict[str, Any]) -> list[int]:
    """The steps at which a config has snapshots."""
    config = build_config(tree, "a test")
    steps = config.data.train_images // config.data.batch_size
    specs = network_specs(config, data_facts(config.data))
    course = course_of(config, specs, steps, 1)
    return [item.step for item in Feed(course, Position()) if isinstance(item, Snapshot)]


def test_snapshots_come_every_so_many_epochs_or_last() -> None:
    assert snapshots_of(timed_config(5, 8, 3)) == [15, 30, 40]
    assert snapshots_of(timed_config(5, 8, None)) == [40]


def test_the_config_of_the_killed_run_is_one() -> None:
    assert build_config(KILLED, "a test").model.hidden_layers == 10


@pytest.mark.parametrize(("seconds", "epochs"), [(30.0, 12), (5.0, 2), (0.1, 1)])
def test_periods_are_whole_epochs(seconds: float, epochs: int) -> None:
    assert in_epochs(seconds) == epochs


def test_only_snapshots_within_the_timed_steps_count() -> None:
    assert snapshots_in(LOG, range(16, 36)) == 1
    assert snapshots_in(LOG, range(12, 37)) == 3


def test_ratios_are_those_within_a_round() -> None:
    runs = {
        "often": [Timed(90.0, 1.0, 9), Timed(210.0, 1.0, 9)],
        NONE: [Timed(100.0, 1.0, 0), Timed(200.0, 1.0, 0)],
    }
    assert ratios(runs) == {"often": [0.9, 1.05]}


def test_the_slowest_kill_and_the_first_ratio_are_held_against_what_was_asked() -> None:
    kills = [{"noticed_s": s, "back_s": 2 * s, "trained_s": 3 * s} for s in (0.25, 0.5, 1.25)]
    speeds = {"every 30 s": [0.96, 0.98, 0.99], "every 5 s": [0.9]}
    found = findings({"recovery": {"kills": kills}, "snapshots": {"ratios": speeds}})
    assert [(one.what, one.found, one.met) for one in found if one.asked] == [
        ("until four more steps were trained", "1.500 s (of 3, 0.750 to 3.750)", False),
        ("speed with a snapshot every 30 s / without", "0.980 (of 3, 0.960 to 0.990)", True),
    ]
