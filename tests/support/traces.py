"""What must be true of every `trace.json`."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
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
    assert tree.keys() == {"traceEvents", "otherData"}
    trace = Trace(tree["traceEvents"], tree["otherData"])
    assert trace.spans(0) or trace.other["cut_short"]
    check_format(trace.events)
    return trace


# --- Google's "Trace Event Format", as far as it is used -----------------------------------

_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "X": {"cat": str, "dur": (int, float), "args": dict},
    "M": {"args": dict},
    "i": {"cat": str, "s": str},
    "s": {"cat": str, "id": int},
    "f": {"cat": str, "id": int, "bp": str},
}
"""Of each phase: complete event, metadata, instant event, begin and end of a flow. All have `name`,
`ph`, `pid`, `tid` and `ts`, in microseconds."""
_COMMON: dict[str, type | tuple[type, ...]] = {
    "name": str, "ph": str, "pid": int, "tid": int, "ts": (int, float),
}  # fmt: skip
_METADATA = {
    "process_name": ("name", str),
    "process_sort_index": ("sort_index", int),
    "thread_name": ("name", str),
}
"""What each takes."""


def check_format(events: Sequence[Event]) -> None:
    """That events are as the format says: fields and their types by phase, threads and processes
    that have names, spans of a thread in order, and each arrow bound to a span at both ends."""
    for event in events:
        fields = {**_COMMON, **_FIELDS[event["ph"]]}
        assert event.keys() == fields.keys() | event.keys() & {"cat", "args"}, event
        for name, kind in fields.items():
            assert isinstance(event[name], kind), (name, event)
            assert not isinstance(event[name], bool)
        assert event["ts"] >= 0
        assert event.get("s", "p") in "gpt"
        assert event.get("bp", "e") == "e", "else an arrow is bound to the next span"
    _processes_and_threads_are_named(events)
    _spans_follow_each_other(events)
    _arrows_go_forward_in_time(events)


def _processes_and_threads_are_named(events: Sequence[Event]) -> None:
    names: dict[tuple[object, ...], object] = {}
    for event in events:
        if event["ph"] == "M":
            key, kind = _METADATA[event["name"]]
            assert isinstance(event["args"][key], kind)
            thread = event["tid"] if event["name"] == "thread_name" else None
            place = (event["name"], event["pid"], thread)
            assert place not in names, "a name is given once"
            names[place] = event["args"][key]
    for event in events:
        if event["ph"] != "M":
            assert ("process_name", event["pid"], None) in names, event
            assert ("thread_name", event["pid"], event["tid"]) in names, event
            assert (event["pid"], event["tid"]) != (0, 0), "of an idle processor, in Perfetto"


def _spans_follow_each_other(events: Sequence[Event]) -> None:
    threads: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append(event)
    for spans in threads.values():
        assert all(span["dur"] >= 0 and span["ts"] >= 0 for span in spans)
        for before, after in pairwise(spans):
            end_ns = round(1000 * before["ts"]) + round(1000 * before["dur"])
            assert end_ns <= round(1000 * after["ts"]), (before, after)


def _arrows_go_forward_in_time(events: Sequence[Event]) -> None:
    def ends(kind: str) -> dict[tuple[object, ...], Event]:
        found = [event for event in events if event["ph"] == kind]
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
                for span in events
                if span["ph"] == "X" and (span["pid"], span["tid"]) == (end["pid"], end["tid"])
            ), "an arrow begins and ends at a span of its thread"
