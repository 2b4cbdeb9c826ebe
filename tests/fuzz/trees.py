"""Trees of plain values, as msgpack and JSON hold them: where they can be changed, and how."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

Place: TypeAlias = "tuple[Any, ...]"

WRONG = [None, True, -1, 1.5, "text", b"bytes", [], {}, [None], {"type": "Bye"}, {"type": "Tally"}]


def as_tree(value: Any) -> Any:
    """A message as the codec packs it."""
    if is_dataclass(value):
        named = {field.name: as_tree(getattr(value, field.name)) for field in fields(value)}
        return {"type": type(value).__name__, **named}
    return [as_tree(item) for item in value] if isinstance(value, tuple) else value


def places(tree: Any, path: Place = ()) -> list[Place]:
    """Where in a tree a value can be replaced."""
    inner: Any = tree.items() if isinstance(tree, dict) else ()
    inner = enumerate(tree) if isinstance(tree, list) else inner
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def at(tree: Any, path: Place) -> Any:
    """What is there."""
    return at(tree[path[0]], path[1:]) if path else tree


def replaced(tree: Any, path: Place, value: Any) -> Any:
    """A copy of the tree with another value there."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy
