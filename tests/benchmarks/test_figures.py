"""Pictures and tables of the benchmarks come from what was kept, the same for the same numbers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.lib import figures
from benchmarks.lib.allocations import Peaks
from benchmarks.lib.contenders import Contender
from benchmarks.lib.figures import draw_links, draw_scaling, draw_throughput
from benchmarks.lib.memory_report import _bars
from benchmarks.lib.scaling_report import Division, Round, summary, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROUNDS = [
    {Division(1): Round(90.0, 100.0), Division(2): Round(150.0, 180.0)},
    {Division(1): Round(100.0, 100.0), Division(2): Round(180.0, 190.0)},
]
SCALING = {"mlp": summary(ROUNDS), "vgg8b": summary(ROUNDS[:1])}
ON_GPUS = {
    Division(2, "0"): Round(900.0, 1000.0),
    Division(2, "0-1"): Round(1900.0, 2000.0),
    Division(4, "0-1"): Round(1800.0, 2000.0),
}
CONTENDERS: list[dict[str, Any]] = [
    {**asdict(Contender("pipeline", "pred", "fp32", 2)), "images_per_s": 200.0},
    {**asdict(Contender("1f1b", "glob", "fp32", 2, 4)), "images_per_s": None},
]
LINKS = {"0.5": {"copy": {"bytes_per_s": 2e10}}, "64": {"copy": {"bytes_per_s": 8e9}}}
DRAWINGS: dict[str, Callable[[], Path]] = {
    "scaling": lambda: draw_scaling(SCALING, "scaling"),
    "scaling_cuda": lambda: draw_scaling({"mlp": summary([ON_GPUS])}, "scaling_cuda"),
    "throughput": lambda: draw_throughput(
        [{"network": "mlp", "contenders": CONTENDERS}], "throughput"
    ),
    "links": lambda: draw_links(LINKS, "links"),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_numbers_give_the_same_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FIGURES", tmp_path / "figures")
    path = DRAWINGS[name]()
    first = path.read_bytes()
    assert path == tmp_path / "figures" / f"{name}.svg"
    assert first.startswith(b"<?xml")
    assert DRAWINGS[name]().read_bytes() == first


def test_what_exceeds_the_whole_is_not_drawn_in_it() -> None:
    _, (panel,) = figures.panels(1)
    found = [{"single": Peaks(4_000_000, 1_000_000)}, {"single": Peaks(4_000_000, 5_000_000)}]
    _bars(panel, found, ["one", "two"])
    assert [bar.get_height() for bar in panel.patches] == [4.0, 4.0, 1.0, 0.0]


def test_predictions_are_held_against_measurements_round_by_round() -> None:
    assert [row["predicted_over_measured"] for row in SCALING["mlp"]] == [0.95, 0.8904]
    lines = table(SCALING).splitlines()
    assert lines[2:4] == [
        "| mlp | cpu | 1 | 95 | 100 | -5.0% | -10.0% to +0.0% | yes |",
        "| mlp | cpu | 2 | 165 | 185 | -11.0% | -16.7% to -5.3% | **no** |",
    ]


def test_each_set_of_devices_has_rows_and_curves_of_its_own() -> None:
    rows = summary([ON_GPUS])
    assert [(row["gpus"], row["stages"]) for row in rows] == [("0", 2), ("0-1", 2), ("0-1", 4)]
    assert "| mlp | 0-1 | 4 | 1,800 | 2,000 | -10.0% |" in table({"mlp": rows})
