"""What a user names in a configuration as `package.module:name`: their own function or class."""

from __future__ import annotations

import importlib
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, one_line
from pipeline.system.children import no_process_left
from pipeline.system.given import given_object, in_callers_process, is_given
from pipeline.system.interpreter import look_here_last

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager


class NamedError(ConfigError):
    """What is wrong with a user's own code, which it names."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Makes every ConfigError inside one that begins with `what`: named once, however many of
    these there are around each other."""
    try:
        yield
    except NamedError:
        raise
    except ConfigError as error:
        raise NamedError(f"{what}: ", *error.said) from error


def named_object(named: str) -> Any:
    """The object `package.module:name`, whose module is imported; one that is not installed is
    looked for in the current folder, last. Or the one that was given in its place (`given.py`).

    Raises:
        ConfigError: where there is none, or its module fails.
    """
    if is_given(named):
        return given_object(named)
    module, _, name = named.partition(":")
    if not in_callers_process():  # whose path is its own
        look_here_last(module)
    try:
        with _no_process_left():
            found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{one_line(error)}; install it, or start from the folder that holds it"
        ) from error
    except Exception as error:  # whatever the user's module raises
        raise refused_by(error) from error
    except SystemExit as error:
        raise ConfigError(f"SystemExit: {error}") from error
    if not hasattr(found, name):
        raise ConfigError(
            f"{module} ({getattr(found, '__file__', 'of Python itself')}) has no {name}; a module "
            "of yours needs a name that no installed one has, which would go before it"
        )
    return getattr(found, name)


def called(function: Callable[..., Any], kwargs: Mapping[str, Any], *given: Any) -> Any:
    """What a user's function gives, called with `given` and, by name, `kwargs`.

    Raises:
        ConfigError: for whatever it raises, or a process that it leaves behind.
    """
    try:
        with _no_process_left():
            return function(*given, **kwargs)
    except SystemExit as error:
        raise ConfigError(f"SystemExit: {error}") from error
    except Exception as error:  # whatever the user's code raises
        raise refused_by(error) from error


def _no_process_left() -> AbstractContextManager[None]:
    return nullcontext() if in_callers_process() else no_process_left()


def refused_by(error: Exception) -> ConfigError:
    """What a user's code has raised, in one line."""
    return error if isinstance(error, ConfigError) else ConfigError(one_line(error))
