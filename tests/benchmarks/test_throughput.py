"""How long runs of ours are, for a speed."""

from __future__ import annotations

import pytest

from benchmarks.throughput import size_of_run


@pytest.mark.parametrize(
    ("speed", "seconds", "size"),
    [(3200.0, 20.0, (100, 6)), (10.0, 20.0, (1, 6)), (1280.0, 2.0, (10, 3))],
)
def test_epochs_take_a_few_seconds(speed: float, seconds: float, size: tuple[int, int]) -> None:
    assert size_of_run(speed, seconds) == size
