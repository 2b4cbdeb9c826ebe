"""Whose commit a run names: this program's, or none."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

from launch.machine import provenance as module
from launch.machine.provenance import _found_commit, is_provenance, provenance, start_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def git(folder: Path, *words: str) -> str:
    author = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    command = ["git", *author, *words]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def a_repository(folder: Path, project: str) -> str:
    """One with a package `launch`; its commit."""
    (folder / "launch").mkdir(parents=True)
    (folder / "launch/__init__.py").write_text("")
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "begin")
    return git(folder, "rev-parse", "--short", "HEAD")


def test_a_clone_has_a_commit_and_changes(tmp_path: Path) -> None:
    commit = a_repository(tmp_path / "clone", "local-loss-pipeline")
    assert _found_commit(tmp_path / "clone") == (commit, False)
    _found_commit.cache_clear()
    (tmp_path / "clone/launch/__init__.py").write_text("changed")
    assert _found_commit(tmp_path / "clone") == (commit, True)


def test_another_repository_is_not_named(tmp_path: Path) -> None:
    """A copy may have been put into it, or be installed somewhere below it."""
    a_repository(tmp_path / "theirs", "their-project")
    assert _found_commit(tmp_path / "theirs") == ("", False)
    inside = tmp_path / "theirs/.venv/site-packages"
    (inside / "launch").mkdir(parents=True)
    (inside / "pyproject.toml").write_text('name = "local-loss-pipeline"\n')
    assert _found_commit(inside) == ("", False)


def test_a_repository_that_gits_variables_name_is_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are set within its hooks."""
    commit = a_repository(tmp_path / "clone", "local-loss-pipeline")
    a_repository(tmp_path / "theirs", "their-project")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs/.git"))
    assert _found_commit(tmp_path / "clone") == (commit, False)


def test_git_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_repository(tmp_path / "clone", "local-loss-pipeline")

    def hangs(*given: Any, timeout: float, **rest: Any) -> None:
        raise subprocess.TimeoutExpired("git", timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert _found_commit(tmp_path / "clone") == ("", False)


def test_nothing_of_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_found_commit", lambda root: ("0c1cfec", False))
    monkeypatch.setenv("API_KEY", "a-secret")
    start = start_of("pipeline-launch config.yaml", 7)
    assert is_provenance(start)
    assert (start["command"], start["after_step"]) == ("pipeline-launch config.yaml", 7)
    assert start["commit"] == "0c1cfec"
    assert "a-secret" not in str(start)
    assert "host" not in provenance("of a kept result, which others read")
