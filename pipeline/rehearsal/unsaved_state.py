"""What a user's modules hold beside their parameters and buffers: attributes, and the values of
their classes and of the files in which these are written.

None of it is part of a block's state. So it may change only in ways that don't matter: what a
network made anew, which has the same state, would hold after the same step as well.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pipeline.rehearsal.fingerprints import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_DEEPEST = 5
_MOST = 20_000
"""Values that are looked at; a table of words is no state."""
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, count)
_OF_MODULES = frozenset(vars(nn.Module()))
_OTHERS = ("torch", "numpy")
"""Whose classes hold no state of a user's."""


def attributes(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """What the modules and all within them hold themselves, by name."""
    look = _Look()
    for prefix, module in modules.items():
        for name, own in module.named_modules(prefix=prefix):
            look.at_all(name, _own(own))
    return look.seen


def shared_values(modules: Iterable[nn.Module]) -> dict[str, str]:
    """What their classes hold, and the files in which these are written, by name."""
    look = _Look()
    modules = list(modules)
    for kind in _classes(modules):
        look.at_all(f"{kind.__module__}.{kind.__qualname__}", vars(kind))
    for name in files_of(modules):
        look.at_all(name, vars(sys.modules[name]))
    return look.seen


def files_of(modules: Iterable[nn.Module]) -> list[str]:
    """The Python modules in which a user has written the classes of these."""
    names = {kind.__module__ for kind in _classes(modules)}
    return sorted(name for name in names if name in sys.modules)


def _classes(modules: Iterable[nn.Module]) -> list[type]:
    found = {kind for each in modules for own in each.modules() for kind in type(own).__mro__}
    users = (kind for kind in found if _is_users(kind.__module__))
    return sorted(users, key=lambda kind: (kind.__module__, kind.__qualname__))


def _is_users(module: str) -> bool:
    root = module.partition(".")[0]
    return root not in _OTHERS and root not in sys.stdlib_module_names


class _Look:
    """`seen`: what was found, as text that tells equal from unequal."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self._above: set[int] = set()

    def at_all(self, name: str, held: Mapping[str, Any]) -> None:
        for key, value in list(held.items()):
            if not key.startswith("__"):
                self._at(f"{name}.{key}", value, 0)

    def _at(self, name: str, value: Any, depth: int) -> None:
        if len(self.seen) >= _MOST or depth > _DEEPEST or id(value) in self._above:
            return
        told = _told(value)
        if told is not None:
            self.seen[name] = told
            return
        self._above.add(id(value))
        for key, inner in _within(value):
            self._at(f"{name}{key}", inner, depth + 1)
        self._above.discard(id(value))


def _told(value: Any) -> str | None:
    """None of what is looked into instead, or not at all."""
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, torch.Tensor):
        return f"tensor {digest(value)}" if value.layout == torch.strided else None
    if isinstance(value, np.ndarray):
        return f"array {value.tobytes()!r}" if value.dtype != object else None
    if isinstance(value, torch.Generator):
        return f"generator {digest(value.get_state())}"
    if isinstance(value, np.random.Generator):
        return f"generator {value.bit_generator.state!r}"
    if isinstance(value, np.random.RandomState):
        return f"generator {value.get_state()!r}"
    if isinstance(value, random.Random):
        return f"generator {value.getstate()!r}"
    if isinstance(value, set | frozenset):
        return f"set {sorted(map(repr, value))!r}"
    return None


def _within(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield "", len(value)
        yield from ((f"[{str(key)[:40]!r}]", inner) for key, inner in list(value.items()))
    elif isinstance(value, list | tuple | deque):
        yield "", len(value)
        yield from ((f"[{at}]", inner) for at, inner in enumerate(list(value)))
    elif isinstance(value, nn.Module):  # one that is kept from the network, or of another block
        for key in ("_parameters", "_buffers", "_modules"):
            yield from ((f".{name}", inner) for name, inner in vars(value)[key].items())
        yield from ((f".{name}", inner) for name, inner in _own(value).items())
    elif _is_users(type(value).__module__):
        yield from ((f".{key}", inner) for key, inner in getattr(value, "__dict__", {}).items())


def _own(module: nn.Module) -> dict[str, Any]:
    """Its attributes, but for what every module has."""
    return {key: value for key, value in vars(module).items() if key not in _OF_MODULES}
