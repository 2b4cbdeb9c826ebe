"""Documents, and what modules say of each other: every file, class and function named exists."""

from __future__ import annotations

import ast
import json
import re
import runpy
from itertools import chain
from typing import TYPE_CHECKING, get_args

import pytest
from support import REPOSITORY

import pipeline
from pipeline.config.json_schema import json_schema
from pipeline.protocol.messages import Message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCUMENTS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in chain(
        REPOSITORY.glob("*.md"),
        *((REPOSITORY / folder).rglob("*.md") for folder in ("pipeline", "docs", "benchmarks")),
    )
)
SOURCES = ("pipeline", "launch", "benchmarks", "configs", "docs", "examples", "tests")
USERS = {"my_data.py", "my_rules.py", "my_networks.py", "queue.py"}
"""Files of a user's, as in examples."""
OTHERS = {"nn", "torch", "np"}
"""Modules that are not ours."""
ONE_PAGE = {"pipeline/README.md": (120, 120), "benchmarks/README.md": (120, 240)}
"""Documents that are to stay short: lines, columns."""
WRITTEN = ("benchmarks/RESULTS.md", "benchmarks/PAPER.md")
"""Documents that commands write."""

A_PATH = re.compile(r"(?<![\w/.*…-])(?:[\w-]+/)*[\w-]+\.(?:py|ya?ml|md|toml)(?![\w/])")
A_LINK = re.compile(
    r"(?:\]\(|^\[[^\]]+\]: )(?!https?:)([^)#\s]*)(?:#([^)\s]+))?(?:\)|$)", re.MULTILINE
)
"""`[words](path#anchor)`, `![words](path)`, or `[name]: path#anchor` on a line of its own."""
A_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
A_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
A_MEMBER = re.compile(r"`((?:\w+/)*[a-z]\w*)\.([A-Z]\w*[a-z]\w*(?:\.\w+)?)`")
"""A class of a module, or what it has: `learning/stage.Stage.step`."""
AN_EXTRA = re.compile(r"'([\w.-]+)\[([\w,]+)\]'")
"""What pip is asked for: a package with extras."""
A_STEP = re.compile(r"^\| `((?:\w+/)*\w+)\.py` \| (`[^|]*) \|", re.MULTILINE)
A_NAME = re.compile(r"`([\w.]+)`")
"""A row of a walk names functions of a file: | `learning/build.py` | `build_stage` | … |"""


def files() -> list[str]:
    """Paths of the repository, each with a slash before it."""
    found = chain(REPOSITORY.glob("*.*"), *((REPOSITORY / top).rglob("*.*") for top in SOURCES))
    return [f"/{path.relative_to(REPOSITORY).as_posix()}" for path in found if path.is_file()]


def unknown(text: str, known: list[str]) -> list[str]:
    """What `text` names and `known` lacks. A YAML file without a folder is one of a run's."""
    paths = (name for name in A_PATH.findall(text) if "/" in name or name.endswith(".py"))
    wrong = [
        name
        for name in paths
        if name not in USERS and not any(path.endswith(f"/{name}") for path in known)
    ]
    named = [(module, name) for module, name in A_MEMBER.findall(text) if module not in OTHERS]
    for module, names in A_STEP.findall(text):
        named += [(module, name) for name in A_NAME.findall(names)]
    for module, name in named:
        if module == "pipeline" and name in pipeline.__all__:
            continue
        sources = [path for path in known if path.endswith(f"/{module}.py")]
        if not any(name in defined(source) for source in sources):
            wrong.append(f"{module}.{name}")
    return wrong


