"""Data of a test's own, as a user's `data.factory` gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FACTORY = f"{__name__}:made"
DATA: dict[str, Callable[..., Any]] = {}


def made(data: str, **given: Any) -> Any:
    """The `data.factory` of all tests."""
    return DATA[data](**given)


def floats(n: int = 40, shape: tuple[int, ...] = (2, 6, 6), seed: int = 1) -> NDArray[np.float32]:
    draws = np.random.default_rng(seed)
    return 3 + 2 * draws.standard_normal((n, *shape), dtype=np.float32)


def labels(n: int = 40, classes: int = 4) -> NDArray[np.int64]:
    return np.arange(n) % classes


def shifted(n: int = 40, change: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Float images of 4 classes, each brighter than the one before; the first eight are changed."""
    y = labels(n)
    x = floats(n) + 0.5 * y[:, None, None, None].astype(np.float32)
    x[:8] += change
    return x, y


DATA["shifted"] = shifted


class Rows:
    """A map-style Dataset without torch, of the pairs in a list."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]
