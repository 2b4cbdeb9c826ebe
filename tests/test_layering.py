"""Who may import whom, as data."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

LEARNING = {
    "allocator", "architectures", "assembly", "augment", "block", "compiled", "crowd", "custom",
    "dials", "draws", "dropout", "elsewhere", "factory", "fingerprints", "finite", "graphs",
    "groups", "heads", "layout", "linear", "losses", "measure", "metrics", "models",
    "nonlinearity", "optimizers", "outside", "ownership", "placing", "pooling", "readout",
    "rehearsal", "remade", "runner", "shortcuts", "single", "stage", "streams",
}  # fmt: skip
MESSAGES = {
    "addresses", "carriers", "codec", "control", "devicering", "endpoints", "links", "memory",
    "messages", "protocol", "sockets", "tcpport", "transport", "writers",
}  # fmt: skip
MEETING = {
    "worker",
    "workerprocess",
    "coordinator",
    "feeding",
    "setup",
    "tensors",
    "crew",
    "hearing",
    "gathering",
    "hop",
}
NEUTRAL = {
    "datarecord", "imagecheck", "imagelist", "imagereading", "plainfile", "published",
    "__init__", "activity", "arguments", "blame", "blockfile", "checkpoint", "children",
    "config", "configfile",
    "cost", "daemonpool", "reading",
    "data", "datasets", "descriptors", "door", "durable", "errors", "events", "feed", "folder",
    "handwritten",
    "imagefiles",
    "inband", "interpreter", "invitation", "kept", "keeper", "limits", "linefile", "lossconfig",
    "meter", "modelconfig",
    "moves", "paths", "patience", "placement", "plan", "processor", "recorder", "records",
    "recovery", "run", "sampling", "schema", "seeding", "signals", "simulate", "sources", "specs",
    "store", "timing", "trouble", "watch", "yamlfile",
}  # fmt: skip

TYPES_ONLY = {"watch": {"messages"}}
"""What a neutral module may name in its annotations, without importing it at run time."""

DOORS = {
    "yaml": {"pipeline.yamlfile"},
    "pydantic": {"pipeline.schema"},
    "msgpack": {"pipeline.codec"},
    "zmq": {"pipeline.sockets"},
    "torchvision": {"pipeline.published"},
    "sklearn": {"pipeline.data"},
    "PIL": {"pipeline.imagefiles", "pipeline.imagereading"},
    "safetensors": {"pipeline.blockfile"},
    "matplotlib": {"launch.paper_figures", "launch.pictures"},
}
ONLY_IN_LAUNCH = {"click", "rich", "ray"}
EVERYWHERE = {"numpy", "torch"}

WITHOUT_TORCH = [
    "models", "plan", "cost", "config", "configfile", "yamlfile", "feed", "messages", "codec",
    "protocol", "checkpoint", "coordinator", "control", "crew", "sockets", "transport",
    "carriers", "devicering", "links", "recorder", "run", "watch", "data", "keeper", "linefile",
    "store", "writers",
]  # fmt: skip


class Imports(ast.NodeVisitor):
    """What one file imports: at run time, or only for type checkers."""

    def __init__(self, path: Path) -> None:
        self.at_run_time: set[str] = set()
        self.for_types: set[str] = set()
        self._found = self.at_run_time
        self.visit(ast.parse(path.read_text(encoding="utf-8")))

    @property
    def all(self) -> set[str]:
        return self.at_run_time | self.for_types

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            self._found, before = self.for_types, self._found
            for statement in node.body:
                self.visit(statement)
            self._found = before
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self._found.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute"
        module = node.module or ""
        self._found.update(
            f"{module}.{alias.name}" if module in ("pipeline", "launch") else module
            for alias in node.names
        )


def modules(package: str) -> dict[str, Imports]:
    paths = sorted((REPOSITORY / package).glob("*.py"))
    return {f"{package}.{path.stem}": Imports(path) for path in paths}


PIPELINE, LAUNCH = modules("pipeline"), modules("launch")


def own(names: set[str]) -> set[str]:
    """Modules of the pipeline among imported names, without the package's name."""
    return {name.split(".")[1] for name in names if name.startswith("pipeline.")}


def third_parties(names: set[str]) -> set[str]:
    roots = {name.split(".")[0] for name in names}
    return roots - sys.stdlib_module_names - {"pipeline", "launch"}


def reached(module: str) -> set[str]:
    """Everything of the pipeline that importing a module runs."""
    found, waiting = set(), {module}
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= own(PIPELINE[f"pipeline.{name}"].at_run_time) - found
    return found - {module}