def defined(path: str) -> set[str]:
    """Functions, classes and what classes define, of a module: `build_stage`, `Stage.step`."""
    found: set[str] = set()
    for node in ast.parse((REPOSITORY / path[1:]).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inside = (part for part in node.body if isinstance(part, ast.FunctionDef))
            found |= {f"{node.name}.{part.name}" for part in inside}
    return found


def leads(document: Path, link: str, anchor: str) -> bool:
    """Whether a link of a document leads to a file and, if it has an anchor, to a heading there."""
    path = document.parent / link if link else document
    if not path.exists() or not anchor:
        return path.exists()
    headings = A_HEADING.findall(path.read_text(encoding="utf-8"))
    return anchor in (re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings)


def docstrings() -> Iterator[tuple[Path, str]]:
    for path in chain(*((REPOSITORY / top).rglob("*.py") for top in ("pipeline", "launch"))):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        yield path, "\n".join(ast.get_docstring(node) or "" for node in nodes)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_what_exists(document: str) -> None:
    path = REPOSITORY / document
    text = path.read_text(encoding="utf-8")
    assert unknown(text, files()) == []
    assert [link for link in A_LINK.findall(text) if not leads(path, *link)] == []


def test_docstrings_name_what_exists() -> None:
    known = files()
    wrong = {path.name: unknown(text, known) for path, text in docstrings()}
    assert {name: names for name, names in wrong.items() if names} == {}


@pytest.mark.parametrize("document", ONE_PAGE)
def test_one_page_stays_one(document: str) -> None:
    lines = (REPOSITORY / document).read_text(encoding="utf-8").splitlines()
    most_lines, most_columns = ONE_PAGE[document]
    assert len(lines) <= most_lines
    assert max(map(len, lines)) <= most_columns


def test_prose_has_at_most_120_columns() -> None:
    """Tables and code may be wider."""
    for document in set(DOCUMENTS) - set(WRITTEN):
        text = (REPOSITORY / document).read_text(encoding="utf-8")
        lines = A_FENCE.sub("", text).splitlines()
        prose = [line for line in lines if not line.startswith(("|", "    "))]
        assert [line for line in prose if len(line) > 120] == [], document


def test_extras_are_there_and_installed_from_any_folder() -> None:
    """Who uses what is installed may be anywhere; in a clone are those who change it."""
    _, _, below = (REPOSITORY / "pyproject.toml").read_text().partition("optional-dependencies]\n")
    extras = set(re.findall(r"^(\w+) = \[", below.partition("\n[")[0], re.MULTILINE))
    sources = chain(*((REPOSITORY / top).rglob("*.py") for top in ("pipeline", "launch")))
    asked = {
        (path.name, *found)
        for path in chain(map(REPOSITORY.joinpath, DOCUMENTS), sources)
        for found in AN_EXTRA.findall(path.read_text(encoding="utf-8"))
        if found[1] != "test"
    }
    assert {name for _, _, names in asked for name in names.split(",")} == extras - {"test"}
    assert {package for _, package, _ in asked} == {"local-loss-pipeline"}


def test_the_design_names_every_message() -> None:
    text = (REPOSITORY / "pipeline/README.md").read_text(encoding="utf-8")
    names = {kind.__name__ for kind in get_args(Message)}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_the_picture_is_as_its_script_draws_it() -> None:
    """The README tells of it that under 1F1B stages are idle for 3/7 of the time."""
    script = runpy.run_path(str(REPOSITORY / "docs/pictures/schedules.py"))
    assert script["PICTURE"].read_text(encoding="utf-8") == script["picture"]()
    works = script["timed"](script["one_f_one_b"], script["MICRO_BATCHES"], is_global=True)
    first = [work for work in works if work.batch == 0]
    busy = sum(work.end - work.begin for work in first) / script["STAGES"]
    assert busy / max(work.end for work in first) == pytest.approx(4 / 7)


def test_the_schema_for_editors_is_current() -> None:
    text = (REPOSITORY / "docs/config.schema.json").read_text(encoding="utf-8")
    command = "python -m pipeline.config.json_schema > docs/config.schema.json"
    assert json.loads(text) == json_schema(), f"keys have changed: {command}"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("see `pipeline/no_such.py`", ["pipeline/no_such.py"]),
        ("`losses.py` and `lossez.py`", ["lossez.py"]),
        ("in learning/losses.py, not in kernels/losses.py", ["kernels/losses.py"]),
        ("made from launch/paper.yaml", ["launch/paper.yaml"]),
        ("`stage.Stage.step`, `learning/stage.Stage`", []),
        ("`stage.Stage.stepp`", ["stage.Stage.stepp"]),
        ("`runner.Stage.step`", ["runner.Stage.step"]),
        ("a run's `config.yaml`, `my_networks.py`", []),
        ("| `learning/stage.py` | `Stage.step`, `Stage` | trains |", []),
        ("| `learning/build.py` | `build_stage`, `built` | makes |", ["learning/build.built"]),
    ],
)
def test_a_wrong_name_is_found(text: str, wrong: list[str]) -> None:
    assert unknown(text, files()) == wrong


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("[words](docs/running.md#interrupt-and-resume)", True),
        ("[words](docs/running.md#interrupt-or-resume)", False),
        ("[words](#two-commands)", True),
        ("[words](#three-commands)", False),
        ("![words](docs/pictures/schedules.svg)", True),
        ("[words](docs/sameness.md)", False),
        ("words\n[name]: benchmarks/README.md\n", True),
        ("words\n[name]: benchmarks/README.md#no-such\n", False),
    ],
)
def test_a_link_that_leads_nowhere_is_found(text: str, right: bool) -> None:
    (link,) = A_LINK.findall(text)
    assert leads(REPOSITORY / "README.md", *link) is right
