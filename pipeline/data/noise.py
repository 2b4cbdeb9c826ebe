"""Noise of the shapes and types of a data set: for trials, where only these matter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from pipeline.data.facts import DataFacts
    from pipeline.data.parts import Pair

_HIGHEST_BYTE = 255


def noise_like(facts: DataFacts, n: int, draws: Generator) -> Pair:
    """`n` examples (n, *shape), of uniform bytes or tokens or normal float32; and as many targets
    (n, *target_shape), of uniform classes or normal float32."""
    highest = _HIGHEST_BYTE if facts.dtype == "uint8" else facts.tokens - 1
    x = _noise((n, *facts.shape), facts.dtype, highest, draws)
    return x, _noise((n, *facts.target_shape), facts.target_dtype, facts.classes - 1, draws)


def _noise(shape: tuple[int, ...], dtype: str, highest: int, draws: Generator) -> NDArray[Any]:
    if dtype == "float32":
        return draws.standard_normal(shape, dtype=np.float32)
    return draws.integers(0, highest, shape, dtype=dtype, endpoint=True)
