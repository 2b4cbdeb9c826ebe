"""What the commands' options have in common, and how they tell what a user did wrong."""

from __future__ import annotations

import shlex
import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from launch.command import NumberRange
from launch.machine.gpus import visible_gpus
from launch.machine.provenance import provenance
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

Given = ParamSpec("Given")
SECONDS = NumberRange(0.0, min_open=True)
"""The type of an option that says for how long something is measured."""


def with_usage_errors(main: Callable[Given, None]) -> Callable[Given, None]:
    """A command that says what a user did wrong as `click` does, with exit status 2."""

    @wraps(main)
    def call(*given: Given.args, **named: Given.kwargs) -> None:
        try:
            main(*given, **named)
        except ConfigError as error:
            raise click.UsageError(str(error)) from None

    return call


def provenance_now() -> dict[str, Any]:
    """With which a result begins that is measured by the command now running."""
    module, *words = sys.argv
    return provenance(shlex.join(["python", "-m", f"benchmarks.{Path(module).stem}", *words]))


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


def counts_of(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    """`1,2,3` as numbers, for an option of numbers of stages."""
    try:
        counts = tuple(map(int, text.split(",")))
    except ValueError:
        counts = ()
    if min(counts, default=0) < 1:
        raise click.BadParameter(f"{text!r}: use numbers of stages, as 1,2,3")
    return counts
