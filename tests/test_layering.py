"""The house as a table: which folder may import which, and which needs torch.

A folder imports only folders that stand above it, and of those only what its row names. A test
that fails names the file and what it imports: move the code, or, with a reason, change the row.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """What a folder, or a module beside the folders, may import of the project."""

    may: frozenset[str]
    torch: bool

    def __init__(self, may: str, *, torch: bool) -> None:
        object.__setattr__(self, "may", frozenset(may.split()))
        object.__setattr__(self, "torch", torch)


def row(may: str = "") -> Row:
    return Row(may, torch=False)


def torch(may: str) -> Row:
    return Row(may, torch=True)


PIPELINE: dict[str, Row] = {  # from the ground up
    "dtypes": row(),
    "errors": row(),
    "seeding": row(),
    "signals": row(),
    "system": row("errors"),
    "config": row("errors"),
    "data": row("dtypes errors seeding system config"),
    "rules": torch("dtypes"),
    "network": row("dtypes errors seeding system config data rules"),
    "planning": row("errors config network"),
    "schedule": row("errors config network"),
    "timeline": row("system schedule"),
    "protocol": row("dtypes errors data schedule"),
    "storage": row("errors system data schedule"),
    "device": torch("schedule"),
    "kernels": torch("dtypes seeding network device"),
    "transport": row("errors system schedule timeline protocol"),
    "run": row("errors system config data planning schedule timeline storage transport"),
    "learning": torch(
        "dtypes errors seeding system config data rules network schedule device kernels"
    ),
    "rehearsal": torch("errors seeding system config data network schedule learning"),
    "locality": torch(
        "errors signals system config data network schedule device kernels learning rehearsal"
    ),
    "worker": torch(
        "dtypes errors system config network schedule timeline protocol device kernels transport "
        "learning rehearsal"
    ),
    "coordinator": row("errors system config planning schedule timeline protocol transport run"),
    "profiling": torch("seeding config data network planning kernels learning"),
    "single": torch(
        "errors system network planning schedule timeline device run learning rehearsal worker"
    ),
    "trained": torch("errors system config data network schedule storage learning"),
    "api": torch("errors config data kernels learning network rules run storage system trained"),
}
"""`torch`: importing the folder may import torch. The others plan, talk and keep without it."""

FACE = "pipeline.api"
"""The one folder of `pipeline` above `launch`: `pipeline.fit` holds a run directory, starts workers
and shows a run as the commands do, by the same functions. They would be no better placed in
`pipeline`, which knows neither terminal nor signal."""

LAUNCH: dict[str, Row] = {  # from the ground up; `pipeline` may be imported by all of it
    "job": row(),
    "milestones": row(),
    "resume": row("job"),
    "machine": row(),
    "run_directory": row("job resume machine"),
    "display": row("job run_directory"),
    "engines": row("machine display"),
    "command": row("machine display engines"),
    "child_commands": row("engines command"),
    "completion": row(),
    "plan": row("job milestones machine display engines"),
    "same_data": row(),
    "training": row("job run_directory display engines plan same_data"),
    "trial_run": row("job engines plan training"),
    "run_job": row("job resume machine run_directory engines training"),
    "last_lines": row("run_directory display"),
    "launcher": row(
        "job resume run_directory display engines command plan trial_run run_job last_lines"
    ),
    "listings": row("plan"),
    "cli": row("job run_directory command completion launcher listings"),
    "series": row("job resume run_directory run_job launcher"),
    "drawing": row(),
    "paper": row("job resume run_directory machine display plan series drawing"),
    "grid": row("job resume run_directory display engines child_commands plan launcher series"),
    "verify": row("job display engines command completion plan training run_job"),
    "reproduce": row("job run_directory engines command launcher series paper cli"),
    "sweep": row("job run_directory machine display engines command launcher series grid cli"),
    "referee": row(
        "job run_directory machine display engines command child_commands completion plan series "
        "grid resume"
    ),
    "read_run": row("command"),
    "evaluate": row("command display plan read_run"),
    "predict": row("command display read_run"),
    "export": row("command read_run"),
    "report": row("command run_directory machine display read_run drawing"),
    "first_config": row("job plan"),
    "init": row("command first_config read_run"),
    "entry": row(),  # imports a command by its name, once the module path is safe
}

TRACING = {
    f"pipeline.network.{name}"
    for name in (
        "batch_norms",
        "chain",
        "graph",
        "localise",
        "multiply_adds",
        "ownership",
        "to_device",
    )
}
"""Files that need torch in a folder that does not: for networks of a user's own."""

LEARNS = frozenset({"device", "kernels", "learning", "rehearsal", "locality"})
TALKS = frozenset({"protocol", "transport"})
MEET = frozenset({"worker", "coordinator", "profiling", "single"})

DOORS = {
    "yaml": {"pipeline.config.yaml_text"},
    "pydantic": {"pipeline.config.schema"},
    "cloudpickle": {"pipeline.system.packed"},
    "msgpack": {"pipeline.protocol.codec"},
    "cryptography": {"pipeline.transport.seal"},
    "zmq": {"pipeline.transport.sockets"},
    "torchvision": {"pipeline.data.published"},
    "sklearn": {"pipeline.api.classifier", "pipeline.data.batches"},
    "PIL": {"pipeline.data.image_reading", "pipeline.run.event_files"},
    "tensorboard": {"pipeline.run.event_files"},
    "safetensors": {"pipeline.learning.block_file"},
    "matplotlib": {"launch.drawing"},
    "jinja2": {"launch.report.page"},
}
"""Third parties, each with the files that import it."""
ONLY_IN_LAUNCH = {"click", "rich", "ray"}
EVERYWHERE = {"numpy", "torch"}


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
        assert node.module
        self._found.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))


