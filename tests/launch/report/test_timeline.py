"""A trace becomes rows of a picture; whatever else it holds is passed over."""

from __future__ import annotations

from typing import Any

import pytest

from launch.report.timeline import timeline_of


def span(
    pid: int, doing: str, begin: float, end: float, batch: int | None = None
) -> dict[str, Any]:
    """Of a trace, which counts microseconds; here milliseconds."""
    args = {} if batch is None else {"batch": batch}
    given = {"ph": "X", "pid": pid, "tid": 0, "name": doing, "cat": doing, "args": args}
    return {**given, "ts": 1000 * (begin + 50), "dur": 1000 * (end - begin)}


EVENTS: list[Any] = [
    {"ph": "M", "pid": 2, "name": "process_name", "args": {"name": "feed · reads batches"}},
    {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "stage 1 · cpu · blocks 1, 2"}},
    span(2, "read", 0, 1, 1),
    span(0, "compute", 1, 3, 1),
    span(0, "learn", 3, 4, 1),
    span(1, "input", 1, 3),
    span(1, "compute", 3, 9, 1),
    span(1, "input", 9, 10),
    span(1, "compute", 10, 16, 2),
    span(1, "host", 0, 100),
    {"ph": "X", "pid": 7, "cat": "input", "ts": 0, "dur": 5},
    {"ph": "X", "pid": 1, "cat": "learn", "ts": "soon", "dur": 1},
    {"ph": "s", "pid": 0},
    "no event",
]


def test_rows_are_named_and_in_order() -> None:
    found = timeline_of(EVENTS)
    assert list(found.rows.items()) == [(2, "feed"), (0, "stage 0"), (1, "stage 1")]
    assert found.stages == [0, 1]


def test_times_are_milliseconds_from_the_first_span() -> None:
    found = timeline_of(EVENTS)
    assert found.end == pytest.approx(66)
    assert found.at_work(0) == pytest.approx((51, 54))
    assert (found.worked(0), found.worked(1)) == pytest.approx((3, 12))


def test_nothing_known_is_no_row() -> None:
    assert timeline_of([{"ph": "X"}, None, 3]).rows == {}
