"""Carries out what a document shows, in order, as a reader who follows it would."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from click.testing import CliRunner

import launch.cli
import launch.evaluate
import launch.export
import launch.predict

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

A_SNIPPET = re.compile(r"^```(python|yaml|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
A_FILE = re.compile(r"# (\w+\.(?:py|ya?ml))\b")
"""A first line that names the file in which a snippet is to be."""
COMMANDS = {
    "pipeline-launch": launch.cli.main,
    "pipeline-eval": launch.evaluate.main,
    "pipeline-predict": launch.predict.main,
    "pipeline-export": launch.export.main,
}


def carry_out(
    document: Path, folder: Path, languages: Collection[str] = ("python", "yaml", "sh")
) -> int:
    """Write the files that a document shows into `folder`, the current one; run its Python and its
    `COMMANDS` there. Gives how many snippets there were of these languages."""
    snippets = A_SNIPPET.findall(document.read_text(encoding="utf-8"))
    found = [(language, text) for language, text in snippets if language in languages]
    for language, text in found:
        named = A_FILE.match(text)
        if named:
            (folder / named[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, document.name, "exec"), {"__name__": "__main__"})
        elif language == "sh":
            for line in text.splitlines():
                _launch(line)
    return len(found)


def _launch(line: str) -> None:
    command, *arguments = shlex.split(line, comments=True)
    result = CliRunner().invoke(COMMANDS[command], arguments)
    assert result.exit_code == 0, result.output
