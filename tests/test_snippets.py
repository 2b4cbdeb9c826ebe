"""What documents show works as it stands there."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import REPOSITORY
from support.snippets import STARTS_PROCESSES, WHOLE, carry_out, not_understood

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("documents")


@pytest.mark.usefixtures("torch_settings")
@pytest.mark.parametrize(
    ("document", "snippets"),
    [
        pytest.param(page, n, marks=[pytest.mark.processes] * (page in STARTS_PROCESSES))
        for page, n in WHOLE.items()
    ],
)
def test_snippets_of_a_document_work(
    document: str, snippets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    trackers = {"wandb": StandIn(), "mlflow": StandIn()}
    for name, stand_in in trackers.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    known = set(sys.modules)
    try:
        assert carry_out(REPOSITORY / document, tmp_path) == snippets
    finally:
        for name in set(sys.modules) - known:
            if name.startswith("my_"):
                del sys.modules[name]
    if document == "docs/python.md":
        check_told(trackers["wandb"].calls, ["init", "log", "log", "finish"])
        expected = ["start_run", "log_params", "log_metrics", "log_metrics", "log_artifact"]
        check_told(trackers["mlflow"].calls, [*expected, "end_run"])


class StandIn:
    """In place of a tracker's package, and of the run that it gives: takes down what is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., StandIn]:
        def call(*given: Any, **named: Any) -> StandIn:
            self.calls.append((name, given, named))
            return self

        return call


def check_told(calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]], names: list[str]) -> None:
    """In this order, with numbers alone, under names that both trackers take."""
    assert [name for name, *_ in calls] == names
    rows = [(given[0], named) for _, given, named in calls if "step" in named]
    assert [named["step"] for _, named in rows] == [45, 90]
    for row, _ in rows:
        assert {"train/loss", "test/error_pct", "similarity/block 0", "lr"} <= row.keys()
        assert all(isinstance(value, float) for value in row.values())
        assert all(re.fullmatch(r"[\w./ -]+", name) for name in row)


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


def test_commands_and_keys_that_documents_show_exist() -> None:
    others = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")
    documents = [*(REPOSITORY / name for name in others), *(REPOSITORY / "docs").rglob("*.md")]
    assert not {
        path.name: wrong
        for path in documents
        if (wrong := not_understood(path.read_text(encoding="utf-8")))
    }


def test_a_command_that_does_not_exist_is_found() -> None:
    shown = "```sh\npipeline-launch --sage 2 x.yaml && pipeline-lunch x.yaml\n```\n"
    shown += "```sh\npipeline-launch x.yaml --set loss.nme=pred --set data.root=d\n```\n"
    shown += "Or `pipeline-eval RUN --every-dept`, `python -m benchmarks.depth --netwrk digits`.\n"
    wrong = not_understood(shown)
    assert len(wrong) == 5
    assert "--sage" in wrong[0]
    assert wrong[2] == "pipeline-launch --set loss.nme"
    assert "--every-dept" in wrong[3]
    assert "--netwrk" in wrong[4]
