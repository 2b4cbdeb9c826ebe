"""Results are kept whole, under names that no other has."""

from __future__ import annotations

import json
from datetime import date
from typing import TYPE_CHECKING

import pytest

from benchmarks.lib.result_files import keep_so_far, kept_results, make_writable, write_result
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_is_overwritten(results: Path) -> None:
    today = date.today().isoformat()
    for number in (1, 2, 3):
        write_result("mine_bf16", {"commit": "abc1234", "number": number})
    write_result("mine", {"commit": "", "number": 4})  # not from a clone
    assert [(path.name, name, day, tree["number"]) for path, name, day, tree in kept_results()] == [
        (f"mine-{today}.json", "mine", today, 4),
        (f"mine_bf16-{today}-abc1234.json", "mine_bf16", today, 1),
        (f"mine_bf16-{today}-abc1234-2.json", "mine_bf16", today, 2),
        (f"mine_bf16-{today}-abc1234-3.json", "mine_bf16", today, 3),
    ]
    assert len(list(results.iterdir())) == 4


def test_what_was_measured_until_now_is_no_result(results: Path) -> None:
    results.mkdir()
    partial = keep_so_far("mine", {"commit": "abc1234", "rounds": 1})
    assert json.loads(partial.read_text("utf-8")) == {"commit": "abc1234", "rounds": 1}
    assert kept_results() == []
    write_result("mine", {"commit": "abc1234", "rounds": 2})
    assert not partial.exists()
    assert [one.tree["rounds"] for one in kept_results()] == [2]


def test_a_folder_that_can_not_be_made_is_named(results: Path) -> None:
    results.write_text("in the way", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"results: can't be made: File exists"):
        make_writable(results)
