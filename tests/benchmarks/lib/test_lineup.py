"""Who races, from what the command line said."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.lib import lineup
from benchmarks.lib.lineup import Options, contenders


def test_a_round_holds_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """And global backprop in one process with as many threads as there are cores."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {*range(4)})
    counts = (1, 3)
    options = Options(
        ("mlp",), ("fp32",), ("pred", "sim"), counts, 1, 1.0, "cpu", 1, (), Path("runs")
    )
    names = [contender.name for contender in contenders(options)]
    assert names == [
        "single pred fp32", "pipeline 1 pred fp32", "pipeline 3 pred fp32",
        "single sim fp32", "pipeline 1 sim fp32", "pipeline 3 sim fp32",
        "products pred fp32", "products sim fp32",
        "single glob fp32", "single glob fp32 on 3 cores", "single glob fp32 on 4 cores",
        "1f1b 3 in 1 glob fp32", "1f1b 3 in 2 glob fp32", "1f1b 3 in 4 glob fp32",
        "plain pred fp32", "plain sim fp32",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "stages"),
    [(["cpu"], [2, 4]), (["cuda:0"], []), (["cuda:0", "cuda:1", "cuda:2"], [2])],
)
def test_1f1b_needs_a_gpu_for_each_process(
    names: list[str], stages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineup, "devices", lambda gpus: names)
    options = Options(
        ("vgg8b",), ("bf16",), ("pred",), (1, 2, 4), 1, 1.0, "which", 1, (), Path("runs")
    )
    assert options.rival_stages == stages
    assert any(c.compiled for c in contenders(options)) == ("cpu" not in names)
    assert {c.stages for c in contenders(options) if c.way == "1f1b"} == set(stages)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    cores = {c.cores for c in contenders(options) if c.loss == "glob" and c.way == "single"}
    assert cores == ({1, 2} if "cpu" in names else {1})
