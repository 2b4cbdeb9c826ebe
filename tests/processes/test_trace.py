"""`--trace` with real processes: the same weights, and a trace of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.processes import TINY_EPOCH, final_digests, launch
from support.traces import read_trace

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("sockets_gone")]


def test_processes_are_recorded_on_one_clock(tiny: Path, tmp_path: Path) -> None:
    assert launch(tiny, tmp_path / "plain", single=True) == 0
    assert launch(tiny, tmp_path / "run", stages=2, trace=TINY_EPOCH + 2) == 0
    assert final_digests(tmp_path / "run") == final_digests(tmp_path / "plain")
    assert not (tmp_path / "plain" / "trace.json").exists()
    trace = read_trace(tmp_path / "run")
    batches = list(range(1, TINY_EPOCH + 3))
    assert [trace.batches(stage) for stage in range(2)] == [batches, batches]
    assert all(trace.hops(batch) == ["to stage 0", "to stage 1"] for batch in batches)
    assert [stage["clock"] for stage in trace.other["stages"]] == ["the same", "the same"]
    copies = [span for span in trace.spans(0, "copy") if span["args"].get("batch") == 1]
    assert len(copies) == 3  # from the slot; of activation and targets, into the next stage's
