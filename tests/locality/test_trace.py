"""Where two traces part, and how long that is looked for."""

from __future__ import annotations

import json
from dataclasses import replace

from pipeline.locality.trace import Difference, Fault, Step, Trace, first_difference, trace_of
from pipeline.schedule.reports import Fingerprint


def state(*digests: str, block: int = 1) -> tuple[Fingerprint, ...]:
    names = ("optimizer.step", "encoder.weight", "rule.head.weight")
    return tuple(Fingerprint(block, *each) for each in zip(names, digests, strict=False))


STEPS = (Step(1, False, ("a",), state("1", "1")), Step(2, True, ("b",), state("2", "2")))
TRACE = Trace(state("0", "0"), STEPS, state("3", "3"))


def found(alone: Trace) -> Difference | None:
    return first_difference(TRACE, alone, 2)


def test_the_first_difference_is_the_earliest() -> None:
    assert found(TRACE) is None
    one, two = STEPS
    other = replace(TRACE, final=state("3", "-"))
    assert found(other) == Difference(1, "encoder.weight", "in the end")
    other = replace(other, steps=(one, replace(two, state=state("2", "-"))))
    when = "after batch 2, the first after a test"
    assert found(other) == Difference(1, "encoder.weight", when)
    other = replace(other, steps=(one, replace(other.steps[1], sent=("-",))))
    assert found(other) == Difference(2, None, when)
    other = replace(other, steps=(replace(one, state=state("-", "1")), two))
    assert found(other) == Difference(1, "optimizer.step", "after batch 1")
    other = replace(other, initial=state("0", "-"))
    assert found(other) == Difference(1, "encoder.weight", "from the beginning")


def test_a_weight_is_named_rather_than_an_optimizers_state() -> None:
    step = replace(STEPS[0], state=state("-", "-"))
    other = replace(TRACE, steps=(step, STEPS[1]))
    assert found(other) == Difference(1, "encoder.weight", "after batch 1")


def test_a_tensor_that_only_one_has_is_a_difference() -> None:
    other = replace(TRACE, initial=state("0", "0", "0"))
    assert found(other) == Difference(1, "rule.head.weight", "from the beginning")


def test_a_trace_that_ended_early_differs_before_that_or_not_at_all() -> None:
    fault = Fault("killed", 1, 2)
    assert found(Trace(fault=fault)) is None
    assert found(Trace(TRACE.initial, STEPS[:1], state("1", "1"), fault)) is None
    moved = (replace(STEPS[0], sent=("-",)),)
    assert found(Trace(TRACE.initial, moved, fault=fault)) == Difference(2, None, "after batch 1")


def test_traces_are_read_as_they_were_written() -> None:
    trace = replace(TRACE, fault=Fault("what", None, 3, "where"))
    assert trace_of(json.loads(json.dumps(trace.tree()))) == trace
