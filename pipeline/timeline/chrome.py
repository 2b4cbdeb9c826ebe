"""Timelines -> events of Chrome's trace format, which Perfetto and chrome://tracing show.

    stage k      wait for input | compute | wait for room | send | learn    a span each: "X"
                                                              ╲
    stage k + 1  wait for input                                | compute    an arrow a hop: "s", "f"

Times are microseconds after the first span of all. The format is Google's "Trace Event Format".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.schedule.items import (
    EndEpoch,
    EndEvaluation,
    EvaluationBatch,
    PassedBatch,
    Snapshot,
    StartEvaluation,
    TrainBatch,
)
from pipeline.schedule.reports import DOINGS
from pipeline.timeline.clocks import offset_s
from pipeline.timeline.spans import ON_DEVICE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.schedule.items import Item
    from pipeline.schedule.reports import ClockReading, Timeline

    Event: TypeAlias = dict[str, Any]

_HOST, _DEVICE = 1, 2
"""Threads of a row; Perfetto keeps thread 0 of process 0 for an idle processor."""
_WORDS = {
    "input": "wait for input",
    "room": "wait for room",
    "read": "read the batch",
    "report": "wait for a report",
}
"""What a span is called, where it is not as what the thread does."""
_EPOCH_BIT = 32
"""Ids of test batches, which count from 1 in every test, lie below it; the epoch above."""


@dataclass(frozen=True, slots=True)
class Row:
    """A process row: `name` as "stage 1", and what else to say of it."""

    pid: int
    name: str
    about: str
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class _Span:
    doing: str
    item: Item
    began_ns: int
    ended_ns: int
    thread: int = _HOST


def chrome_events(rows: Sequence[Row], here: ClockReading) -> list[Event]:
    """All events of rows, in the order in which batches pass these, on the clock of `here`."""
    spans = [_spans(row.timeline, offset_s(row.timeline.clock, here)) for row in rows]
    first_ns = min((span.began_ns for found in spans for span in found), default=0)
    events: list[Event] = []
    for place, (row, found) in enumerate(zip(rows, spans, strict=True)):
        has_device = any(span.thread == _DEVICE for span in found)
        events += _labels(row, place, has_device=has_device)
        events += (_drawn(row.pid, span, first_ns, has_device=has_device) for span in found)
        if found:
            end_ns = max(span.ended_ns for span in found) - first_ns
            events.append(_event("i", row.pid, end_ns, "the record ends", "marker", s="p"))
    for (before, sending), (after, taking) in pairwise(zip(rows, spans, strict=True)):
        if after.pid in (0, before.pid + 1):  # else the stage between them has no record
            events += _arrows(before, sending, after, taking, first_ns)
    return events


def _spans(timeline: Timeline, offset: float) -> list[_Span]:
    """Of the thread and, where it has marks, of its device; without what is idle."""
    ends_s = (*timeline.began_s[1:], timeline.ended_s)
    at = dict(zip(timeline.device_at, timeline.device_s, strict=True))
    found: list[_Span] = []
    each = zip(timeline.began_s, ends_s, timeline.what, timeline.item, strict=True)
    for index, (began_s, ended_s, code, number) in enumerate(each):
        doing, item = DOINGS[code], timeline.items[number]
        if doing == "idle":
            continue
        found.append(_Span(doing, item, _ns(began_s + offset), _ns(ended_s + offset)))
        if doing in ON_DEVICE and index in at and index + 1 in at:
            began_ns, ended_ns = (_ns(at[mark] + offset) for mark in (index, index + 1))
            found.append(_Span(doing, item, began_ns, ended_ns, _DEVICE))
    return found


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _labels(row: Row, place: int, *, has_device: bool) -> Iterator[Event]:
    threads = {_HOST: "host"}
    if has_device:
        threads[_DEVICE] = "device, by CUDA events"
    yield _event("M", row.pid, 0, "process_name", args={"name": f"{row.name} · {row.about}"})
    yield _event("M", row.pid, 0, "process_sort_index", args={"sort_index": place})
    for thread, name in threads.items():
        yield _event("M", row.pid, 0, "thread_name", tid=thread, args={"name": name})


def _drawn(pid: int, span: _Span, first_ns: int, *, has_device: bool) -> Event:
    name, category = _shown(span)
    if has_device and span.thread == _HOST and span.doing in ON_DEVICE:
        name, category = f"hand over: {name}", "host"  # the device is through later
    return _event(
        "X",
        pid,
        span.began_ns - first_ns,
        name,
        category,
        tid=span.thread,
        dur=(span.ended_ns - span.began_ns) / 1000,
        args=_details(span.item),
    )


def _shown(span: _Span) -> tuple[str, str]:
    """Name and category: markers by what they ask for, whatever else is done for them is work."""
    item = span.item
    if span.doing == "compute":
        if isinstance(item, EvaluationBatch):
            return "evaluate", "compute"
        if not isinstance(item, TrainBatch):
            return _marker(item), "marker"
    return _WORDS.get(span.doing, span.doing), span.doing


def _marker(item: Item) -> str:
    if isinstance(item, Snapshot):
        return f"snapshot of step {item.step}"
    if isinstance(item, EndEpoch):
        return f"end of epoch {item.epoch}"
    if isinstance(item, StartEvaluation):
        return f"test of epoch {item.epoch} begins"
    if isinstance(item, EndEvaluation):
        return f"test of epoch {item.epoch} ends"
    if isinstance(item, PassedBatch):
        return "pass on, without learning"
    return "stop"


def _details(item: Item) -> dict[str, int]:
    """`batch` counts training batches, `test_batch` those of a test."""
    if isinstance(item, TrainBatch | PassedBatch):
        return {"batch": item.batch_id, "epoch": item.epoch}
    if isinstance(item, EvaluationBatch):
        return {"test_batch": item.batch_id, "epoch": item.epoch}
    if isinstance(item, Snapshot):
        return {"step": item.step, "epoch": item.epoch}
    return {"epoch": item.epoch} if isinstance(item, _OF_AN_EPOCH) else {}


_OF_AN_EPOCH = (EndEpoch, StartEvaluation, EndEvaluation)


def _arrows(
    before: Row, sending: Sequence[_Span], after: Row, taking: Sequence[_Span], first_ns: int
) -> Iterator[Event]:
    """From where each batch is sent to where the next row begins with it."""
    sent, begun = _beginnings(sending, "send"), _beginnings(taking, "compute")
    for item, sent_ns in sent.items():
        if item in begun and isinstance(item, TrainBatch | EvaluationBatch):
            is_test = isinstance(item, EvaluationBatch)
            name = f"to {after.name}"
            category = "test batch" if is_test else "batch"
            number = item.batch_id + (item.epoch << _EPOCH_BIT if is_test else 0)
            yield _event("s", before.pid, sent_ns - first_ns, name, category, id=number)
            at_ns = begun[item] - first_ns
            yield _event("f", after.pid, at_ns, name, category, id=number, bp="e")


def _beginnings(spans: Sequence[_Span], doing: str) -> dict[Item, int]:
    """When a thread first did this for each item."""
    found: dict[Item, int] = {}
    for span in spans:
        if span.doing == doing and span.thread == _HOST:
            found.setdefault(span.item, span.began_ns)
    return found


def _event(
    kind: str, pid: int, at_ns: int, name: str, category: str = "", *, tid: int = _HOST, **more: Any
) -> Event:
    given = {"name": name, "ph": kind, "pid": pid, "tid": tid, "ts": at_ns / 1000, **more}
    return {**given, "cat": category} if category else given
