"""Every example works as it stands there, and is short."""

from __future__ import annotations

import re
import runpy
import sys
from typing import TYPE_CHECKING

import pytest
from support import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("documents")

EXAMPLES = REPOSITORY / "examples"
MOST_LINES = 40
STARTS_PROCESSES = pytest.mark.processes


@pytest.fixture(autouse=True)
def _an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where an example runs; it finds modules beside itself, as `python FILE` does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    sys.modules.pop("text_data", None)


@pytest.mark.parametrize(
    ("example", "most"),
    [
        pytest.param("own_rule", 6.0, marks=STARTS_PROCESSES),
        pytest.param("own_network_and_arrays", 6.0, marks=STARTS_PROCESSES),
        pytest.param("transformer", 90.0, marks=STARTS_PROCESSES),
        ("transfer_to_plain_pytorch", 12.0),
    ],
)
def test_examples_end_with_a_low_error(
    example: str, most: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """In percent, the last that they print."""
    runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
    said = capsys.readouterr().out
    errors = re.findall(r"(?:error.*: |'error_pct': )([\d.]+)", said)
    assert float(errors[-1]) < most


def test_the_example_of_scikit_learn_finds_settings(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "sklearn_grid_search.py"), run_name="__main__")
    best, accuracy = capsys.readouterr().out.splitlines()
    assert best.startswith("best: {'localclassifier__hidden': (64,")
    assert float(accuracy.removeprefix("accuracy: ")) > 0.9


def test_examples_are_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert {"own_rule.py", "transformer.py"} <= lengths.keys()
    assert {name: lines for name, lines in lengths.items() if lines >= MOST_LINES} == {}
