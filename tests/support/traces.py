"""What must be true of every `trace.json`."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    Event = dict[str, Any]


@dataclass(frozen=True)
class Trace:
    """A trace that keeps the rules."""

    events: list[Event]
    other: dict[str, Any]

    def spans(self, pid: int, category: str = "") -> list[Event]:
        """Of one process row, in order."""
        found = [event for event in self.events if event["ph"] == "X" and event["pid"] == pid]
        return [span for span in found if not category or span["cat"] == category]

    def batches(self, pid: int, name: str = "compute") -> list[int]:
        """Training batches of which a row has a span of that name."""
        found = (span["args"].get("batch") for span in self.spans(pid) if span["name"] == name)
        return [batch for batch in found if batch is not None]

    def hops(self, batch: int) -> list[str]:
        """The arrows of a training batch, by name."""
        return [
            event["name"]
            for event in self.events
            if event["ph"] == "s" and (event["cat"], event["id"]) == ("batch", batch)
        ]


def read_trace(run_dir: Path) -> Trace:
    """The trace in a run's folder, checked."""
    tree = json.loads((run_dir / "trace.json").read_text(encoding="utf-8"))
    trace = Trace(tree["traceEvents"], tree["otherData"])
    _spans_follow_each_other(trace)
    _arrows_go_forward_in_time(trace)
    return trace


def _spans_follow_each_other(trace: Trace) -> None:
    threads: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in trace.events:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append(event)
    assert threads
    for spans in threads.values():
        assert all(span["dur"] >= 0 and span["ts"] >= 0 for span in spans)
        for before, after in pairwise(spans):
            end_ns = round(1000 * before["ts"]) + round(1000 * before["dur"])
            assert end_ns <= round(1000 * after["ts"]), (before, after)


def _arrows_go_forward_in_time(trace: Trace) -> None:
    def ends(kind: str) -> dict[tuple[object, ...], Event]:
        found = [event for event in trace.events if event["ph"] == kind]
        by_name = {(each["cat"], each["id"], each["name"]): each for each in found}
        assert len(by_name) == len(found)
        return by_name

    begins, arrivals = ends("s"), ends("f")
    assert begins.keys() == arrivals.keys()
    for arrow, begin in begins.items():
        assert begin["ts"] <= arrivals[arrow]["ts"], arrow
        for end in (begin, arrivals[arrow]):
            assert any(
                span["ts"] <= end["ts"] <= span["ts"] + span["dur"]
                for span in trace.spans(end["pid"])
            ), "an arrow begins and ends at a span"
