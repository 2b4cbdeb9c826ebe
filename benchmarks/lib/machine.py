"""Where results are kept; each begins with `launch.machine.provenance.provenance`.

What can't be kept, or would take the place of something larger, is refused before anything is
measured; what is measured lies in results/NAME.partial.json until it is whole.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias

import click

from benchmarks.lib.tables import README, with_section
from launch.machine.gpus import visible_gpus
from pipeline.errors import ConfigError
from pipeline.storage.atomic import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESULTS = Path(__file__).parents[1] / "results"
_WORD = re.compile(r"\w[\w-]*")
Given = ParamSpec("Given")
Extent: TypeAlias = "Mapping[str, int]"
"""How often a benchmark measures each thing: `{"64 MiB": 7}`."""


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
    if name != "cpu" and int(number) >= (there := visible_gpus()):
        raise ConfigError(
            f"{name}: this machine has no CUDA device {number} ({there} visible); use the CPU, or "
            "one that is there"
        )
    return name


def check_can_be_kept(
    name: str,
    benchmark: str,
    extent: Extent,
    extent_of: Callable[[dict[str, Any]], Extent],
    *,
    table: bool = True,
) -> None:
    """Asked before anything is measured.

    Args:
        benchmark: its module, as `links`.
        extent: of what would be measured; less takes the place of no more.
        extent_of: that of what was kept.
        table: whether there will be one, in benchmarks/README.md.

    Raises:
        ConfigError: where a result of this name could not be kept.
    """
    check_name(name)
    if _path(name).exists():
        _check_is_no_less(name, extent, extent_of(read_result(name, benchmark)))
    make_writable(RESULTS)
    if table:
        with_section(README.read_text(encoding="utf-8"), name, "")


def check_name(name: str, given: str = "--name") -> None:
    """Of a result.

    Args:
        given: where a user gave it.

    Raises:
        ConfigError: where it is no plain word: it is that of files, and of a section.
    """
    if not _WORD.fullmatch(name):
        told = f"{given} {shlex.quote(name)}"
        raise ConfigError(f"{told}: expected a plain word, as {_plain_word(name)}")


def check_is_of_a_run(name: str) -> None:
    """A result that `benchmarks.keep` may replace.

    Raises:
        ConfigError: where it is a benchmark's own.
    """
    if not _path(name).is_file():
        return
    words = str(json.loads(_path(name).read_text(encoding="utf-8")).get("command")).split()
    if owner := next((word for word in words if word.startswith("benchmarks.")), None):
        raise ConfigError(f"{_path(name)} is of {owner}; give another NAME")


def _plain_word(name: str) -> str:
    """Of a path the last part, of a file without `.json`."""
    last = Path(name).name.removesuffix(".json")
    return re.sub(r"[^\w-]+", "_", last).strip("_-") or "mine"


def _check_is_no_less(name: str, extent: Extent, kept: Extent) -> None:
    for thing, times in kept.items():
        if (now := extent.get(thing, 0)) < times:
            raise ConfigError(
                f"{_path(name)} holds more than would be measured now ({thing}: {times} × there, "
                f"{now} × now): keep this under a name of its own, with --name, or remove that file"
            )


def make_writable(folder: Path) -> None:
    """Make a folder, unless it is there.

    Raises:
        ConfigError: where that can't be, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: can't be made: {error.strerror}; name another") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder}: can't be written to; change its permissions")


def keep_so_far(name: str, result: dict[str, Any]) -> None:
    """What was measured until now, as results/<name>.partial.json."""
    replace_file(_partial(name), _bytes(result))


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Keep a whole result as results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    replace_file(_path(name), _bytes(result))
    _partial(name).unlink(missing_ok=True)
    return _path(name)


def read_result(name: str, benchmark: str) -> dict[str, Any]:
    """A result that this benchmark kept.

    Raises:
        ConfigError: where there is none, or that of another one.
    """
    check_name(name)
    path = _path(name)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such result; measure it, or give another --name")
    result = dict(json.loads(path.read_text(encoding="utf-8")))
    words = str(result.get("command")).split()
    if f"benchmarks.{benchmark}" not in words:
        raise ConfigError(f"{path} is not of benchmarks.{benchmark}; give another --name")
    return result


def _path(name: str) -> Path:
    return RESULTS / f"{name}.json"


def _partial(name: str) -> Path:
    return RESULTS / f"{name}.partial.json"


def _bytes(result: dict[str, Any]) -> bytes:
    return (json.dumps(result, indent=1) + "\n").encode()
