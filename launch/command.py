"""What all commands have: -h and -V, an exit status, what they say on stderr, what signals do to
them."""

from __future__ import annotations

import signal
import sys
import traceback
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from click.core import ParameterSource

from launch.display.streams import (
    end_output,
    settle_output,
    tolerate_streams,
    wait_for_no_reader,
)
from launch.engines.interrupts import INTERRUPTED, catch_interruptions, end_at_once_with
from pipeline.errors import ConfigError, PipelineError, StageFailedError
from pipeline.system.limits import cure_of, with_cure

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DONE, FAILED, WRONG_USAGE = 0, 1, 2
_ERROR = "error: "
"""Before what a command says on stderr of its failure."""


class NumberRange(click.FloatRange):
    """A number between bounds; never nan, which compares with neither, and never infinite."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """As of `click.FloatRange`."""
        found: float = super().convert(value, param, ctx)
        if not isfinite(found):
            self.fail(f"{value!r} is no number.", param, ctx)
        return found


class PathType(click.Path):
    """A path as Python has it; never an empty one, as a variable is that was not set."""

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """As of `click.Path`."""
        if value == "":
            self.fail("is empty: give a path, or . for the current folder", param, ctx)
        found: Path = super().convert(value, param, ctx)  # type: ignore[assignment]
        return found


def command(function: Callable[..., Any]) -> click.Command:
    """A function whose arguments are those of a command, made one."""
    made = click.command(context_settings={"help_option_names": ["-h", "--help"]})(function)
    made.params.append(
        click.Option(
            ["-V", "--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version, the commit in a clone, and PyTorch's, and exit.",
        )
    )
    return made


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from launch.machine.provenance import release

        click.echo(f"{context.info_name}, version {release()}")
        context.exit()


def options_given() -> list[str]:
    """The options that the command line of the present command has, in the order of its help."""
    context = click.get_current_context()
    return [
        each.opts[0]
        for each in context.command.params
        if isinstance(each, click.Option)
        and context.get_parameter_source(str(each.name)) is ParameterSource.COMMANDLINE
    ]


def run_command(body: Callable[[], int]) -> NoReturn:
    """Carry out a whole command, imports included, and exit with its status."""
    try:
        catch_interruptions()
        tolerate_streams()
        status = status_of(body)
    except KeyboardInterrupt:
        status = complain("interrupted", INTERRUPTED)
    with suppress(KeyboardInterrupt):
        end_at_once_with(status)
        end_output()
    sys.exit(status)


def status_of(body: Callable[[], int]) -> int:
    """The exit status of `body`; an error that it raises is said on stderr."""
    try:
        return body()
    except ConfigError as error:
        return complain(str(error), WRONG_USAGE)
    except StageFailedError as error:
        return complain(error.summary, FAILED, error.remote_traceback)
    except PipelineError as error:
        return complain(str(error), FAILED)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except Exception as error:  # the process boundary: a full disk, no memory, a bug
        bug = cure_of(error) is None
        return complain(with_cure(error), FAILED, traceback.format_exc() if bug else "")


def complaint_in(stderr: str, status: int) -> str:
    """Why a command of ours failed, in one line, by what it has written to stderr: its first line
    that says so, or the last one, as of a traceback."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    if status < 0 and not errors:  # what else was written need not be of this
        return f"ended by signal {-status} ({signal.strsignal(-status)})"
    return (errors or lines[-1:] or [f"exit status {status}"])[0]


def complain(text: str, status: int, remote_traceback: str = "") -> int:
    """Say on stderr what went wrong, after all that was printed before; returns `status`."""
    if status == INTERRUPTED:
        wait_for_no_reader()
    settle_output()
    print(f"{_ERROR}{text}" if status != INTERRUPTED else text, file=sys.stderr)
    if remote_traceback:
        print(remote_traceback.rstrip(), file=sys.stderr)
    return status
