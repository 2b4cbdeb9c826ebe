"""Paths as people give them: `~` and `~user` are home folders, also where no shell has replaced
them (`--run-dir=~/runs`, a value in a config)."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import ConfigError, Option


def expanded(what: str | Option, path: str | Path) -> Path:
    """The path, with the home folder that it begins with written out.

    Args:
        what: names the path in an error, as `--run-dir` or `data.root`.

    Raises:
        ConfigError: where it begins with a home folder that nobody knows.
    """
    text = os.path.expanduser(path)
    if not text.startswith("~"):
        return Path(text)
    user = text.partition("/")[0]
    unknown = "this user has no home folder" if user == "~" else f"there is no user {user[1:]}"
    cure = f"write the folder out, or ./{path} for one here"
    raise ConfigError(what, f" {path}: {unknown}; {cure}")
