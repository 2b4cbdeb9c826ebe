"""A few storms; `python tests/chaos/storm.py --seeds 1-20` is the whole proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.processes import launch

from chaos.storm import DIGITS, Storm, outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.processes import Launcher

    Start = Callable[..., Launcher]

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


@pytest.mark.parametrize("seed", [1])
def test_a_storm_changes_nothing(launcher: Start, tmp_path: Path, seed: int) -> None:
    (tmp_path / "calm.yaml").write_text(DIGITS, encoding="utf-8")
    assert launch(tmp_path / "calm.yaml", tmp_path / "calm", single=True) == 0
    storm = Storm(seed, tmp_path, launcher)
    storm.rage()
    assert outcome(tmp_path / "run") == outcome(tmp_path / "calm"), storm.hits
    assert "kill launcher" in storm.hits
    assert len(storm.hits) > 1
