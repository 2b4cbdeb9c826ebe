"""Where results are kept; each begins with `launch.provenance.provenance`.

What can't be kept, or would take the place of something larger, is refused before anything is
measured; what is measured lies in results/NAME.partial.json until it is whole.
"""

from __future__ import annotations

import json
import os
import re
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from benchmarks.tables import README, with_section
from launch.gpus import devices
from pipeline.durable import replace_file
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESULTS = Path(__file__).parent / "results"
_WORD = re.compile(r"\w[\w-]*")
Given = ParamSpec("Given")


def told_in_a_line(main: Callable[Given, None]) -> Callable[Given, None]:
    """A command that says what a user did wrong as `click` does, with exit status 2."""

    @wraps(main)
    def call(*given: Given.args, **named: Given.kwargs) -> None:
        try:
            main(*given, **named)
        except ConfigError as error:
            raise click.UsageError(str(error)) from None

    return call


def machine(result: Mapping[str, Any], device: str) -> str:
    """What it was measured on: `device` is `cpu` or `cuda`."""
    return ", ".join(result["gpus"]) if device == "cuda" else str(result["processor"])


def device_named(name: str) -> str:
    """`cpu`, or a CUDA device that is there: `cuda:0`.

    Raises:
        ConfigError: for any other.
    """
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or not number.isdecimal()):
        raise ConfigError(f"--device {name}: expected cpu, or cuda:0, cuda:1, …")
    return devices("cpu" if name == "cpu" else number)[0]


def check_can_be_kept(name: str, *, whole: bool, table: bool = True) -> None:
    """Asked before anything is measured.

    Args:
        whole: whether all is measured that goes by this name; a part takes no whole's place.
        table: whether there will be one, in benchmarks/README.md.

    Raises:
        ConfigError: where a result of this name could not be kept.
    """
    if not _WORD.fullmatch(name):
        raise ConfigError(f"--name {name}: expected a plain word, as {name.strip('./') or 'mine'}")
    path = RESULTS / f"{name}.json"
    if not whole and path.exists():
        raise ConfigError(
            f"{path} holds more than would be measured now: keep this under a name of its own, "
            "with --name, or remove that file"
        )
    _check_writable(path.parent)
    if table:
        with_section(README.read_text(encoding="utf-8"), name, "")


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: can't be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder}: results can't be written there; change its permissions")


def keep_so_far(name: str, result: dict[str, Any]) -> None:
    """What was measured until now, as results/<name>.partial.json."""
    replace_file(_partial(name), _bytes(result))


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Keep a whole result as results/<name>.json."""
    path = RESULTS / f"{name}.json"
    RESULTS.mkdir(exist_ok=True)
    replace_file(path, _bytes(result))
    _partial(name).unlink(missing_ok=True)
    return path


def read_result(name: str) -> dict[str, Any]:
    """A result that was kept.

    Raises:
        ConfigError: where none was.
    """
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such result; measure it, or give another --name")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _partial(name: str) -> Path:
    return RESULTS / f"{name}.partial.json"


def _bytes(result: dict[str, Any]) -> bytes:
    return (json.dumps(result, indent=1) + "\n").encode()
