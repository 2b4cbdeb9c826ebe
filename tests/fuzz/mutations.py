"""Changes that leave an input well formed: without them nearly all that a fuzzer makes is refused
at the first byte."""

from __future__ import annotations

import json
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any

import msgpack

from fuzz.examples import EXAMPLES
from fuzz.targets import SEPARATOR
from fuzz.trees import WRONG, as_tree, at, places, replaced

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBERS = [0, 5, 64, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), float("nan"), 1e308]
_TEXTS = ["", "\0", "../../x", "/etc/hostname", "@0", "F8_E8M0", "F4", "C64", "float64", "bfloat16"]
_NO_TREE = (ValueError, TypeError, LookupError, RecursionError, OverflowError)


def mutated(
    target: str, data: bytes, most: int, seed: int, otherwise: Callable[[bytes, int], bytes]
) -> bytes:
    """Another input, of at most `most` bytes; in half of the cases `otherwise` makes it, and
    always where the input is no tree."""
    draws = Random(seed)
    if draws.random() < 0.5:
        with suppress(*_NO_TREE, msgpack.exceptions.UnpackException):
            found = _TREES[target](data, draws)
            if len(found) <= most:
                return found
    return otherwise(data, most)


def _other_message(data: bytes, draws: Random) -> bytes:
    tree = msgpack.unpackb(data, raw=False)
    packed: bytes = msgpack.packb(_changed(tree, draws))
    return packed


def _other_checkpoint(data: bytes, draws: Random) -> bytes:
    parts = data.split(SEPARATOR)
    index = draws.randrange(len(parts))
    text, zero, tensors = parts[index].partition(b"\0")
    parts[index] = json.dumps(_changed(json.loads(text), draws)).encode() + zero + tensors
    return SEPARATOR.join(parts)


def _changed(tree: Any, draws: Random) -> Any:
    place = draws.choice(places(tree))
    there = at(tree, place)
    if isinstance(there, list | dict) and there and draws.random() < 0.3:
        return replaced(tree, place, _resized(there, draws))
    return replaced(tree, place, _value(tree, draws))


def _resized(there: Any, draws: Random) -> Any:
    if isinstance(there, list):
        return draws.choice([there[1:], there + there, there[:1] * 300])
    gone = draws.choice(sorted(there, key=repr))
    rest = {key: value for key, value in there.items() if key != gone}
    return draws.choice([rest, {**rest, "more": 0}])


def _value(tree: Any, draws: Random) -> Any:
    example = as_tree(draws.choice(EXAMPLES))
    elsewhere = [at(whole, draws.choice(places(whole))) for whole in (tree, example)]
    return draws.choice([*elsewhere, draws.choice([*WRONG, *_NUMBERS, *_TEXTS])])


_TREES: dict[str, Callable[[bytes, Random], bytes]] = {
    "codec": _other_message,
    "checkpoint": _other_checkpoint,
}
