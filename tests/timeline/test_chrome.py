"""What is drawn of timelines."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from support.traces import check_format

from pipeline.schedule.items import (
    EndEpoch,
    EndEvaluation,
    EvaluationBatch,
    PassedBatch,
    Snapshot,
    StartEvaluation,
    Stop,
    TrainBatch,
)
from pipeline.schedule.reports import DOINGS, ClockReading, Timeline
from pipeline.timeline.chrome import Row, chrome_events

if TYPE_CHECKING:
    from pipeline.schedule.items import Item

HERE = ClockReading("here", 0.0, 1000.0)
FIRST, SECOND = TrainBatch(1, 1, 0.1), TrainBatch(2, 1, 0.1)


def timeline(*spans: tuple[str, Item, float], begin: float, clock: ClockReading = HERE) -> Timeline:
    """Of (what, for which item, seconds) one after the other."""
    items, began = list(dict.fromkeys(item for _, item, _ in spans)), [begin]
    for _, _, seconds in spans:
        began.append(began[-1] + seconds)
    doing = tuple(DOINGS.index(what) for what, _, _ in spans)
    of = tuple(items.index(item) for _, item, _ in spans)
    return Timeline(tuple(items), tuple(began[:-1]), doing, of, began[-1], clock)


def stage(index: int, *spans: tuple[str, Item, float], begin: float, **more: Any) -> Row:
    return Row(index, f"stage {index}", "cpu", timeline(*spans, begin=begin, **more))


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == kind]


def test_spans_are_drawn_from_the_first_on_and_idle_time_is_not() -> None:
    row = stage(
        *(1, ("input", FIRST, 0.5), ("compute", FIRST, 1.0), ("idle", FIRST, 0.25)),
        *(("room", SECOND, 2.0), ("learn", SECOND, 1.0)),
        begin=7.0,
    )
    events = chrome_events([row], HERE)
    assert [
        (event["name"], event["cat"], event["ts"], event["dur"], event["args"]["batch"])
        for event in of_kind(events, "X")
    ] == [
        ("wait for input", "input", 0.0, 0.5e6, 1),
        ("compute", "compute", 0.5e6, 1e6, 1),
        ("wait for room", "room", 1.75e6, 2e6, 2),
        ("learn", "learn", 3.75e6, 1e6, 2),
    ]
    assert {event["pid"] for event in events} == {1}
    (ends,) = of_kind(events, "i")
    assert (ends["name"], ends["ts"]) == ("the record ends", 4.75e6)
    labels = {event["name"]: event["args"] for event in of_kind(events, "M")}
    assert labels["process_name"] == {"name": "stage 1 · cpu"}


def test_a_batch_has_an_arrow_for_each_hop() -> None:
    """From where it is sent to where the next stage begins with it."""
    feed = Row(9, "feed", "", timeline(("read", FIRST, 1), ("send", FIRST, 1), begin=0.0))
    sending = [("copy", FIRST, 1), ("compute", FIRST, 3), ("room", FIRST, 1), ("send", FIRST, 1),
               ("copy", FIRST, 1), ("send", FIRST, 1), ("learn", FIRST, 2)]  # fmt: skip
    rows = [feed, stage(0, *sending, begin=2.0), stage(1, ("compute", FIRST, 4), begin=8.0)]
    events = chrome_events(rows, HERE)
    check_format(events)
    begins, ends = of_kind(events, "s"), of_kind(events, "f")
    assert [(each["pid"], each["ts"] / 1e6, each["name"]) for each in begins] == [
        (9, 1.0, "to stage 0"),
        (0, 7.0, "to stage 1"),
    ]
    assert [(each["pid"], each["ts"] / 1e6) for each in ends] == [(0, 3.0), (1, 8.0)]
    assert {(each["id"], each["cat"]) for each in (*begins, *ends)} == {(1, "batch")}


def test_test_batches_of_different_epochs_and_training_batches_have_arrows_of_their_own() -> None:
    items: tuple[Item, ...] = (EvaluationBatch(1, 1), EvaluationBatch(1, 2), FIRST)
    sending, taking = (
        [("send", item, 1.0) for item in items],
        [("compute", item, 1.0) for item in items],
    )
    rows = [stage(0, *sending, begin=0.0), stage(1, *taking, begin=0.5)]
    arrows = of_kind(chrome_events(rows, HERE), "s")
    assert len({(arrow["cat"], arrow["id"]) for arrow in arrows}) == 3


def test_every_kind_of_event_is_as_the_format_says() -> None:
    """Of all kinds of items and of what a thread does."""
    items = (FIRST, EvaluationBatch(1, 1), StartEvaluation(1), EndEvaluation(1), EndEpoch(1),
             Snapshot(3, 1, True), PassedBatch(4, 2), Stop())  # fmt: skip
    spans = [(doing, item, 0.5) for item in items for doing in DOINGS if doing != "idle"]
    rows = [Row(2, "feed", "", timeline(*spans, begin=0.0)), stage(0, *spans, begin=100 / 3)]
    rows.append(stage(1, *spans, begin=200 / 3))
    events = chrome_events(rows, HERE)
    check_format(events)
    assert {event["ph"] for event in events} == {"M", "X", "i", "s", "f"}


BATCH: dict[str, Any] = {"cat": "batch", "name": "to stage 1", "id": 1, "pid": 0, "tid": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"ph": "X", "pid": 0, "tid": 1, "ts": 1.5, "dur": 1.0, "name": "overlaps", "cat": "learn"},
        {
            "ph": "X",
            "pid": 0,
            "tid": 1,
            "ts": 9.0,
            "dur": -1.0,
            "name": "ends first",
            "cat": "send",
        },
        {"ph": "X", "pid": 0, "tid": 1, "ts": "9", "dur": 1.0, "name": "a text", "cat": "send"},
        {"ph": "X", "pid": 7, "tid": 1, "ts": 9.0, "dur": 1.0, "name": "no label", "cat": "send"},
        {"ph": "X", "pid": 0, "tid": 1, "ts": 9.0, "name": "no end", "cat": "send"},
        {"ph": "B", "pid": 0, "tid": 1, "ts": 9.0, "name": "another kind", "cat": "send"},
        {"ph": "s", "ts": 1.5, **BATCH},  # with no end
        {"ph": "f", "ts": 1.5, "bp": "e", **BATCH},  # with no begin
        {"ph": "i", "pid": 0, "tid": 1, "ts": 9.0, "name": "no scope"},
        {"ph": "M", "pid": 0, "tid": 1, "ts": 0.0, "name": "process_name", "args": {"name": "2nd"}},
    ],
)
def test_what_is_not_as_the_format_says_is_found(change: dict[str, Any]) -> None:
    events = chrome_events([stage(0, ("compute", FIRST, 2e-6), begin=0.0)], HERE)
    check_format(events)
    with pytest.raises((AssertionError, KeyError)):
        check_format([*events, change])


def test_no_arrow_jumps_over_a_stage_that_has_no_record() -> None:
    rows = [stage(0, ("send", FIRST, 1), begin=0.0), stage(2, ("compute", FIRST, 1), begin=9.0)]
    assert of_kind(chrome_events(rows, HERE), "s") == []


def test_rows_of_other_machines_are_moved_onto_this_clock() -> None:
    there = ClockReading("there", 500.0, 1003.0)  # at 1000 by the wall clock it was 497
    rows = [
        stage(0, ("send", FIRST, 1), begin=10.0),
        stage(1, ("compute", FIRST, 1), begin=508.0, clock=there),
    ]
    spans = of_kind(chrome_events(rows, HERE), "X")
    assert [span["ts"] / 1e6 for span in spans] == [0.0, 1.0]


def test_markers_and_tests_are_told_by_name() -> None:
    items = (StartEvaluation(1), EvaluationBatch(1, 1), EndEvaluation(1), EndEpoch(1),
             Snapshot(3, 1, True), PassedBatch(4, 2), Stop())  # fmt: skip
    row = stage(0, *(("compute", item, 1.0) for item in items), begin=0.0)
    assert [
        (span["name"], span["cat"], span["args"])
        for span in of_kind(chrome_events([row], HERE), "X")
    ] == [
        ("test of epoch 1 begins", "marker", {"epoch": 1}),
        ("evaluate", "compute", {"test_batch": 1, "epoch": 1}),
        ("test of epoch 1 ends", "marker", {"epoch": 1}),
        ("end of epoch 1", "marker", {"epoch": 1}),
        ("snapshot of step 3", "marker", {"step": 3, "epoch": 1}),
        ("pass on, without learning", "marker", {"batch": 4, "epoch": 2}),
        ("stop", "marker", {}),
    ]


def test_a_device_has_a_thread_of_its_own() -> None:
    """The host is done with its part before the device has begun."""
    host = timeline(("compute", FIRST, 1), ("send", FIRST, 1), ("learn", FIRST, 1), begin=5.0)
    row = Row(0, "stage 0", "cuda:0", replace(host, device_at=(0, 1, 2, 3), device_s=(6, 9, 9, 12)))
    events = chrome_events([row], HERE)
    check_format(events)
    drawn = {(span["tid"], span["cat"]): (span["ts"], span["dur"]) for span in of_kind(events, "X")}
    assert drawn == {
        (1, "host"): (2e6, 1e6),  # the later of two
        (1, "send"): (1e6, 1e6),
        (2, "compute"): (1e6, 3e6),
        (2, "learn"): (4e6, 3e6),
    }
    names = {each["tid"]: each["args"]["name"] for each in events if each["name"] == "thread_name"}
    assert names == {1: "host", 2: "device, by CUDA events"}


@pytest.mark.parametrize("begin", [0.1, 12345.678901, 3e6 + 1 / 3])
def test_spans_follow_each_other_to_the_nanosecond(begin: float) -> None:
    spans = [("compute", FIRST, 1 / 7), ("learn", FIRST, 1e-7 / 3)] * 50
    drawn = of_kind(chrome_events([stage(0, *spans, begin=begin)], HERE), "X")
    for before, after in pairwise(drawn):
        assert round(1000 * (before["ts"] + before["dur"])) == round(1000 * after["ts"])
