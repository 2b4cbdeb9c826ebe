"""Steps are taken in turn by processes of their own; no clock is asserted."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from functools import partial
from time import sleep
from typing import TYPE_CHECKING

import pytest

from benchmarks.lib.turns import taken_in_turn, times_as_fast

if TYPE_CHECKING:
    from collections.abc import Callable


def pausing(pause_s: float) -> Callable[[], object]:
    return partial(sleep, pause_s)


def failing() -> Callable[[], object]:
    raise ValueError("as it should")


def test_steps_are_taken_one_by_one_in_turn() -> None:
    makers = {"long": partial(pausing, 0.02), "short": partial(pausing, 0.001)}
    took = taken_in_turn(makers, seconds=0.05)
    assert 1 <= len(took["long"]) == len(took["short"]) < 10
    assert min(took["long"]) >= 0.02
    assert min(took["short"]) >= 0.001


def test_a_process_that_fails_ends_the_measurement() -> None:
    with pytest.raises(BrokenProcessPool):
        taken_in_turn({"fails": failing}, seconds=0.05)


def test_quotients_are_those_within_rounds() -> None:
    took = {"plain": [2.0, 8.0, 3.0], "ours": [1.0, 2.0, 3.0]}
    assert times_as_fast(took, "plain") == {"plain": 1.0, "ours": 2.0}
