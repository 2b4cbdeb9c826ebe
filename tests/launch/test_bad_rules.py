"""A wrong local rule is refused in one line, with exit status 2, and nothing is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from support import rules
from support.processes import Started, contents

from launch.cli import main

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """\
model: {name: mlp, hidden_layers: 2, hidden: 12}
loss: {rule: RULE}
data: {name: digits, batch_size: 64}
schedule: {epochs: 1}
"""


def refused(folder: Path, rule: str, *arguments: str) -> str:
    """The one line that is said of a rule."""
    config = folder / "rule.yaml"
    config.write_text(CONFIG.replace("RULE", f'"{rule}"'), encoding="utf-8")
    before = contents(folder)
    run_dir = str(folder / "run")
    result = CliRunner().invoke(main, [str(config), "--run-dir", run_dir, *arguments])
    assert result.exit_code == 2, result.exception
    assert contents(folder) == before
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip()


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (rules.NotARule, "NotARule is not a LocalRule"),
        (rules.Raising, "RuntimeError: no rule for"),
        (rules.Needy, "needs the option 'width'"),
        (rules.ManyLosses, "block 0: loss gives a Tensor of shape (2,)"),
        (rules.Infinite, "block 0: loss gives inf"),
        (rules.Detached, "block 0: loss has no gradient for the activation"),
        (rules.Unset, "carries 'image', which was never set"),
        (rules.Growing, "carries 'image' of a tensor (16, 3) of float32 for 16 examples"),
        (rules.InPlace, "block 0: leave changes 'image' in place"),
        (rules.WithGraph, "block 0: carries 'image' with its graph"),
        (rules.OddScores, "block 0: scores are a tensor (1, 10) of float32; (2, 10) of real num"),
        (rules.OddDirections, "block 0: update names 'wait'"),
    ],
)
def test_a_wrong_rule_is_named_once(tmp_path: Path, kind: type, says: str) -> None:
    said = refused(tmp_path, f"{rules.__name__}:{kind.__name__}", "--stages", "2")
    assert said.startswith(f"loss.rule {rules.__name__}:{kind.__name__}: {says}")
    assert said.count("loss.rule") == 1


@pytest.mark.usefixtures("nothing_starts")
def test_options_that_a_rule_has_not(tmp_path: Path) -> None:
    said = refused(tmp_path, "DGL", "--single", "--set", "loss.options.wide=3")
    assert said.startswith("loss.rule DGL: has no option 'wide'; it has ")


def test_a_right_rule_starts(tmp_path: Path, nothing_starts: None) -> None:
    config = tmp_path / "rule.yaml"
    config.write_text(CONFIG.replace("RULE", f'"{rules.__name__}:EveryHook"'), encoding="utf-8")
    with pytest.raises(Started):
        CliRunner().invoke(main, [str(config), "--stages", "2"], catch_exceptions=False)
