"""Predictions are held against measurements round by round."""

from __future__ import annotations

from benchmarks.scaling import Division, Round, findings, kept_rows, rows_in, table

ROUNDS = [
    {Division(1): Round(90.0, 100.0), Division(2): Round(150.0, 180.0)},
    {Division(1): Round(100.0, 100.0), Division(2): Round(180.0, 190.0)},
]
RESULT = {"mlp": kept_rows(ROUNDS), "vgg8b": kept_rows(ROUNDS[:1])}
ON_GPUS = {
    Division(2, "0"): Round(900.0, 1000.0),
    Division(2, "0-1"): Round(1900.0, 2000.0),
    Division(4, "0-1"): Round(1800.0, 2000.0),
}


def test_errors_are_medians_of_quotients() -> None:
    assert findings({"mlp": RESULT["mlp"]}) == [
        ("mlp, 1 stage on the CPU, predicted / measured", "-5.0%", "±10%", True),
        ("mlp, 2 stages on the CPU, predicted / measured", "-11.0%", "±10%", False),
    ]
    assert table(RESULT).splitlines()[2:4] == [
        "| mlp | cpu | 1 | 95 | 100 | -5.0% | -10.0% to +0.0% |",
        "| mlp | cpu | 2 | 165 | 185 | -11.0% | -16.7% to -5.3% |",
    ]


def test_each_set_of_devices_has_rows_of_its_own() -> None:
    kept = {"mlp": kept_rows([ON_GPUS])}
    assert [division for _, division, _ in rows_in(kept)] == list(ON_GPUS)
    assert "| mlp | 0-1 | 4 | 1,800 | 2,000 | -10.0% |" in table(kept)


def test_the_first_results_were_on_the_cpu_and_do_not_say_it() -> None:
    old = [{"stages": row["stages"], "rounds": row["rounds"]} for row in RESULT["mlp"]]
    assert rows_in({"mlp": old}) == rows_in({"mlp": RESULT["mlp"]})
