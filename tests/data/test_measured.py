"""Mean and deviation of a user's own examples, of every shape and type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.own_data import floats, labels

from pipeline.config.data import DataConfig
from pipeline.data.batches import load_batches
from pipeline.data.own_data import own_data
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.data.facts import DataFacts


def facts_of(x: np.ndarray) -> DataFacts:
    config = DataConfig(factory="nowhere:f", normalise="measured")
    return load_batches(config, 1, own=own_data((x, labels(len(x))))).facts


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 5, 4), (0, 2, 3)),
        ((7,), (0,)),
        ((3, 4), (0, 1)),
        ((2, 1, 2, 3), (0, 1, 2, 3)),
    ],
)
def test_by_channel_or_by_place_of_the_last_dimension(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    x = floats(150, shape)
    facts = facts_of(x)
    np.testing.assert_allclose(facts.mean, x.mean(axes, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(facts.std, x.std(axes, dtype=np.float64), rtol=1e-5)
    assert all(float(f"{value:.6g}") == value for value in facts.std)


def test_bytes_of_any_shape_are_measured_from_0_to_1() -> None:
    x = np.random.default_rng(1).integers(0, 256, (90, 6), dtype=np.uint8)
    facts = facts_of(x)
    np.testing.assert_allclose(facts.mean, x.mean(0) / 255, atol=6e-5)
    np.testing.assert_allclose(facts.std, x.std(0) / 255, atol=6e-5)


def test_numbers_far_from_0_keep_their_deviation() -> None:
    x = (floats(100, (3,)).astype(np.float64) + 1e6).astype(np.float32)
    facts = facts_of(x)
    np.testing.assert_allclose(facts.std, x.astype(np.float64).std(0), rtol=1e-5)
    np.testing.assert_allclose(facts.mean, x.astype(np.float64).mean(0), rtol=0, atol=1e-5)


def test_a_feature_that_is_always_the_same_is_divided_by_1() -> None:
    x = floats(20, (3,))
    x[:, 1] = 0.5
    facts = facts_of(x)
    assert (facts.mean[1], facts.std[1]) == (0.5, 1.0)


def test_an_image_of_one_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="the standard deviation of a channel is 0"):
        facts_of(np.ones((20, 1, 3, 3), np.float32))


def test_too_many_places_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.mean: 20000 places of the last dimension, at most 16384"
    ):
        facts_of(floats(8, (20_000,)))
