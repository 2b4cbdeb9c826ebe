"""Paths as people give them: `~` and `~user` are home folders, also where no shell has replaced
them (`--run-dir=~/runs`, a value in a config)."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import ConfigError, Option


def path_text(what: str | Option, path: str | Path) -> str:
    """The path as text; `what` as for `expanded`.

    Raises:
        ConfigError: where it is no path, or empty, as a variable is that was not set.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(what, f" {path!r}: is no path: give one, as text or a pathlib.Path")
    text = os.fspath(path)
    if not text:
        raise ConfigError(what, " '': is empty: give a path, or . for the current folder")
    return text


def expanded(what: str | Option, path: str | Path) -> Path:
    """The path, with the home folder that it begins with written out.

    Args:
        what: names the path in an error, as `--run-dir` or `data.root`.

    Raises:
        ConfigError: as `path_text`, and where it begins with a home folder that nobody knows.
    """
    text = os.path.expanduser(path_text(what, path))
    if "\0" in text:
        raise ConfigError(what, f" {text!r}: holds a null byte, which no path has")
    if not text.startswith("~"):
        return Path(text)
    user = text.partition("/")[0]
    unknown = "this user has no home folder" if user == "~" else f"there is no user {user[1:]}"
    cure = f"write the folder out, or ./{path} for one here"
    raise ConfigError(what, f" {path}: {unknown}; {cure}")


def file_named(what: str | Option, path: str | Path) -> Path:
    """The path of a file that is to be written; `what` as for `expanded`.

    Raises:
        ConfigError: where it is a folder, a device or the like, or there is no folder for it; as
            `expanded`.
    """
    found = expanded(what, path)
    if found.is_dir():
        raise ConfigError(what, f" {found}: is a folder: name a file in it")
    if found.is_symlink():  # what it leads to is written, and it stays
        found = found.resolve()
    if found.exists() and not found.is_file():
        raise ConfigError(what, f" {found}: is no file, but a device or the like: name a file")
    if not found.parent.is_dir():
        raise ConfigError(what, f" {found}: there is no folder {found.parent}: make it")
    return found


def check_free(what: Option, path: Path, *, overwrite: bool) -> None:
    """See that nothing is at a path that is to be written, or that it may be written over; `what`
    as for `expanded`.

    Raises:
        ConfigError: where something is there.
    """
    if path.exists() and not overwrite:
        again = Option("overwrite")
        raise ConfigError(what, f" {path}: is there already: name another, or give ", again)
