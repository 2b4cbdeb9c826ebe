"""Carries out what a document shows, in order, as a reader who follows it would."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from itertools import chain, groupby
from typing import TYPE_CHECKING

import click
from click.testing import CliRunner

import launch.entry
from pipeline.config.sections import build_config, settings
from pipeline.config.yaml_text import parsed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

A_SNIPPET = re.compile(r"^```(python|yaml|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
A_FILE = re.compile(r"# (\w+\.(?:py|ya?ml))\b")
"""A first line that names the file in which a snippet is to be."""
A_CONFIG = {"model": {"name": "mlp"}, "loss": {"name": "predsim"}, "data": {"name": "digits"}}
_IN_A_SENTENCE = re.compile(r"(?<!`)`((?:pipeline-[a-z]+|python -m benchmarks\.\w+) [^`]+)`")
WHOLE = {
    "docs/data.md": 7,
    "docs/rules.md": 7,
    "docs/after_training.md": 11,
    "docs/files.md": 3,
    "docs/networks.md": 4,
    "docs/quick_start.md": 7,
    "docs/recovery.md": 3,
    "docs/sweeps.md": 3,
    "docs/python.md": 8,
}
"""Pages whose examples are small: carried out whole; each with how many snippets it has."""
STARTS_PROCESSES = {"docs/quick_start.md", "docs/recovery.md", "docs/python.md"}
COMMANDS: dict[str, click.Command] = {
    name: import_module(module).main for name, module in launch.entry.COMMANDS.items()
}


def carry_out(
    document: Path, folder: Path, languages: Collection[str] = ("python", "yaml", "sh")
) -> int:
    """Write the files that a document shows into `folder`, the current one; run its Python and its
    `COMMANDS` there. Gives how many snippets there were of these languages."""
    snippets = A_SNIPPET.findall(document.read_text(encoding="utf-8"))
    found = [(language, text) for language, text in snippets if language in languages]
    names: dict[str, object] = {}
    for language, text in found:
        named = A_FILE.match(text)
        if named:
            (folder / named[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            if "import " in text:  # else it goes on where the last has ended
                names = {"__name__": "__main__"}
            exec(compile(text, document.name, "exec"), names)
        elif language == "yaml":  # a part of a config
            build_config({**A_CONFIG, **(parsed(text, document.name) or {})}, document.name)
        elif language == "sh":
            for command, *arguments in commands_of(text):
                result = CliRunner().invoke(COMMANDS[command], arguments)
                assert result.exit_code == 0, result.output
    return len(found)


def commands_in(document: str) -> Iterator[list[str]]:
    """All commands of a document, given as its text, a list of words each."""
    for language, text in A_SNIPPET.findall(document):
        if language == "sh":
            yield from commands_of(text)


def not_understood(document: str) -> list[str]:
    """Commands in a document, those within its sentences, too, whose options no command has, or
    whose keys no config has.

    Args:
        document: its text.
    """
    wrong = []
    in_sentences = map(shlex.split, _IN_A_SENTENCE.findall(document))
    for command, *arguments in chain(commands_in(document), in_sentences):
        try:
            if command == "python" and arguments[0] == "-m":
                main, arguments = import_module(arguments[1]).main, arguments[2:]
            elif command.startswith("pipeline-"):
                main = COMMANDS[command]
            else:
                continue
            given, _, _ = main.make_parser(click.Context(main)).parse_args(arguments)
        except (KeyError, ImportError, click.UsageError) as error:
            wrong.append(f"{command} {' '.join(arguments)}: {error!r}")
            continue
        keys = {key.split("=")[0] for key in given.get("overrides", ())}
        wrong += [f"{command} --set {key}" for key in sorted(keys) if not _is_known(key)]
    return wrong


def _is_known(key: str) -> bool:
    """Whether it is one of a config, or lies below one."""
    return any(f"{key}.".startswith(f"{known}.") for known in settings())


def commands_of(text: str) -> Iterator[list[str]]:
    """The commands of a snippet, a list of words each; what `&&` joins is several."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for joined, found in groupby(words, lambda word: word == "&&"):
            if not joined:
                program, *arguments = found
                yield [program.rsplit("/", 1)[-1], *arguments]
