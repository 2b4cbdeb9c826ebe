"""Ratios are those within a round and to the best rival; what was asked for is answered."""

from __future__ import annotations

import pytest

from benchmarks.lib.contenders import Contender
from benchmarks.lib.speeds import CORES, Row, fastest, findings, network_text, ratio, rows_of


def row(contender: Contender, *speeds: float | None) -> Row:
    laps = [{"failed": "why"} if s is None else {"images_per_s": s} for s in speeds]
    if contender.is_ours:
        laps = [{**lap, "busy": [0.5, 0.9]} for lap in laps]
    return Row(contender, laps)


ROWS = [
    row(Contender("pipeline", "pred", "fp32", 2), 190.0, 380.0),
    row(Contender("pipeline", "pred", "fp32", 4), 150.0, 300.0),
    row(Contender("single", "pred", "fp32"), 120.0, 200.0),
    row(Contender("1f1b", "glob", "fp32", 2, 1), 50.0, None),
    row(Contender("1f1b", "glob", "fp32", 2, 2), 100.0, 200.0),
    row(Contender("1f1b", "glob", "fp32", 2, 4), None, None),
    row(Contender("plain", "pred", "fp32"), 100.0, 200.0),
]


def test_ratios_are_those_within_a_round_and_to_the_best_rival() -> None:
    assert fastest(ROWS, "1f1b", "glob", "fp32") is ROWS[4]
    assert ratio(ROWS[0], ROWS[4]) == pytest.approx(1.9)
    assert ratio(ROWS[0], ROWS[3]) == pytest.approx(3.8)
    assert ratio(ROWS[0], ROWS[5]) is None
    assert fastest(ROWS, "plain", "sim", "fp32") is None


def test_what_was_asked_for_is_answered() -> None:
    assert findings("mlp", "cpu", ROWS) == [
        ("pipeline pred fp32 / 1F1B", "1.90", "≥ 1.8", True),
        ("single mode pred fp32 / plain fp32", "1.10", "≥ 1.3", False),
        ("pipeline 2 pred fp32: the slowest stage is busy", "0.90", "≥ 0.88", True),
    ]
    faster = row(Contender("pipeline", "pred", "fp32", 3), 200.0, 400.0)
    assert findings("mlp", "cpu", [*ROWS, faster])[0].found == "2.00"
    assert not any(found.asked for found in findings("mlp", "cuda", ROWS))


def test_the_faster_of_compiled_and_not_is_held_against_the_bound_on_gpus() -> None:
    bound = row(Contender("products", "predsim", "bf16"), 1000.0, 1200.0)
    as_it_is = row(Contender("single", "predsim", "bf16"), 300.0, 310.0)
    compiled = row(Contender("single", "predsim", "bf16", compiled=True), 410.0, 500.0)
    (found,) = findings("vgg8b", "cuda", [bound, as_it_is, compiled])
    assert found == ("single mode predsim bf16 / products alone", "0.41", "≥ 0.4", True)


def test_one_process_on_all_cores_is_a_rival_of_pipelines() -> None:
    cores = row(Contender("single", "glob", "fp32", cores=2), 100.0, 250.0)
    found = {one.what: one.found for one in findings("mlp", "cpu", [*ROWS, cores])}
    assert found[f"pipeline pred fp32 / {CORES}"] == "1.71"
    assert found[f"{CORES}, fp32 / 1F1B"] == "1.12"


def test_the_table_comes_from_what_was_kept() -> None:
    kept = [one.tree() for one in ROWS]
    assert rows_of(kept) == ROWS
    text = network_text({"network": "mlp", "contenders": kept})
    assert "| pipeline, 2 stages | pred | 285 | 1.90 | 1.90 |" in text
    assert "| 1F1B, 2 stages, micro-batches: 4 | glob | failed | – | – |" in text
    assert "- 1f1b 2 in 4 glob fp32: why\n" in text


def test_rows_that_were_kept_before_contenders_could_be_compiled_are_not() -> None:
    kept = row(Contender("single", "pred", "bf16"), 300.0).tree()
    del kept["compiled"]
    (read,) = rows_of([kept])
    assert read.contender == Contender("single", "pred", "bf16")
