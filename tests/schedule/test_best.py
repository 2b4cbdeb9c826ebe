"""What tests have shown so far, by hand."""

from __future__ import annotations

from math import inf, nan

import pytest

from pipeline.schedule.best import BestSoFar


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([], BestSoFar(0, inf, 0)),
        ([5.0], BestSoFar(1, 5.0, 1)),
        ([5.0, 4.0, 4.5], BestSoFar(2, 4.0, 3)),
        ([5.0, 5.0], BestSoFar(1, 5.0, 2)),  # as low is not lower
        ([None, 5.0, None], BestSoFar(2, 5.0, 3)),
        ([None, nan, inf], BestSoFar(0, inf, 3)),
        ([0.0, 0.0], BestSoFar(1, 0.0, 2)),
    ],
)
def test_the_first_epoch_with_the_least_error_is_kept(
    errors: list[float | None], expected: BestSoFar
) -> None:
    best = BestSoFar()
    for epoch, error in enumerate(errors, start=1):
        best = best.after(epoch, error)
    assert best == expected
    assert best.epochs_since == expected.tested - expected.epoch


def test_why_a_run_ends_is_said_in_words() -> None:
    said = "3 epochs brought no lower tested error than epoch 4"
    assert BestSoFar(4, 1.5, 7).in_words() == said
    said = "1 epoch brought no lower tested error than epoch 4"
    assert BestSoFar(4, 1.5, 5).in_words() == said
