"""What documents show works as it stands there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from support import REPOSITORY
from support.snippets import carry_out

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.usefixtures("torch_settings")
@pytest.mark.parametrize(
    ("document", "snippets"),
    [
        ("docs/data.md", 7),
        ("docs/rules.md", 5),
        ("docs/after_training.md", 7),
        pytest.param("docs/python.md", 7, marks=pytest.mark.processes),
    ],
)
def test_snippets_of_a_document_work(
    document: str, snippets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    known = set(sys.modules)
    try:
        assert carry_out(REPOSITORY / document, tmp_path) == snippets
    finally:
        for name in set(sys.modules) - known:
            if name.startswith("my_"):
                del sys.modules[name]


@pytest.mark.processes
@pytest.mark.usefixtures("torch_settings")
def test_the_first_page_s_lines_of_python_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert carry_out(REPOSITORY / "README.md", tmp_path, ("python",)) == 1
    said = capfd.readouterr().out.splitlines()[-12:]
    assert any("error_pct" in line for line in said)
    assert any("Sequential(" in line for line in said)
