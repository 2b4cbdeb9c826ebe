"""What a unit did, step by step, in fingerprints: plain values, to be compared and kept as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.schedule.reports import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Step:
    """One training step. `after_test`: whether a test came right before it. `sent`: digests of what
    it passed on, with the targets and what is carried; `state`: how the step left the blocks."""

    batch_id: int
    after_test: bool
    sent: tuple[str, ...]
    state: tuple[Fingerprint, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """What ended a process before it was done. `block`, `batch_id`: where, None and 0 for nowhere.
    `traceback`: empty where the error explains itself."""

    text: str
    block: int | None = None
    batch_id: int = 0
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """Of one unit: how it began, its steps, how it was when all was over, and what ended it
    early."""

    initial: tuple[Fingerprint, ...] = ()
    steps: tuple[Step, ...] = ()
    final: tuple[Fingerprint, ...] = ()
    fault: Fault | None = None

    def tree(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def trace_of(tree: dict[str, Any]) -> Trace:
    """What `Trace.tree` has made plain."""
    steps = (
        Step(**{**step, "sent": tuple(step["sent"]), "state": _fingerprints(step["state"])})
        for step in tree["steps"]
    )
    fault = tree["fault"] and Fault(**tree["fault"])
    initial, final = _fingerprints(tree["initial"]), _fingerprints(tree["final"])
    return Trace(initial, tuple(steps), final, fault)


def _fingerprints(trees: Sequence[dict[str, Any]]) -> tuple[Fingerprint, ...]:
    return tuple(Fingerprint(**tree) for tree in trees)


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing that differs: `tensor` of `block`, None for what it passes on; `when`, for
    people."""

    block: int
    tensor: str | None
    when: str


def first_difference(recorded: Trace, alone: Trace, last_block: int) -> Difference | None:
    """Where the trace of a unit that is trained alone leaves the recorded one.

    Args:
        last_block: of the unit, which passes on.
    """
    if alone.fault is not None and not alone.initial:
        return None  # it could not be built
    if found := _differing(recorded.initial, alone.initial):
        return Difference(found.block, found.tensor, "from the beginning")
    for was, now in zip(recorded.steps, alone.steps, strict=False):
        when = f"after batch {was.batch_id}{', the first after a test' if was.after_test else ''}"
        if was.sent != now.sent:
            return Difference(last_block, None, when)
        if found := _differing(was.state, now.state):
            return Difference(found.block, found.tensor, when)
    if alone.fault is None and (found := _differing(recorded.final, alone.final)):
        return Difference(found.block, found.tensor, "in the end")
    return None


def _differing(some: Sequence[Fingerprint], others: Sequence[Fingerprint]) -> Fingerprint | None:
    """The first that is in one of them only, rather a weight than an optimizer's state."""
    common = {*some} & {*others}
    found = [each for each in (*some, *others) if each not in common]
    return min(found, key=lambda each: each.tensor.startswith("optimizer."), default=None)
