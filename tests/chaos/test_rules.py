"""Two of the rules; `python tests/chaos/rules.py` is the whole proof."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from chaos.rules import cases, difference

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("sockets_gone")]
CASES = {(case.name, case.precision): case for case in cases()}


def test_a_run_by_a_shipped_rule_that_loses_a_worker_ends_alike(tmp_path: Path) -> None:
    case = CASES["forward_forward", "bf16"]
    case.train(tmp_path / "single", single=True)
    told = case.train_killed(tmp_path / "killed", Random(1))
    assert difference(tmp_path / "killed", tmp_path / "single") == "", told


def test_a_run_by_a_rule_of_every_hook_goes_on_in_other_stages(tmp_path: Path) -> None:
    case = CASES["WithDropout, mlp", "fp32"]
    case.train(tmp_path / "single", single=True)
    told = case.train_resumed(tmp_path / "resumed", Random(1))
    assert difference(tmp_path / "resumed", tmp_path / "single") == "", told


def test_a_difference_is_found(tmp_path: Path) -> None:
    """Of runs by other seeds."""
    case = CASES["mono_forward", "fp32"]
    for name, seed in (("one", 1), ("other", 2)):
        case.train(tmp_path / name, f"runtime.seed={seed}", single=True)
    assert difference(tmp_path / "other", tmp_path / "one").startswith("OTHER BYTES of blocks [0")


def test_every_config_of_a_rule_is_a_case() -> None:
    names = {name for name, _ in CASES}
    assert {"soft_hebb", "noprop", "EveryHook, maps"} <= names
    assert len(CASES) == 2 * len(names) == 22
