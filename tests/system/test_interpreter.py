"""Nothing of the current folder is imported, but what a factory names, last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support import REPOSITORY

from launch.entry import leave_current_folder
from pipeline.system.interpreter import (
    look_here_last,
    module_path,
    python_command,
    python_environment,
    without_current_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.processes import Launcher

SHADOWS = ("linecache", "pathlib", "selectors", "json", "threading", "yaml", "click", "rich")
NET = """\
import helper
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, helper.WIDTH), nn.ReLU(), nn.Linear(8, 10))
"""


@pytest.fixture
def shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: modules that leave a file where they are imported."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"open('{tmp_path}/EXECUTED-{name}', 'w')\n")
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/__init__.py").write_text(f"open('{tmp_path}/EXECUTED-launch', 'w')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def executed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("EXECUTED-*"))


@pytest.mark.parametrize("path", [None, "", ":", ".", "..:.:", "HERE", "HERE/../HERE/."])
def test_a_process_imports_nothing_from_the_current_folder(
    shadowed: Path, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    if path is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        here = path.replace("HERE/../HERE", f"{shadowed}/../{shadowed.name}")
        monkeypatch.setenv("PYTHONPATH", here.replace("HERE", str(shadowed)))
    monkeypatch.setattr(sys, "path", ["", ".", str(shadowed), *sys.path])
    command = python_command("json.tool", "ignored")  # its main takes no argument
    program = command[-1].replace("from json.tool import main", "import json, selectors")
    shown = program[: program.rindex("main(")] + "print(json.dumps(sys.path))"
    done = subprocess.run(
        [*command[:-1], shown],
        env=python_environment(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert executed(shadowed) == []
    assert str(shadowed) not in json.loads(done.stdout)


def test_the_rest_of_the_path_keeps_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    given = ["/b", "", "lib", ".", str(tmp_path), f"{tmp_path}/link", "/a"]
    assert without_current_folder(given) == ["/b", f"{tmp_path}/lib", "/a"]


def test_the_current_folder_is_looked_at_last_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", "/a"])
    look_here_last()
    look_here_last()
    assert sys.path == ["/a", str(tmp_path)]


def test_a_deleted_current_folder_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    monkeypatch.setattr(sys, "path", ["", ".", "lib", "/a"])
    monkeypatch.setenv("PYTHONPATH", ":lib:/b")
    assert module_path() == ["/a"]
    look_here_last()
    leave_current_folder()
    assert (sys.path, os.environ["PYTHONPATH"]) == (["/a"], "/b")


@pytest.mark.parametrize("module", ["launch.cli", "launch.verify", "launch.reproduce"])
def test_commands_that_are_started_as_modules_leave_it_too(shadowed: Path, module: str) -> None:
    """Where the package is installed elsewhere; `runpy` itself is Python's business."""
    (shadowed / "launch/__init__.py").unlink()
    (shadowed / "launch").rmdir()
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        env={**os.environ, "PYTHONPATH": f":{REPOSITORY}"},
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    unavoidable = {f"EXECUTED-{name}" for name in ("linecache", "pathlib", "threading")}
    assert not {*executed(shadowed)} - unavoidable, done.stderr


@pytest.mark.processes
def test_a_run_uses_its_own_files_and_the_users_network(
    launcher: Callable[..., Launcher], shadowed: Path
) -> None:
    (shadowed / "nets.py").write_text(NET)
    (shadowed / "helper.py").write_text("WIDTH = 8\n")
    (shadowed / "d.yaml").write_text(
        "model: {factory: 'nets:net'}\nloss: {name: sim}\nschedule: {epochs: 1}\n"
        "data: {name: digits, train_limit: 64, test_limit: 32, batch_size: 32}\n"
    )
    run = launcher("d.yaml", "--run-dir", "run", "--view", "quiet")
    assert run.exit_status() == 0, run.stderr
    assert executed(shadowed) == []
