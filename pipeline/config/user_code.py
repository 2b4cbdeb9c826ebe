"""Keys that name a user's own code, as `package.module:name`, and what that is called with."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pipeline.config.schema import (
    AfterValidator,
    BeforeValidator,
    Misfit,
    MisfitsError,
    YesOrNo,
    brief,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_CHARACTERS = 1 << 15
_MOST_NESTED = 16
_NUMBER_CHARACTERS = 8
_SURROGATE = re.compile("[\ud800-\udfff]")

WITH_KEYS_BELOW = frozenset(
    {"model.kwargs", "model.init_from", "loss.options", "optimizer.blocks", "data.kwargs"}
)
"""Keys that hold keys: `--set model.kwargs.width=64` reaches one of these."""


def arguments_of(key: str) -> BeforeValidator:
    """The rule for the value of `key`: what a user's own code is called with."""
    return BeforeValidator(partial(_checked_arguments, key))


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        raise ValueError(
            f"{brief(name)} is not allowed: input should be as package.module:function"
        )
    return name


ObjectName: TypeAlias = Annotated[str, AfterValidator(_checked_name)]
"""The name of a user's own function."""


def _checked_arguments(key: str, tree: Any) -> Any:
    """Arguments as they are: values that YAML, JSON and msgpack hold alike, and not too many, so
    that a run's own config.yaml can always be read again.

    Raises:
        MisfitsError: for a number that is not finite or needs more than 64 bits, for text that
            UTF-8 has not, for yes or no, and for too many, naming the dotted key.
    """
    left = _MOST_CHARACTERS
    for at, value, level in _values(key, tree):
        _check_value(at, value)
        left -= len(value) if isinstance(value, str) else _NUMBER_CHARACTERS
        if left < 0 or level > _MOST_NESTED:
            raise _misfit(
                key,
                f"at most {_MOST_CHARACTERS:,} characters ({_NUMBER_CHARACTERS} for a number), and "
                f"{_MOST_NESTED} lists or mappings in each other, can be given to your own code: "
                "let it read a file of its own",
            )
    return tree


def _values(key: str, tree: Any) -> Iterator[tuple[str, Any, int]]:
    """Keys and values below `tree`, with the dotted key and how deep they are."""
    waiting = [(key, tree, 0)]
    while waiting:
        where, value, level = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{where}.{str(name)[:60]}", v, level + 1) for name, v in value.items()]
            yield from ((where, name, level) for name in value)
        elif isinstance(value, list | tuple):
            waiting += [(f"{where}.{number}", v, level + 1) for number, v in enumerate(value)]
        yield where, value, level


def _check_value(key: str, value: Any) -> None:
    if isinstance(value, YesOrNo):
        meant = brief(value.meant)
        rule = f"{value} is {meant} to some and a text to others: write {meant}, or '{value}' in "
        raise _misfit(key, f"{rule}quotes")
    wanted = ""
    if isinstance(value, float) and not math.isfinite(value):
        wanted = "a finite number"
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        wanted = "a number of 64 bits"
    if isinstance(value, str) and _SURROGATE.search(value):
        wanted = "text in UTF-8"
    if wanted:
        raise _misfit(key, f"{brief(value)} is not allowed: input should be {wanted}")


def _misfit(key: str, rule: str) -> MisfitsError:
    return MisfitsError(Misfit(key, f": {rule}"))
