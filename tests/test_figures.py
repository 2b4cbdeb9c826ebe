"""Pictures and tables of the benchmarks come from what was kept, the same for the same numbers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import figures
from benchmarks.allocations import Peaks
from benchmarks.contenders import Contender
from benchmarks.figures import draw_links, draw_scaling, draw_throughput
from benchmarks.memory_report import _bars
from benchmarks.scaling import Round, summary, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROUNDS = [
    {1: Round(90.0, 100.0), 2: Round(150.0, 180.0)},
    {1: Round(100.0, 100.0), 2: Round(180.0, 190.0)},
]
SCALING = {"mlp": summary(ROUNDS), "vgg8b": summary(ROUNDS[:1])}
CONTENDERS: list[dict[str, Any]] = [
    {**asdict(Contender("pipeline", "pred", "fp32", 2)), "images_per_s": 200.0},
    {**asdict(Contender("1f1b", "glob", "fp32", 2, 4)), "images_per_s": None},
]
LINKS = {"0.5": {"copy": {"bytes_per_s": 2e10}}, "64": {"copy": {"bytes_per_s": 8e9}}}
DRAWINGS: dict[str, Callable[[], Path]] = {
    "scaling": lambda: draw_scaling(SCALING, "scaling"),
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
        "| mlp | 1 | 95 | 100 | -5.0% | -10.0% to +0.0% | yes |",
        "| mlp | 2 | 165 | 185 | -11.0% | -16.7% to -5.3% | **no** |",
    ]