def modules_of(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


PACKAGES = ("pipeline", "launch", "benchmarks")
PATHS = {name: path for package in PACKAGES for name, path in modules_of(package)}
IMPORTS = {name: Imports(path) for name, path in PATHS.items()}


def own(names: Iterable[str]) -> set[str]:
    """Modules of the project among imported names."""
    return {name for name in names if name in PATHS}


def place(module: str) -> str:
    """The folder of a module, or itself where it lies beside the folders: `pipeline.config`."""
    return ".".join(module.split(".")[:2])


def between_places(package: str) -> Iterator[tuple[str, str, str]]:
    """(importing module, imported module, the imported one's place) across places of a package."""
    for module, imports in IMPORTS.items():
        if not module.startswith(f"{package}."):
            continue
        for name in sorted(own(imports.all)):
            if name.startswith(f"{package}.") and place(name) != place(module):
                yield module, name, place(name)


def wrong_arrows(package: str, table: Mapping[str, Row]) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, name, at in between_places(package)
        if at.split(".")[1] not in table[place(module).split(".")[1]].may
    ]


def third_parties(names: Iterable[str]) -> set[str]:
    roots = {name.split(".")[0] for name in names}
    return roots - sys.stdlib_module_names - {"pipeline", "launch", "benchmarks"}


def test_every_module_has_a_row() -> None:
    for package, table in (("pipeline", PIPELINE), ("launch", LAUNCH)):
        places = {place(name).split(".")[1] for name, _ in modules_of(package) if name != package}
        assert places == set(table), package


def test_folders_import_what_their_row_names() -> None:
    assert not wrong_arrows("pipeline", PIPELINE)
    assert not wrong_arrows("launch", LAUNCH)


def test_rows_name_only_rows_above_them() -> None:
    for table in (PIPELINE, LAUNCH):
        above: set[str] = set()
        for name, found in table.items():
            assert found.may <= above, name
            above.add(name)


def test_rows_name_nothing_that_is_not_imported() -> None:
    for package, table in (("pipeline", PIPELINE), ("launch", LAUNCH)):
        used = {
            (place(module).split(".")[1], at.split(".")[1])
            for module, _, at in between_places(package)
        }
        listed = {(name, other) for name, found in table.items() for other in found.may}
        assert listed == used, package


def test_the_learning_half_and_the_message_half_meet_where_the_design_says() -> None:
    for name, found in PIPELINE.items():
        if name in LEARNS:
            assert not found.may & (TALKS | MEET), name
        elif name in TALKS:
            assert not found.may & (LEARNS | MEET), name
        elif found.may & LEARNS and found.may & TALKS:
            assert name in MEET


def test_the_library_knows_neither_launcher_nor_benchmarks() -> None:
    for module, imports in IMPORTS.items():
        roots = {name.split(".")[0] for name in own(imports.all)}
        known = {"pipeline": {"pipeline"}, "launch": {"pipeline", "launch"}}
        if place(module) == FACE:
            known["pipeline"] = {"pipeline", "launch"}
        assert roots <= known.get(module.split(".")[0], roots), module


def test_each_third_party_has_its_doors() -> None:
    found: dict[str, set[str]] = {}
    for module, imports in IMPORTS.items():
        if not module.startswith("benchmarks"):
            for party in third_parties(imports.all) - EVERYWHERE:
                found.setdefault(party, set()).add(module)
    for party in ONLY_IN_LAUNCH & found.keys():
        assert all(module.startswith("launch.") for module in found.pop(party)), party
    assert found == DOORS


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports for type checkers count, too: a circle of them is one of ideas."""
    assert not circles({name: own(imports.all) - {name} for name, imports in IMPORTS.items()})


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Modules that reach each other."""
    reached = {name: reach(graph, name) for name in graph}
    found = ({other for other in reached[name] if name in reached[other]} for name in graph)
    return [circle for circle in found if circle]


def reach(graph: Mapping[str, set[str]], name: str) -> set[str]:
    """Everything that `name` leads to; itself only by way of others."""
    found: set[str] = set()
    waiting = set(graph[name])
    while waiting:
        one = waiting.pop()
        found.add(one)
        waiting |= graph.get(one, set()) - found
    return found


def without_torch() -> list[str]:
    plain = {f"pipeline.{name}" for name, found in PIPELINE.items() if not found.torch}
    return [name for name in IMPORTS if place(name) in plain and name not in TRACING]


def test_what_plans_talks_and_keeps_loads_no_torch() -> None:
    """One interpreter imports them all."""
    program = (
        "import importlib, json, sys\n"
        f"for name in {without_torch()!r}: importlib.import_module(name)\n"
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
    assert {"pipeline", "zmq"} <= loaded
    assert not loaded & {"torch", "torchvision", "safetensors", "sklearn", "click", "rich"}


def test_rows_that_need_torch_do() -> None:
    needing = {place(name) for name, found in IMPORTS.items() if "torch" in found.at_run_time}
    assert {f"pipeline.{name}" for name, found in PIPELINE.items() if found.torch} <= needing


def test_imports_are_told_apart(tmp_path: Path) -> None:
    """This file's own reader can fail."""
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b\nfrom typing import TYPE_CHECKING\nfrom pipeline.protocol import codec\n"
        "if TYPE_CHECKING:\n    import c\nelse:\n    import d\n"
        "def f():\n    from e.f import g\n"
    )
    imports = Imports(path)
    assert imports.for_types == {"c"}
    assert {"a.b", "d", "e.f", "pipeline.protocol.codec"} <= imports.at_run_time
    assert third_parties(imports.all) == {"a", "c", "d", "e"}
    assert own(imports.all) == {"pipeline.protocol", "pipeline.protocol.codec"}


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}
    assert circles(graph) == [{"a", "b", "c"}] * 3
