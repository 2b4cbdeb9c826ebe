"""What a run leaves is what `docs/files.md` and `docs/running.md` say: every file, every key."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from support import REPOSITORY

from launch.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = """\
model: {name: mlp, hidden_layers: 2, hidden: 8}
loss: {name: predsim}
data: {name: digits, batch_size: 64, train_limit: 128, test_limit: 64}
schedule: {epochs: 1}
runtime: {eval_depths: true}
"""


def keys(tree: Any) -> Iterator[str]:
    """Of all objects in a tree, but for the config, whose keys have a page of their own, and for
    versions, whose keys are packages."""
    if isinstance(tree, list):
        for entry in tree:
            yield from keys(entry)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            if key not in ("config", "versions"):
                yield from keys(value)


@pytest.mark.usefixtures("torch_settings")
def test_files_and_keys_of_a_run_are_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    options = ["--single", "--trace", "1", "--run-dir", "run", "small.yaml"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    files, running = (
        (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
        for page in ("files.md", "running.md")
    )
    run = tmp_path / "run"
    assert not [path.name for path in run.iterdir() if not re.search(rf"`{path.name}[`/]", files)]

    known = set(re.findall(r"`(\w+)`", files + running))
    trees = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (*run.glob("*.json"), *run.rglob("manifest.json"))
        if path.name != "trace.json"
    ]
    lines = [
        json.loads(line)
        for path in run.glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert len(trees) == 5
    assert not set(keys([*trees, *lines])) - known
