"""Message <-> bytes: msgpack maps, checked field by field. The only file that imports msgpack.

A message is a map of its class name and its fields; a nested class is a map of the same kind.
A field may be a tree of plain values, as a configuration is: maps by text, lists, text, numbers.
Nothing is executed: a name that is not in the table, a missing or unknown field or a value of
another type is a `ProtocolError`, and sizes are bounded before anything is built. `tests/fuzz`
looks for bytes of which this is not true.
"""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import count
from typing import Any, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

import msgpack

from pipeline.data import facts
from pipeline.errors import ProtocolError
from pipeline.protocol import addresses, messages
from pipeline.protocol.messages import Message
from pipeline.schedule import items, reports

MAX_HEADER_BYTES = 1 << 22
MAX_ITEMS = 1 << 15
"""Of one list in a message: more than the blocks of a network, and read in no time; and of the
values of a tree: more than a file of YAML may have."""
MAX_DEPTH = 32
"""Of a tree: `model.kwargs` may have 16 lists or mappings in each other."""
_PLAIN = (type(None), bool, int, float, str)

_CLASSES: dict[str, type] = {
    name: value
    for module in (addresses, facts, items, messages, reports)
    for name, value in vars(module).items()
    if is_dataclass(value) and isinstance(value, type)
}
_MESSAGES: tuple[type, ...] = get_args(Message)


def encode(message: Message) -> bytes:
    """The bytes of a message's header frame."""
    packed: bytes = msgpack.packb(_plain(message), use_bin_type=True)
    return packed


def decode(data: bytes | memoryview) -> Message:
    """The message in a header frame.

    Raises:
        ProtocolError: where the bytes are not exactly one well-formed message.
    """
    if len(data) > MAX_HEADER_BYTES:
        raise ProtocolError(f"header of {len(data)} bytes: at most {MAX_HEADER_BYTES} are read")
    try:
        tree = msgpack.unpackb(data, raw=False, strict_map_key=True, max_array_len=MAX_ITEMS)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"not a msgpack header: {error!r:.100}") from None
    message = _restore_class(tree)
    if not isinstance(message, _MESSAGES):
        raise ProtocolError(f"{type(message).__name__} is no message of its own")
    return cast("Message", message)


def _plain(value: Any) -> Any:
    if type(value) is tuple:
        return [_plain(item) for item in value]
    kind: Any = type(value)
    names = _names(kind)
    if names is None:
        return value
    return {"type": kind.__name__, **{name: _plain(getattr(value, name)) for name in names}}


@cache
def _names(kind: type) -> tuple[str, ...] | None:
    """Of the fields of a class that travels; None for a value that does as it is."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else None


def _restore_class(tree: Any) -> Any:
    if not isinstance(tree, dict) or not isinstance(tree.get("type"), str):
        raise ProtocolError("expected a map with a type")
    kind = _CLASSES.get(tree["type"])
    if kind is None:
        raise ProtocolError(f"unknown message type {tree['type'][:40]!r}")
    hints = _hints(kind)
    if tree.keys() != {"type", *hints}:
        odd = sorted(str(key)[:40] for key in tree.keys() ^ {"type", *hints})
        raise ProtocolError(f"{kind.__name__}: missing or unknown fields {odd[:5]}")
    return kind(**{name: _restore(kind, name, hints[name], tree[name]) for name in hints})


def _restore(kind: type, name: str, hint: Any, value: Any) -> Any:
    for arm in _arms(hint):
        if type(value) is not arm.plain:
            if arm.plain is float and type(value) is int:
                return float(value)
        elif arm.plain is list:
            return tuple([_restore(kind, name, arm.inner, item) for item in value])
        elif arm.plain is not dict:
            return value
        elif arm.inner is None:
            _check_tree(f"{kind.__name__}.{name}", value)
            return value
        elif value.get("type") == arm.inner:
            return _restore_class(value)
    raise ProtocolError(f"{kind.__name__}.{name}: {_brief(value)} is not a {hint}")


def _check_tree(where: str, tree: dict[str, Any]) -> None:
    waiting: list[tuple[Any, int]] = [(tree, 1)]
    for seen in count(1):
        if not waiting:
            return
        value, depth = waiting.pop()
        if seen > MAX_ITEMS or depth > MAX_DEPTH:
            raise ProtocolError(
                f"{where}: more than {MAX_ITEMS} values, or {MAX_DEPTH} of them in each other"
            )
        if type(value) is dict:
            waiting += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif type(value) is list:
            waiting += [(inner, depth + 1) for inner in value]
        elif type(value) not in _PLAIN:
            raise ProtocolError(f"{where}: {type(value).__name__} is no plain value")


def _brief(value: Any) -> str:
    # a list or a map only by its type: it may be nested too deep to be printed
    return repr(value)[:40] if type(value) in (str, int, float, bool) else type(value).__name__


class _Arm(NamedTuple):
    """One of the types that a field may have. `plain`: the type that msgpack makes of it; `inner`:
    of a list, the type of its items; of a map, the name of its class, None for a tree."""

    plain: Any
    inner: Any = None


@cache
def _arms(hint: Any) -> tuple[_Arm, ...]:
    united = get_origin(hint) in (Union, types.UnionType)
    return tuple(map(_arm, get_args(hint) if united else (hint,)))


def _arm(hint: Any) -> _Arm:
    if get_origin(hint) is tuple:
        return _Arm(list, get_args(hint)[0])
    if get_origin(hint) is dict:
        return _Arm(dict)
    return _Arm(dict, getattr(hint, "__name__", "")) if is_dataclass(hint) else _Arm(hint)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