def test_every_module_has_its_place() -> None:
    places = [LEARNING, MESSAGES, MEETING, NEUTRAL]
    assert sum(map(len, places)) == len(set().union(*places))
    assert {name.removeprefix("pipeline.") for name in PIPELINE} == set().union(*places)


@pytest.mark.parametrize("module", sorted(LEARNING))
def test_the_learning_half_does_not_know_messages(module: str) -> None:
    assert not own(PIPELINE[f"pipeline.{module}"].all) & (MESSAGES | MEETING)
    assert not reached(module) & (MESSAGES | MEETING)


@pytest.mark.parametrize("module", sorted(MESSAGES))
def test_the_message_half_does_not_know_learning(module: str) -> None:
    assert not own(PIPELINE[f"pipeline.{module}"].all) & (LEARNING | MEETING)
    assert not reached(module) & (LEARNING | MEETING)


@pytest.mark.parametrize("module", sorted(NEUTRAL))
def test_what_serves_both_halves_does_not_join_them(module: str) -> None:
    found = own(PIPELINE[f"pipeline.{module}"].all)
    assert found & (MESSAGES | MEETING) <= TYPES_ONLY.get(module, set())
    assert not reached(module) & (MESSAGES | MEETING)


def test_the_halves_meet_where_the_design_says() -> None:
    meeting = {
        name
        for name, imports in PIPELINE.items()
        if own(imports.all) & MESSAGES and (own(imports.all) & LEARNING or "torch" in imports.all)
    }
    assert {name.removeprefix("pipeline.") for name in meeting} <= MEETING


@pytest.mark.parametrize("module", sorted(PIPELINE))
def test_the_library_does_not_know_the_launcher(module: str) -> None:
    imports = PIPELINE[module].all
    assert not {name for name in imports if name.split(".")[0] == "launch"}


@pytest.mark.parametrize("module", sorted({**PIPELINE, **LAUNCH}))
def test_each_third_party_has_one_door(module: str) -> None:
    found = third_parties({**PIPELINE, **LAUNCH}[module].all) - EVERYWHERE
    allowed = {name for name, doors in DOORS.items() if module in doors}
    if module in LAUNCH:
        allowed |= ONLY_IN_LAUNCH
    assert found <= allowed


@pytest.mark.parametrize("name", sorted(DOORS))
def test_every_door_is_used(name: str) -> None:
    found = {
        module
        for module, imports in {**PIPELINE, **LAUNCH}.items()
        if name in third_parties(imports.all)
    }
    assert found == DOORS[name]


def test_no_circles() -> None:
    circles = {name for name in PIPELINE if name.split(".")[1] in _reached_by_parts(name)}
    assert not circles


def _reached_by_parts(module: str) -> set[str]:
    name = module.removeprefix("pipeline.")
    parts = own(PIPELINE[module].at_run_time) - {name}
    return set().union(*({part} | reached(part) for part in parts))


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_plans_and_talks_does_not_need_torch(module: str) -> None:
    for name in {module, *reached(module)}:
        at_import = _at_import(REPOSITORY / "pipeline" / f"{name}.py")
        assert not third_parties(at_import) & {"torch", "torchvision"}, name


def _at_import(path: Path) -> set[str]:
    """What a file imports while it is imported itself: not what its functions import later."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_no_torch_is_loaded_by_what_does_not_need_it() -> None:
    """The truth behind the sources: one interpreter imports them all."""
    program = (
        "import importlib, json, sys\n"
        f"for name in {WITHOUT_TORCH!r}: importlib.import_module('pipeline.' + name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert "pipeline" in loaded
    assert "zmq" in loaded
    assert not loaded & {"torch", "torchvision", "safetensors", "sklearn", "click", "rich"}


def test_imports_are_told_apart(tmp_path: Path) -> None:
    """This file's own reader can fail."""
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b\nfrom typing import TYPE_CHECKING\nfrom pipeline import codec\n"
        "if TYPE_CHECKING:\n    import c\nelse:\n    import d\n"
        "def f():\n    from e.f import g\n"
    )
    imports = Imports(path)
    assert imports.at_run_time == {"a.b", "typing", "pipeline.codec", "d", "e.f"}
    assert imports.for_types == {"c"}
    assert third_parties(imports.all) == {"a", "c", "d", "e"}
    assert own(imports.all) == {"codec"}
    assert _at_import(path) == {"a.b", "typing", "pipeline"}
