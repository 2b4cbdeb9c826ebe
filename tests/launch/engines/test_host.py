"""What an agent does on its own."""

from __future__ import annotations

import pytest

from launch.engines.host import Silence


@pytest.mark.parametrize(("heard_until", "after_s"), [(0, 75.0), (1, 75.0), (100, 174.0)])
def test_silence_is_acted_upon_once_it_has_lasted(heard_until: int, after_s: float) -> None:
    slept, acted_after = [], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) <= heard_until:
            silence.heard()

    silence = Silence(75.0, lambda: acted_after.append(sum(slept)), sleep)
    silence.run()
    assert acted_after == [after_s]
