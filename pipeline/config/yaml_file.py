"""Files that people write, as plain values: YAML and JSON, read within bounds.

Bytes are bounded before they are read, time where a file is a pipe.
"""

from __future__ import annotations

import json
import os
from select import select
from time import monotonic
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import brief
from pipeline.config.yaml_text import (
    MOST_NESTED,
    MOST_YAML_BYTES,
    TOO_DEEP,
    Lines,
    at_most,
    parsed,
)
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_MOST_JSON_BYTES = 1 << 22
"""A plan.json of a thousand blocks is a tenth of it."""
_PIPE_TIMEOUT_S = 10.0
"""For what comes through a pipe, as `<(…)` of a shell."""


def load_tree(path: Path) -> Any:
    """A YAML file, or a JSON file, as plain values; numbers as in a config.

    Raises:
        ConfigError: where it can't be read, with line and column for a syntax error.
    """
    return load_lines(path)[0]


def load_lines(path: Path) -> tuple[Any, Lines]:
    """As `load_tree`, and in which lines of the file the values stand."""
    if path.suffix == ".json":
        text = _read(path, _MOST_JSON_BYTES)
        return _parsed_json(text, path), Lines(text)
    text = _read(path, MOST_YAML_BYTES)
    return parsed(text, str(path)), Lines(text)


def load_words(path: Path) -> Any:
    """A YAML file whose scalars are left as text: 0.80 stays 0.80.

    Raises:
        ConfigError: where it can't be read, with line and column for a syntax error.
    """
    return parsed(_read(path, MOST_YAML_BYTES), str(path), words=True)


def _parsed_json(text: str, path: Path) -> Any:
    """YAML is nearly, but not quite, a superset: tabs may indent JSON."""
    try:
        tree = json.loads(
            text, object_pairs_hook=_object_without_repeats, parse_constant=_no_constant
        )
        _check_nesting(tree)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise ConfigError(f"{where}: JSON syntax: {error.msg}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: JSON: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: JSON: {TOO_DEEP}") from None
    return tree


def _check_nesting(tree: Any) -> None:
    level = [tree] if isinstance(tree, list | dict) else []
    for _ in range(MOST_NESTED):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for part in inner for one in part if isinstance(one, list | dict)]
        if not level:
            return
    raise ValueError(TOO_DEEP)


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {brief(key)} is given twice")
        found[key] = value
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number that JSON has")


def _read(path: Path, most: int) -> str:
    try:
        data = _read_bytes(path, most)
        return data.decode("utf-8-sig")  # a byte order mark, as editors on Windows write it
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        configs = sorted(path.glob("*.yaml"))  # a run's folder has its own
        example = f", as {configs[0]}" if configs else ""
        raise ConfigError(f"{path}: is a folder: name a file in it{example}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: can't be read as text: {error}; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read as text: {error}") from None


def _read_bytes(path: Path, most: int) -> bytes:
    """Opened without waiting, as for the writer of a pipe; its bytes have to come in time."""
    found, until = bytearray(), monotonic() + _PIPE_TIMEOUT_S

    def without_waiting(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NONBLOCK)

    with open(path, "rb", buffering=0, opener=without_waiting) as file:
        while len(found) <= most:
            if not select([file], [], [], max(0.0, until - monotonic()))[0]:
                raise ConfigError(
                    f"{path}: no file, and nothing more came out of it for "
                    f"{_PIPE_TIMEOUT_S:.0f} s; name a file"
                )
            some = file.read(most + 1 - len(found))
            if some == b"":
                return bytes(found)
            found += some or b""
    raise ConfigError(f"{path}: more than {most:,} bytes; {at_most(most)}")
