"""What `model.kwargs` may hold: values that YAML, JSON and msgpack hold alike, and not too many,
so that a run's own config.yaml can always be read again."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import YesOrNo, brief

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_CHARACTERS = 1 << 15
_MOST_NESTED = 16
_NUMBER_CHARACTERS = 8
_SURROGATE = re.compile("[\ud800-\udfff]")


def checked_arguments(tree: Any) -> Any:
    """Arguments of a factory as they are.

    Raises:
        ValueError: for a number that is not finite or needs more than 64 bits, for text that UTF-8
            has not, for yes or no, and for too many, naming the dotted key.
    """
    left = _MOST_CHARACTERS
    for key, value, level in _values(tree):
        _check_value(key, value)
        left -= len(value) if isinstance(value, str) else _NUMBER_CHARACTERS
        if left < 0 or level > _MOST_NESTED:
            raise ValueError(
                f"model.kwargs: at most {_MOST_CHARACTERS:,} characters ({_NUMBER_CHARACTERS} for "
                f"a number), and {_MOST_NESTED} lists or mappings in each other, can be given to "
                "a factory: let it read a file of its own"
            )
    return tree


def _values(tree: Any) -> Iterator[tuple[str, Any, int]]:
    """Keys and values below `tree`, with the dotted key and how deep they are."""
    waiting = [("model.kwargs", tree, 0)]
    while waiting:
        where, value, level = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{where}.{str(key)[:60]}", v, level + 1) for key, v in value.items()]
            yield from ((where, key, level) for key in value)
        elif isinstance(value, list | tuple):
            waiting += [(f"{where}.{number}", v, level + 1) for number, v in enumerate(value)]
        yield where, value, level


def _check_value(key: str, value: Any) -> None:
    if isinstance(value, YesOrNo):
        meant = brief(value.meant)
        raise ValueError(
            f"{key}: {value} is {meant} to some and a text to others: write {meant}, or "
            f"'{value}' in quotes"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key}: {value} is not allowed: input should be a finite number")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError(
            f"{key}: {brief(value)} is not allowed: input should be a number of 64 bits"
        )
    if isinstance(value, str) and _SURROGATE.search(value):
        raise ValueError(f"{key}: {brief(value)} is not allowed: input should be text in UTF-8")
