"""Mean and standard deviation of training examples, where `data.normalise` is `measured`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.data.facts import DataFacts
    from pipeline.data.image_folder import Progress
    from pipeline.data.parts import Part

    Moments: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]

_MOST_MEASURED, _MEASURED_AT_ONCE = 10_000, 64


def measured(part: Part, facts: DataFacts, progress: Progress) -> Moments:
    """Mean and standard deviation of each channel of (C, H, W), or place of the last dimension.

    Of at most 10,000 examples, evenly spaced, as they are seen in a test. Bytes count from 0 to 1,
    are summed in whole numbers, so that nothing is rounded before the end, and give four places;
    float32 is summed in float64, and gives six digits of the smaller of both. A place that is
    always the same has a deviation of 1.

    Raises:
        ConfigError: where all pixels of a channel are the same.
    """
    chosen = np.linspace(0, len(part) - 1, min(len(part), _MOST_MEASURED)).astype(np.int64)

    def seen() -> Iterator[NDArray[np.generic]]:
        """Rows of the numbers of every place: (numbers, places)."""
        for start in range(0, len(chosen), _MEASURED_AT_ONCE):
            x = part.take(chosen[start : start + _MEASURED_AT_ONCE], None)[0]
            progress("measuring mean and deviation", start + len(x), len(chosen))
            if len(facts.shape) == 3:
                x = np.moveaxis(x, 1, -1)
            yield x.reshape(-1, facts.normalised_places)

    mean, deviation = _of_bytes(seen()) if facts.dtype == "uint8" else _of_floats(seen(), seen())
    if len(facts.shape) == 3 and min(deviation) <= 0:
        raise ConfigError(
            f"data.normalise measured: the standard deviation of a channel is 0 ({deviation}); "
            "these training images show one value: look at them, or give data.mean and data.std"
        )
    return tuple(mean), tuple(value or 1.0 for value in deviation)


def _of_bytes(seen: Iterator[NDArray[np.generic]]) -> tuple[list[float], list[float]]:
    sums = squares = 0
    count = 0
    for rows in seen:
        numbers = rows.astype(np.int64)
        sums, squares = sums + numbers.sum(0), squares + (numbers * numbers).sum(0)
        count += len(rows)
    mean = sums / count
    deviation = np.sqrt(np.maximum(squares / count - mean * mean, 0))
    return np.round(mean / 255, 4).tolist(), np.round(deviation / 255, 4).tolist()


def _of_floats(
    seen: Iterator[NDArray[np.generic]], again: Iterator[NDArray[np.generic]]
) -> tuple[list[float], list[float]]:
    sums = squares = np.zeros(())
    count = 0
    for rows in seen:
        sums, count = sums + rows.astype(np.float64).sum(0), count + len(rows)
    mean = sums / count
    for rows in again:  # about the mean: far from 0, squares would cancel
        off = rows.astype(np.float64) - mean
        squares = squares + (off * off).sum(0)
    deviation = np.sqrt(squares / count)
    spread = [float(f"{value:.6g}") for value in deviation]
    return [_rounded(*each) for each in zip(mean.tolist(), spread, strict=True)], spread


def _rounded(mean: float, deviation: float) -> float:
    """To six digits; where the deviation is smaller, to as many places as six digits of that have:
    half a million more or less is nothing for a mean of 1e12, and much for a deviation of 1e5."""
    digits = 6
    if 0 < deviation < abs(mean):
        digits += math.floor(math.log10(abs(mean))) - math.floor(math.log10(deviation))
    return float(f"{mean:.{digits}g}")
