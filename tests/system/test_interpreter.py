"""Nothing of the current folder is imported, but what a factory names, last."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support import REPOSITORY
from support.processes import python

from launch.entry import leave_current_folder
from pipeline.system.interpreter import (
    look_here_last,
    module_path,
    python_command,
    python_environment,
    without_current_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.processes import Launcher

OPTIONAL = ("pandas", "polars", "accimage", "cupy", "triton", "numexpr", "pyarrow")
"""What libraries use where it is installed."""
USED = ("linecache", "pathlib", "selectors", "json", "threading", "yaml", "click", "rich")
NET = """\
import helper
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, helper.WIDTH), nn.ReLU(), nn.Linear(8, 10))
"""


@pytest.fixture
def shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: modules that leave a file where they are imported."""
    for name in (*USED, *OPTIONAL):
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


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with modules that tell what they found; and libraries elsewhere."""
    for path, text in MODULES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    work = tmp_path / "work"
    monkeypatch.chdir(work)
    more = [str(tmp_path / "libraries"), str(work / ".venv"), str(work / "src")]
    monkeypatch.setattr(sys, "path", [str(work), "", *sys.path, *more])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    before = {*sys.modules}
    yield work
    for name in {*sys.modules} - before:
        del sys.modules[name]


TRIES = """\
import importlib

def tries(name):
    try:
        return importlib.import_module(name).__file__
    except ModuleNotFoundError:
        return None

found = tries("optional_thing")
"""
MODULES = {
    "libraries/some_library.py": TRIES,
    "libraries/there_and_here.py": "",
    "work/.venv/library_in_here.py": TRIES,
    "work/.venv/library_in_here-1.0.dist-info/METADATA": "",
    "work/src/on_pythonpath.py": TRIES,
    "work/optional_thing.py": "",
    "work/there_and_here.py": "",
    "work/my_nets.py": (
        "import some_library, library_in_here, on_pythonpath\n"
        "import my_helper, there_and_here, my_parts.one"
    ),
    "work/my_helper.py": TRIES,
    "work/my_parts/one.py": "from my_parts import two",
    "work/my_parts/two.py": TRIES,
}


def test_own_modules_find_each_other_and_libraries_find_none(own_modules: Path) -> None:
    look_here_last("my_nets")
    look_here_last("my_nets")
    nets = importlib.import_module("my_nets")
    here = str(own_modules / "optional_thing.py")
    assert nets.my_helper.found == nets.my_parts.two.found == nets.on_pythonpath.found == here
    assert nets.there_and_here.__file__ == str(own_modules.parent / "libraries/there_and_here.py")
    assert str(own_modules) not in sys.path
    assert "" not in sys.path


@pytest.mark.parametrize("name", ["some_library", "library_in_here"])
def test_what_a_library_tries_to_import_is_not_looked_for_here(
    own_modules: Path, name: str
) -> None:
    look_here_last("my_nets")
    assert importlib.import_module("my_nets")
    assert sys.modules[name].tries("my_helper") is not None  # the user's file has imported it
    assert sys.modules.pop("optional_thing")
    assert sys.modules[name].tries("optional_thing") is None


@pytest.mark.parametrize("name", ["my_parts.one", "my_helper", "optional_thing"])
def test_what_a_factory_names_is_found_and_nothing_else(own_modules: Path, name: str) -> None:
    look_here_last(name)
    assert str(importlib.import_module(name).__file__).startswith(str(own_modules))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("my_nets")


def test_a_deleted_current_folder_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    monkeypatch.setattr(sys, "path", ["", ".", "lib", "/a"])
    monkeypatch.setenv("PYTHONPATH", ":lib:/b")
    assert module_path() == ["/a"]
    look_here_last("nets")
    leave_current_folder()
    assert (sys.path, os.environ["PYTHONPATH"]) == (["/a"], "/b")


@pytest.mark.parametrize("module", ["launch.cli", "launch.verify", "launch.reproduce"])
def test_commands_that_are_started_as_modules_leave_it_too(shadowed: Path, module: str) -> None:
    """Where the package is installed elsewhere; `runpy` itself is Python's business."""
    (shadowed / "launch/__init__.py").unlink()
    (shadowed / "launch").rmdir()
    environment = {**os.environ, "PYTHONPATH": f":{REPOSITORY}"}
    done = python("-m", module, "--help", env=environment)
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
