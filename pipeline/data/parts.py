"""The examples of one part of a data set, training or test, by their place in it.

    Arrays     held in memory                  Subset     some examples of another part
    ImageFiles (image_folder.py)               decoded as they are needed

Legend of shapes: N examples of the part, n asked for.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from pipeline.data.class_limited import share_of_every_class

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Indices: TypeAlias = NDArray[np.int64]
    Pair: TypeAlias = tuple[NDArray[Any], NDArray[Any]]

_HASHED_AT_ONCE = 1024
_VALIDATION = 1
"""Seed of what is held back, so that it does not repeat the draws of a limit."""


class Part(Protocol):
    """Examples by their place."""

    targets: NDArray[Any]
    """(N, *target_shape), int64 or float32."""

    def __len__(self) -> int:
        """How many examples there are: N of the shapes above."""

    def take(self, indices: Indices, epoch: int | None) -> Pair:
        """Examples (n, *shape) and targets (n, *target_shape) at `indices` (n,).

        Args:
            epoch: of training, in which what is random may differ; None: in a test.
        """

    def digest(self, chosen: Indices | None = None) -> str:
        """SHA-256 of what the examples hold, or those that are chosen."""


class Arrays:
    """Examples held in memory: (N, *shape), with targets (N, *target_shape), the first `limit`.

    `beside`: what belongs to them, and is to change their digest.
    """

    def __init__(
        self, x: NDArray[Any], y: NDArray[Any], limit: int | None = None, beside: str = ""
    ) -> None:
        self._x, self.targets, self._beside = x[:limit], y[:limit], beside

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Indices, epoch: int | None) -> Pair:
        return self._x[indices], self.targets[indices]

    def digest(self, chosen: Indices | None = None) -> str:
        if chosen is None:
            return self._digest(self._x.shape, [self._x], self.targets)
        starts = range(0, len(chosen), _HASHED_AT_ONCE)
        # bit by bit: what is chosen may be too large to be copied whole
        pieces = (self._x[chosen[start : start + _HASHED_AT_ONCE]] for start in starts)
        return self._digest((len(chosen), *self._x.shape[1:]), pieces, self.targets[chosen])

    def _digest(
        self, shape: tuple[int, ...], pieces: Iterable[NDArray[Any]], targets: NDArray[Any]
    ) -> str:
        whole = sha256(f"{shape}{self._beside}".encode())
        for piece in (*pieces, targets):
            if piece.size:  # a view of nothing can't be cast
                whole.update(np.ascontiguousarray(piece).data.cast("B"))
        return whole.hexdigest()


class Subset:
    """The examples of another part at the indices `chosen` (n,), in that order."""

    def __init__(self, whole: Part, chosen: Indices) -> None:
        self._whole, self._chosen = whole, chosen
        self.targets = whole.targets[chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def take(self, indices: Indices, epoch: int | None) -> Pair:
        return self._whole.take(self._chosen[indices], epoch)

    def digest(self, chosen: Indices | None = None) -> str:
        return self._whole.digest(self._chosen if chosen is None else self._chosen[chosen])


def sampled(part: Part, limit: int | None) -> Part:
    """At most `limit` examples, of every class its share."""
    if limit is None or limit >= len(part):
        return part
    return Subset(part, _share(part, limit))


def without_validation(part: Part, held_back: int) -> tuple[Part, Part]:
    """What is trained on, and the `held_back` examples that are tested on, of every class its
    share; of a class with one example that is trained on."""
    kept = _share(part, len(part) - held_back, _VALIDATION)
    others = np.setdiff1d(np.arange(len(part)), kept)
    return Subset(part, kept), Subset(part, others)


def _share(part: Part, n: int, seed: int = 0) -> Indices:
    labels = part.targets
    if labels.ndim > 1 or labels.dtype.kind != "i":  # not one class each: any are as good
        labels = np.zeros(len(part), dtype=np.int64)
    return share_of_every_class(labels, n, int(labels.max()) + 1, seed)
