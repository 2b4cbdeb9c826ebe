"""What benchmarks.data_parallel finds in laps."""

from __future__ import annotations

from typing import Any

from benchmarks.data_parallel import OURS, RIVAL, findings, table


def lap(speed: float, error: float) -> dict[str, Any]:
    return {"images_per_s": speed, "error_pct": error}


def test_ratios_are_of_laps_of_one_round() -> None:
    ways = {
        OURS: [lap(150.0, 3.0), lap(100.0, 2.0), {"failed": "no memory"}],
        RIVAL: [lap(100.0, 1.5), lap(100.0, 2.5), lap(90.0, 2.0)],
    }
    result = {"networks": {"mlp": ways}, "epochs": 3}
    (found,) = findings(result)
    assert found.found == "1.250 × (of 2, 1.000 to 1.500)"
    assert (found.asked, found.met) == ("≥ 1.3", False)
    text = table(result)
    assert "test error after 3 epochs" in text
    assert "2.50 %" in text
    assert "125" in text


def test_a_way_that_failed_says_why() -> None:
    failed = [{"failed": "not done after 900 s"}]
    result = {"networks": {"mlp": {OURS: failed, RIVAL: failed}}, "epochs": 2}
    assert findings(result) == []
    assert table(result).count("failed: not done after 900 s") == 2
