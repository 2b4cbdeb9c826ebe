"""Every command line that documents and heads of configs show is one that the command takes, up to
the plan at least: with the files and options that are named there."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support import REPOSITORY
from support.command_lines import SMALL, carried_out, lines_of
from support.snippets import COMMANDS, WHOLE

from launch.job import Options
from launch.plan.checks import make_job

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("torch_settings", "nothing_starts_here")

A_CONFIG = """\
model: {name: mlp, hidden_layers: 4, hidden: 16}
loss: {name: predsim}
data: {name: digits, batch_size: 64}
schedule: {epochs: 1}
runtime: {keep_best: test}
"""
PAGES = [
    page
    for path in (REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/**/*.md")))
    if (page := str(path.relative_to(REPOSITORY))) not in WHOLE and any(lines_of(path))
]
"""Those that `test_snippets.py` does not carry out whole."""
CONFIGS = sorted(REPOSITORY.glob("configs/**/*.yaml"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the command lines name: one trained run under several names, a config,
    a plan, pictures, arrays, and the configs of the repository."""
    folder = tmp_path_factory.mktemp("everything")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    (folder / SMALL).write_text(A_CONFIG, encoding="utf-8")
    line = ["--single", "--view", "quiet", "--run-dir", folder / "runs" / "digits", folder / SMALL]
    done = CliRunner().invoke(COMMANDS["pipeline-launch"], list(map(str, line)))
    assert done.exit_code == 0, done.output
    for name in ("pred", "predsim"):
        (folder / "runs" / name).symlink_to("digits")
    draws = np.random.default_rng(1)
    pixels = draws.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    np.savez(folder / "other.npz", X=pixels, y=np.arange(40) % 10)
    Image.fromarray(pixels[0, 0]).save(folder / "photo.jpg")
    for k, picture in enumerate(pixels):
        path = folder / "photos" / ("train", "val")[k % 2] / ("cat", "dog")[k // 2 % 2]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0]).save(path / f"{k}.png")
    blocks = len(make_job(Options(REPOSITORY / "configs/vgg8b.yaml", dry_run=True)).specs)
    halves = [list(range(blocks // 2)), list(range(blocks // 2, blocks))]
    plan = {"stages": [{"blocks": half, "device": "cpu"} for half in halves]}
    (folder / "my_plan.json").write_text(json.dumps(plan), encoding="utf-8")
    return folder


@pytest.fixture
def here(everything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page writes is gone for the next."""
    for path in everything.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # measured costs
    monkeypatch.setattr("pipeline.profiling.blocks.SECONDS", 0.0)  # what --measure takes for each
    monkeypatch.setattr(sys, "path", sys.path[:])


@pytest.fixture
def nothing_starts_here(nothing_starts: None, here: None) -> None:
    """But for the run of `everything`, which is made before."""


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_of_a_page_are_taken(page: str) -> None:
    found = list(lines_of(REPOSITORY / page))
    assert found
    assert [wrong for line in found if (wrong := carried_out(line))] == []


def test_command_lines_on_top_of_configs_are_taken() -> None:
    found = [line for path in CONFIGS for line in lines_of(path)]
    assert len(found) > 2 * len(CONFIGS) - 20
    rows = [line[1] for line in found if line[0] == "pipeline-reproduce"]
    others = [line for line in found if line[0] != "pipeline-reproduce"]
    listed = CliRunner().invoke(COMMANDS["pipeline-reproduce"], ["--list"]).output
    assert set(rows) <= set(listed.split())
    # one of each table: all would take seconds
    of_tables = {row.partition("/")[0]: ["pipeline-reproduce", row] for row in rows}
    lines = [*of_tables.values(), *others]
    assert [wrong for line in lines if (wrong := carried_out(line))] == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("pipeline-launch configs/vgg8c.yaml", "vgg8c.yaml"),
        ("pipeline-launch configs/digits.yaml --set model.hiden=3", "did you mean model.hidden?"),
        ("pipeline-reproduce 1/mlq", "1/mlq"),
        ("pipeline-lunch", "no command of this project"),
        ("pipeline-eval runs/none", "there is no such folder"),
    ],
)
def test_a_line_that_is_wrong_is_found(line: str, says: str) -> None:
    assert says in carried_out(line.split())
