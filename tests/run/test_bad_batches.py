"""Which batches a run that goes back leaves out, told by what it finds: no run, no clock."""

from __future__ import annotations

import pytest

from pipeline.errors import StageFailedError
from pipeline.run import bad_batches
from pipeline.run.bad_batches import BadBatchSearch
from pipeline.schedule.feed import Course

EVERY = 4
"""Steps from one snapshot to the next."""


def course_of(steps: int, every: int = EVERY) -> Course:
    return Course(1, steps, 1, lr=1.0, checkpoint_every_steps=every)


RUN = course_of(40)


def told(bad: set[int], steps: int, every: int = EVERY) -> BadBatchSearch:
    """The blame of a run in which the states after the batches `bad` are not finite, and no loss
    is ever: found at snapshots, or where it is looked for closely."""
    course, decided, start = course_of(steps, every), BadBatchSearch(), 0
    for _ in range(1000):
        found = None
        for batch in range(start + 1, steps + 1):
            spoilt = any(start < one <= batch and one not in decided.left_out for one in bad)
            looks = batch <= decided.check_until or batch % every == 0
            if spoilt and looks:
                found = batch
                break
            if batch % every == 0 and start != batch:
                start, decided = batch, BadBatchSearch(decided.left_out, decided.check_until)
        if found is None:
            return decided
        decided = decided.after(found, start, course)
    raise AssertionError("it goes back for ever")


@pytest.mark.parametrize(
    "bad", [{1}, {4}, {2, 3}, {1, 2, 3, 4}, {4, 5}, {3, 8, 9}, set(range(5, 15))]
)
def test_the_batches_to_blame_are_found_and_no_others(bad: set[int]) -> None:
    assert told(bad, steps=20).left_out == bad


@pytest.mark.parametrize("every", [1, 3, 16])
def test_however_rarely_states_are_looked_at(every: int) -> None:
    assert told({2, 7, 11}, steps=16, every=every).left_out == {2, 7, 11}


def test_a_run_that_can_learn_nothing_gives_up() -> None:
    with pytest.raises(
        StageFailedError, match=r"^11 of 40 batches .* the last 11: .* optimizer.lr"
    ):
        told(set(range(1, 41)), steps=40)


@pytest.mark.parametrize(
    ("steps", "bad", "says"),
    [(1, {1}, "1 of 1 .* 1"), (2, {1, 2}, "2 of 2 .* 2"), (5, {1, 3, 4}, "3 of 5 .* 4")],
)
def test_a_short_run_fails_where_more_than_half_of_it_is_bad(
    steps: int, bad: set[int], says: str
) -> None:
    """It would end as a success, with weights that have learned from next to nothing."""
    with pytest.raises(StageFailedError, match=f"^{says}: leaving them out does not help; try a"):
        told(bad, steps, every=1)


def test_half_of_a_run_may_be_left_out() -> None:
    assert told({2, 4}, steps=4, every=1).left_out == {2, 4}


def test_the_first_finding_only_has_it_look_more_closely() -> None:
    first = BadBatchSearch().after(7, 4, RUN)
    assert (first.left_out, first.check_until, first.last) == (frozenset(), 8, None)
    assert "up to 8" in str(first)
    second = first.after(6, 4, RUN)
    assert (second.left_out, str(second)) == ({6}, "without batch 6")


def test_the_only_batch_since_the_snapshot_is_to_blame_at_once() -> None:
    assert BadBatchSearch().after(5, 4, RUN).left_out == {5}
    assert BadBatchSearch(frozenset({6})).after(6, 4, RUN).left_out == {5}


def test_in_whatever_order_stages_find_out() -> None:
    close = BadBatchSearch(check_until=8)
    one = close.after(7, 4, RUN).after(5, 4, RUN).after(7, 4, RUN)
    other = close.after(5, 4, RUN).after(7, 4, RUN)
    assert one.left_out == other.left_out == {5, 7}


def test_what_no_batch_has_done_ends_the_run() -> None:
    """Looked at closely, batch 8 was sound or left out; the snapshot after it is not."""
    with pytest.raises(StageFailedError, match="batch 8 comes of no batch after step 4"):
        BadBatchSearch(frozenset({8}), check_until=8).after(8, 4, RUN)


def test_a_fault_that_comes_and_goes_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_batches, "MOST_TRIES", 3)
    decided = BadBatchSearch()
    for found in (7, 11, 15):  # always beyond what was looked at closely
        decided = decided.after(found, 4, course_of(40, every=found + 1))
    with pytest.raises(StageFailedError, match=r"back to step 4 3 times .* batch 20; try a lower"):
        decided.after(20, 4, course_of(40, every=21))


@pytest.mark.parametrize(
    ("every", "step", "then"), [(0, 1, 5), (0, 5, 5), (2, 3, 4), (2, 4, 4), (3, 7, 9), (4, 9, 10)]
)
def test_the_next_snapshot(every: int, step: int, then: int) -> None:
    course = Course(2, 5, 1, lr=1.0, checkpoint_every_steps=every)
    assert course.snapshot_after(step) == then
