"""A user's own modules as an archive, and what a host makes of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from launch.engines.users_code import HERE, ON_PATH, UsersCode, unpack, users_code
from pipeline.system.sources import own_code

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("mynet", "beside", "ofpath", "ofpath.inner")


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`mynet` and `beside` of the current folder, and a package of the module path."""
    here, path = tmp_path / "work", tmp_path / "lib"
    (path / "ofpath").mkdir(parents=True)
    here.mkdir()
    (here / "mynet.py").write_text("import beside\nimport ofpath.inner\n")
    (here / "beside.py").write_text("x = 1\n")
    (here / "unused.py").write_text("x = 2\n")
    (path / "ofpath" / "__init__.py").write_text("")
    (path / "ofpath" / "inner.py").write_text("y = 2\n")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(here), str(path), *sys.path])
    __import__("mynet")
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("modules")
def test_modules_lie_on_a_host_as_they_lay_here(tmp_path: Path) -> None:
    code = users_code(own_code(["mynet:network", "ofpath.inner:y"]), b"objects")
    assert code.packed == b"objects"
    host = tmp_path / "host"
    unpack(code.modules, host)
    assert host.stat().st_mode & 0o777 == 0o700
    files = {path.relative_to(host).as_posix() for path in host.rglob("*.py")}
    assert files == {
        f"{HERE}/mynet.py",
        f"{HERE}/beside.py",
        f"{ON_PATH}/ofpath/__init__.py",
        f"{ON_PATH}/ofpath/inner.py",
    }
    assert (host / ON_PATH / "ofpath" / "inner.py").read_text() == "y = 2\n"


def test_who_has_no_code_of_their_own_sends_none() -> None:
    assert users_code((), b"") == UsersCode(b"", b"")
    assert "objects" not in repr(UsersCode(b"objects", b"archive"))
