"""Command lines that documents and the heads of configs show, carried out on something small.

What takes a data set, GPUs or long is carried out up to its plan, by the real command. Pages whose
examples are small are carried out whole, by `snippets.py`.
"""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from itertools import takewhile
from typing import TYPE_CHECKING

from click.testing import CliRunner

from support import REPOSITORY
from support.processes import Started
from support.snippets import COMMANDS, commands_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PLANS_ONLY = {
    "pipeline-launch": "--dry-run",
    "pipeline-sweep": "--dry-run",
    "pipeline-reproduce": "--dry-run",
    "pipeline-referee": "--dry-run",
}
"""By which option a command stops at its plan; `pipeline-verify`, which has none, is stopped where
it would start."""
LESS = {"pipeline-referee": ["--networks", "mlp", "--rules", "pred"]}
"""What makes a plan shorter."""
AS_THEY_ARE = {"--dry-run", "--list"}
"""With these it does so, or less, by itself."""
STANDS_FOR = {"runs/…": "runs/digits", "CONFIG.yaml": "configs/vgg11b_3x.yaml"}
SMALL = "small.yaml"
"""In place of the config where blocks are measured."""
QUICK = {"benchmarks.digit_images"}
"""Of `python -m`: what takes no hours."""

_A_COMMAND = re.compile(r"(?:Run it|or|plan for): (pipeline-.*?)(?:  +\(.*)?$")
_SETTING = re.compile(r"--set (?:'[^']+'|[^\s()]+)")


def carried_out(line: Sequence[str]) -> str:
    """Carry out a command in the current folder, or what stands for it; gives what is wrong, empty
    where nothing is."""
    program, *arguments = (STANDS_FOR.get(word, word) for word in line)
    if "ray" in arguments:  # even a plan takes a cluster
        return ""
    if program == "python" and arguments[0] == "-m":
        if arguments[1] not in QUICK:
            return ""
        main, arguments = import_module(arguments[1]).main, arguments[2:]
    elif not program.startswith("pipeline-"):  # others' programs: `.ci/run` has some
        return ""
    elif program in COMMANDS:
        main = COMMANDS[program]
        if program in PLANS_ONLY and not AS_THEY_ARE.intersection(arguments):
            arguments.append(PLANS_ONLY[program])
        arguments += LESS.get(program, [])
        if "--measure" in arguments:
            arguments = [SMALL if word.endswith(".yaml") else word for word in arguments]
    else:
        return f"{shlex.join(line)}: no command of this project"
    try:
        done = CliRunner().invoke(main, arguments)
    except Started:
        stops = program == "pipeline-verify" or "--measure" in arguments
        return "" if stops else f"{shlex.join(line)}: starts"
    return "" if done.exit_code == 0 else f"{shlex.join(line)}: {done.output}"


def lines_of(document: Path) -> Iterator[list[str]]:
    """The command lines of a document, in order."""
    text = document.read_text(encoding="utf-8")
    yield from commands_in(text) if document.suffix == ".md" else _of_a_head(document, text)


def _of_a_head(config: Path, text: str) -> Iterator[list[str]]:
    """By the comments on top of a config: how it is run, and with which settings."""
    head = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    path = config.relative_to(REPOSITORY)
    # lines of settings alone belong together, or to the command before them
    for line in re.sub(r"\n# +--set", " --set", head).splitlines():
        settings = shlex.split(" ".join(_SETTING.findall(line)))
        if found := _A_COMMAND.search(line):
            yield shlex.split(found[1])
        elif settings:
            yield ["pipeline-launch", "--single", str(path), *settings]
