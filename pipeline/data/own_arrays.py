"""Arrays that a user gives, checked: which types and shapes examples and targets may have.

Legend of shapes: n examples; shape and target_shape of one example, without n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pipeline.config.model import MAX_UNITS
from pipeline.data.image_list import shortened
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"

_MOST_DIMENSIONS = 7
"""Of an example and of a target: a batch of them has one more, and 8 travel."""
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples (n, *shape) of uint8, float32 or int64, and targets (n, *target_shape) of int64 or
    float32."""

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.x)


def checked_inputs(x: Array, what: str, notes: list[str]) -> Array:
    """Examples (n, *shape), C-contiguous: uint8 and int64 as they are, floats as float32.

    Args:
        what: names them in errors and in the `notes` that are added.

    Raises:
        ConfigError: where there are none, of other types and shapes, and for numbers that are not
            finite, or negative token ids.
    """
    if not 2 <= x.ndim <= 1 + _MOST_DIMENSIONS or 0 in x.shape:
        cure = "; X.reshape(-1, 1) makes one feature of each number" if x.ndim == 1 else ""
        raise ConfigError(
            f"{what} has shape {x.shape}: (n, …) with at least one example, of 1 to "
            f"{_MOST_DIMENSIONS} dimensions, is needed{cure}"
        )
    if x.dtype.kind == "f":
        return _finite(x, what, notes)
    if x.dtype.kind == "i" and x.dtype.itemsize == 8:
        if x.min() < 0:
            raise ConfigError(
                f"{what} is {x.dtype}, which are token ids and count from 0, but holds {x.min()}: "
                "make it float32 if these are measurements"
            )
        return np.ascontiguousarray(x, dtype=np.int64)
    if x.dtype != np.uint8:
        raise ConfigError(
            f"{what} is {x.dtype}: give uint8 (bytes, as of images: 0 to 255), float32 "
            "(measurements) or int64 (token ids), as by X.astype(numpy.float32)"
        )
    _warn_of_channels(x.shape[1:], what, notes)
    return np.ascontiguousarray(x)


def _finite(numbers: Array, what: str, notes: list[str]) -> Array:
    """As float32.

    Raises:
        ConfigError: where some are not finite, or too large for that.
    """
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(numbers, dtype=np.float32)
    finite = np.isfinite(found)
    if not finite.all():
        first = np.unravel_index(int(np.argmin(finite)), found.shape)
        place = f" at {tuple(map(int, first[1:]))}" if len(first) > 1 else ""
        raise ConfigError(
            f"{what} has {found.size - int(finite.sum())} numbers that are NaN, infinite or too "
            f"large for float32, the first in example {int(first[0])}{place}: remove or replace "
            "them"
        )
    if numbers.dtype != np.float32:
        notes.append(f"{what} is {numbers.dtype}: trained on as float32")
    _warn_of_channels(found.shape[1:], what, notes)
    return found


def _warn_of_channels(shape: tuple[int, ...], what: str, notes: list[str]) -> None:
    if len(shape) == 3 and shape[2] in _CHANNELS and min(shape[:2]) > max(_CHANNELS):
        notes.append(
            f"{what} holds examples of shape {shape}, taken for {shape[0]} channels of {shape[1]} "
            f"× {shape[2]} pixels; if channels come last, give X.transpose(0, 3, 1, 2)"
        )


def checked_targets(y: Array, what: str, notes: list[str]) -> Array:
    """Targets (n, *target_shape), C-contiguous: whole numbers, which are classes, as int64, floats
    as float32.

    Raises:
        ConfigError: where there are none, for labels below 0 or absurdly high, and for numbers that
            are not finite.
    """
    if not 1 <= y.ndim <= 1 + _MOST_DIMENSIONS or 0 in y.shape:
        raise ConfigError(f"{what} has shape {y.shape}: (n,) or (n, …) is needed, n from 1")
    if y.dtype.kind == "f":
        return _finite(y, what, notes)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= MAX_UNITS:
        odd = low if low < 0 else high
        at = np.unravel_index(int(np.argmax(y == odd)), y.shape)
        raise ConfigError(
            f"{what} holds the label {odd} (example {int(at[0])}): whole numbers are classes, "
            f"which count from 0 to at most {MAX_UNITS - 1}; make numbers to predict float32"
        )
    return np.ascontiguousarray(y, dtype=np.int64)


def count_classes(y: Array, given: int | None) -> int:
    """How many classes there are in training; 0 where targets are numbers.

    Args:
        given: how many the user says there are.

    Raises:
        ConfigError: where labels are not 0 to n - 1, or there is one class.
    """
    if y.dtype != np.int64:
        if given is not None:
            raise ConfigError(f"{given} classes, but y of train holds numbers: give whole ones")
        return 0
    highest = int(y.max())
    if given is not None:
        if highest >= given:
            raise ConfigError(
                f"train: y holds the label {highest}, and there are {given} classes: label them "
                f"from 0 to {given - 1}"
            )
        return given
    if y.ndim == 1:
        _check_every_class(np.unique(y).tolist(), highest)
    return max(2, highest + 1)


def _check_every_class(present: list[int], highest: int) -> None:
    if len(present) == 1:
        raise ConfigError(
            f"train: all labels are {present[0]}: there must be at least 2 classes; give float32 "
            "targets for numbers to predict"
        )
    if len(present) <= highest:
        known = set(present)
        missing = [str(label) for label in range(highest) if label not in known]
        raise ConfigError(
            f"train: labels go from {present[0]} to {highest}, but none is {shortened(missing)}: "
            "labels of n classes are 0 to n - 1, as numpy.unique(y, return_inverse=True)[1] "
            "makes them; or say in classes how many there are"
        )


def check_alike(training: Examples, test: Examples, classes: int) -> None:
    """Refuse a test part of other types, shapes or classes than the training part's.

    Raises:
        ConfigError: naming what differs.
    """
    for what, one, other in (("X", training.x, test.x), ("y", training.y, test.y)):
        if (one.shape[1:], one.dtype) != (other.shape[1:], other.dtype):
            raise ConfigError(
                f"test: {what} is {other.dtype} of shape {other.shape[1:]} per example, that of "
                f"train {one.dtype} of shape {one.shape[1:]}: both must be alike"
            )
    if not classes:
        return
    if (highest := int(test.y.max())) >= classes:
        raise ConfigError(
            f"test: y holds the label {highest}, and train has the classes 0 to {classes - 1}: "
            "training must know every class"
        )
    if test.y.ndim == 1:
        unknown = np.setdiff1d(test.y, training.y).tolist()
        if unknown:
            raise ConfigError(
                f"test: no example of train has the label {shortened(map(str, unknown))}: training "
                "must know every class"
            )
