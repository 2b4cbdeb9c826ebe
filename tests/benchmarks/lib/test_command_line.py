"""What a user of a benchmark did wrong is said before anything is measured, in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import frontier, links, memory, ready, recovery, rules, scaling, throughput

THROUGHPUT = ["--network", "mlp", "--losses", "pred", "--precision", "fp32"]


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (throughput.main, ["--gpus", "7"], "this machine has no CUDA device 7"),
        (throughput.main, [*THROUGHPUT, "--set", "nonsense"], "expected SECTION.KEY=VALUE"),
        (throughput.main, [*THROUGHPUT, "--set", "loss.name=sim"], "loss.name is what contenders"),
        (throughput.main, [*THROUGHPUT, "--set", "optimizer.name=sgd"], "optimizer.name is what"),
        (throughput.main, [*THROUGHPUT, "--set", "model.hidden_layers=9"], "contenders are called"),
        (throughput.main, [*THROUGHPUT, "--set", "data.size=32"], "data.size is what contenders"),
        (throughput.main, [*THROUGHPUT, "--threads", "0"], "0 is not in the range x>=1"),
        (throughput.main, [*THROUGHPUT, "--seconds", "-1"], "-1.0 is not in the range x>0.0"),
        (throughput.main, [*THROUGHPUT, "--seconds", "nan"], "'nan' is no number"),
        (throughput.main, [*THROUGHPUT, "--seconds", "inf"], "'inf' is no number"),
        (frontier.main, ["--seconds", "nan"], "'nan' is no number"),
        (rules.main, ["--seconds", "0"], "0.0 is not in the range x>0.0"),
        (throughput.main, [*THROUGHPUT, "--stages", "9"], "--stages 9: every stage needs"),
        (throughput.main, [*THROUGHPUT, "--losses", ""], "use some of pred,sim,predsim"),
        (scaling.main, ["--network", "mlp", "--stages", "9"], "--stages 9: every stage needs"),
        (scaling.main, ["--network", "mlp", "--gpus", "7"], "this machine has no CUDA device 7"),
        (scaling.main, ["--network", "mlp", "--set", "nonsense"], "expected SECTION.KEY=VALUE"),
        (scaling.main, ["--stages", "a"], "'a': use numbers of stages, as 1,2,3"),
        (scaling.main, ["--stages", "0"], "'0': use numbers of stages, as 1,2,3"),
        (scaling.main, ["--rounds", "0"], "0 is not in the range x>=1"),
        (throughput.main, ["--disk", __file__, *THROUGHPUT], f"{Path(__file__).name}: can't be"),
        (recovery.main, ["--disk", __file__], f"{Path(__file__).name}: can't be made: File"),
        (memory.main, ["--device", "nonsense"], "--device nonsense: expected cpu, or"),
        (memory.main, ["--device", "cuda:99"], "cuda:99: this machine has no CUDA device 99"),
        (links.main, ["--gpu", "99"], "cuda:99: this machine has no CUDA device 99"),
        (links.main, ["--gpu", "-1"], "-1 is not in the range x>=0"),
        (links.main, ["--size", "0"], "0.0 is not in the range"),
        (ready.main, ["--runs", "0"], "0 is not in the range x>=1"),
    ],
)
def test_what_a_user_did_wrong_is_said_in_a_line(main: object, words: list[str], said: str) -> None:
    found = CliRunner().invoke(main, words)  # type: ignore[arg-type]
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())
