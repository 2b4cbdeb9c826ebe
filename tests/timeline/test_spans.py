"""What a recorder holds of a thread, and when it holds nothing."""

from __future__ import annotations

import pytest
from support.clocks import Clock, Device

from pipeline.device.device_clock import EventClock
from pipeline.protocol.codec import MAX_HEADER_BYTES, decode, encode
from pipeline.schedule.items import EvaluationBatch, PassedBatch, Snapshot, Stop, TrainBatch
from pipeline.schedule.reports import DOINGS, MOST_SPANS, Timeline
from pipeline.timeline.spans import SpanRecorder

BATCHES = [TrainBatch(step, 1, 0.1) for step in range(1, 6)]


def told(timeline: Timeline) -> list[tuple[str, object, float]]:
    """What was done, for what, and for how long."""
    ends = (*timeline.began_s[1:], timeline.ended_s)
    each = zip(timeline.what, timeline.item, timeline.began_s, ends, strict=True)
    return [(DOINGS[what], timeline.items[item], end - begin) for what, item, begin, end in each]


def batch(recorder: SpanRecorder, clock: Clock, item: TrainBatch) -> None:
    for doing, seconds in (("input", 1), ("", 2), ("compute", 3), ("learn", 4)):
        if doing:
            recorder.now(doing)
        else:
            recorder.take_up(item, "copy")
        clock.now += seconds
    recorder.now("idle")


def test_each_span_ends_where_the_next_begins() -> None:
    clock = Clock()
    recorder = SpanRecorder(2, clock=clock)
    for item in BATCHES[:2]:
        batch(recorder, clock, item)
    recorder.now("input")
    clock.now += 9  # for a batch that is not recorded
    assert told(recorder.taken()) == [
        (doing, item, seconds)
        for item in BATCHES[:2]
        for doing, seconds in (("input", 1), ("copy", 2), ("compute", 3), ("learn", 4), ("idle", 0))
    ]


def test_it_is_due_before_the_first_training_batch_that_is_too_much_or_at_the_end() -> None:
    recorder = SpanRecorder(3)
    within = (BATCHES[2], PassedBatch(3, 1), EvaluationBatch(9, 1), Snapshot(3, 1, True), Stop())
    assert not any(map(recorder.is_due, within))
    assert all(map(recorder.is_due, (BATCHES[3], PassedBatch(4, 1), None)))
    recorder.taken()
    assert not any(map(recorder.is_due, (BATCHES[3], None)))


def test_without_batches_it_holds_nothing() -> None:
    clock = Clock()
    recorder = SpanRecorder(clock=clock)
    batch(recorder, clock, BATCHES[0])
    assert not recorder.is_on
    assert not any(map(recorder.is_due, (*BATCHES, None)))
    assert recorder.taken().began_s == ()


def test_once_taken_it_records_no_more() -> None:
    clock = Clock()
    recorder = SpanRecorder(2, clock=clock)
    batch(recorder, clock, BATCHES[0])
    before = told(recorder.taken())
    batch(recorder, clock, BATCHES[1])
    assert told(recorder.taken()) == before


def test_it_is_bounded_and_says_so() -> None:
    clock = Clock()
    recorder = SpanRecorder(5, clock=clock, most=7)
    for item in BATCHES:
        batch(recorder, clock, item)
    timeline = recorder.taken()
    assert timeline.is_full
    assert [what for what, _, _ in told(timeline)] == [
        *("input", "copy", "compute", "learn", "idle"),
        *("input", "copy"),
    ]
    assert told(timeline)[-1] == ("copy", BATCHES[1], 2)


def test_the_longest_record_fits_a_message() -> None:
    """Every span may be of another item, of which a training batch takes the most bytes."""
    recorder = SpanRecorder(2**62)
    for step in range(2**61, 2**61 + MOST_SPANS + 1):
        recorder.take_up(TrainBatch(step, step, 0.1, step), "compute")
    timeline = recorder.taken()
    assert timeline.is_full
    assert len(timeline.items) == MOST_SPANS
    assert len(encode(timeline)) <= MAX_HEADER_BYTES
    assert decode(encode(timeline)) == timeline


# --- a device that does its work later ----------------------------------------------------


def test_a_device_tells_when_it_came_to_what_it_was_given() -> None:
    """It begins 7 s after it was told, and takes 3 s to compute, 2 s to learn."""
    clock, device = Clock(), Device(given=107.0, reached=107.0)
    marks = EventClock(device.mark, lambda: device.reached)
    recorder = SpanRecorder(2, device=marks, clock=clock)
    for item in BATCHES[:2]:
        recorder.take_up(item, "copy")
        for doing, seconds in (("compute", 3), ("send", 0), ("learn", 2)):
            recorder.now(doing)
            device.given += seconds
            clock.now += 0.25
        recorder.now("idle")
    device.reached = device.given
    timeline = recorder.taken()
    at = dict(zip(timeline.device_at, timeline.device_s, strict=True))
    took = {
        index: at[index + 1] - at[index]
        for index, doing in enumerate(timeline.what)
        if DOINGS[doing] in ("compute", "learn")
    }
    assert list(took.values()) == pytest.approx([3, 2, 3, 2])
    assert [at[index] for index in took] == pytest.approx([107, 110, 112, 115])


class Broken(Device):
    def mark(self) -> BrokenMoment:  # type: ignore[override]
        return BrokenMoment()


class BrokenMoment:
    asked = 0

    def query(self) -> bool:
        type(self).asked += 1
        if self.asked > 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return True

    def elapsed_time(self, later: object) -> float:
        return 1.0


def test_of_a_device_that_has_failed_only_what_the_host_did_is_left() -> None:
    recorder = SpanRecorder(2, device=EventClock(Broken().mark))  # type: ignore[arg-type]
    batch(recorder, Clock(), BATCHES[0])
    timeline = recorder.taken()
    assert len(timeline.began_s) == 5
    assert (timeline.device_at, timeline.device_s) == ((), ())
