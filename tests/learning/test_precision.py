"""What lies between two blocks: as it was computed, or rounded, on links and within a process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kernels.memory_layout import channels_last, is_channels_last
from pipeline.learning.precision import Between

ROUNDED = Between(rounds=True)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_what_is_sent_arrives_as_it_had_left(numbers: list[float]) -> None:
    """Whatever a block leaves, the next one reads the same over a link as beside it."""
    x = torch.tensor(numbers, dtype=torch.float32)
    left = ROUNDED.left(x)
    sent = ROUNDED.sent(left)
    assert (left.dtype, sent.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(ROUNDED.arrived(sent), left)
    assert torch.equal(ROUNDED.left(left), left)


def test_rounding_is_to_the_nearest_and_keeps_eight_bits() -> None:
    x = torch.tensor([1.0, 1 + 2**-8, 1 + 2**-7, 1 + 3 * 2**-9, -1e-40])
    assert ROUNDED.left(x)[:4].tolist() == [1.0, 1.0, 1 + 2**-7, 1 + 2**-7]
    assert abs(float(ROUNDED.left(x)[4])) < 2e-40


def test_memory_stays_as_it_lies() -> None:
    x = channels_last(torch.rand(2, 3, 4, 5))
    for changed in (ROUNDED.left(x), ROUNDED.sent(x), ROUNDED.arrived(ROUNDED.sent(x))):
        assert is_channels_last(changed)


@pytest.mark.parametrize("between", [ROUNDED, Between()])
def test_what_are_no_real_numbers_stay_as_they_are(between: Between) -> None:
    for x in (torch.arange(5), torch.ones(3, dtype=torch.complex64)):
        assert between.left(x) is x
        assert between.sent(x) is x
        assert between.arrived(x) is x


def test_by_default_nothing_is_rounded() -> None:
    x = torch.rand(5)
    assert Between().left(x) is Between().sent(x) is Between().arrived(x) is x


def test_under_autocast_the_next_block_reads_it_in_bfloat16() -> None:
    between = Between(rounds=True, computed=torch.bfloat16)
    x = torch.rand(5)
    assert between.left(x).dtype == torch.bfloat16
    assert torch.equal(between.arrived(between.sent(between.left(x))), between.left(x))
