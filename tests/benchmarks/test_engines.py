"""What benchmarks.engines finds in laps."""

from __future__ import annotations

from typing import Any

from benchmarks.engines import findings, table


def laps(*speeds: float) -> list[dict[str, Any]]:
    return [{"images_per_s": speed} for speed in speeds]


def test_ratios_are_of_laps_of_one_round() -> None:
    ways = {"local": laps(100.0, 200.0, 100.0), "ray": [*laps(90.0, 196.0), {"failed": "no Ray"}]}
    result = {"networks": {"digits": ways}}
    (found,) = findings(result)
    assert found.what == "digits: --engine ray to --engine local"
    assert found.found == "0.940 × (of 2, 0.900 to 0.980)"
    assert (found.asked, found.met) == ("≥ 0.95", False)
    assert "143" in table(result)


def test_a_way_that_failed_says_why() -> None:
    failed = [{"failed": "needs Ray"}]
    result = {"networks": {"digits": {"local": failed, "ray": failed}}}
    assert findings(result) == []
    assert table(result).count("failed: needs Ray") == 2
