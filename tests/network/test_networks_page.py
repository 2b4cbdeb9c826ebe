"""What docs/networks.md shows runs, and prints what it says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from support import REPOSITORY

if TYPE_CHECKING:
    import pytest

PAGE = (REPOSITORY / "docs/networks.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_its_snippets_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for snippet in fenced("python"):
        exec(compile(snippet, "docs/networks.md", "exec", dont_inherit=True), names)
    assert [capsys.readouterr().out] == fenced("text")
    assert len(names["small"](width=64)) == 5
