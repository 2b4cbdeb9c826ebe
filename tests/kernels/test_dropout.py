"""Dropout masks: what belongs to a seed, a block and a batch id, on the CPU and on devices."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from support.blocks import block_of, specs_of
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.kernels import dropout
from pipeline.network.specs import PoolSpec
from pipeline.seeding import Purpose, derived_seed, generator

if TYPE_CHECKING:
    from pipeline.learning.block import Block


CONV, OTHER_CONV, LINEAR = 0, 1, 2


def a_block(at: int, rate: float = 0.3, seed: int = 1) -> Block:
    model = {"name": "vgg", "layers": [5, 6], "hidden": 8, "dropout": rate}
    spec = specs_of(model, {"name": "pred"}, (2, 6, 6), 3)[at]
    return block_of(spec, seed=seed, dtype=torch.float32)


def test_dropout_drops_whole_channels_after_a_convolution_and_scales_the_rest() -> None:
    block = a_block(CONV, 0.4)
    factors = block.transfer(torch.ones(50, 5, 6, 6), batch_id=1)
    per_channel = factors.flatten(2)
    assert torch.equal(per_channel, per_channel[:, :, :1].expand_as(per_channel))
    kept = per_channel[:, :, 0] != 0
    torch.testing.assert_close(factors[kept], torch.full_like(factors[kept], 1 / 0.6))
    assert 0.45 < kept.float().mean() < 0.75  # 250 draws of 0.6: five standard deviations
    assert kept.any(dim=1).sum() > (kept.all(dim=1)).sum()  # channels differ within an image


def test_dropout_drops_single_units_after_a_linear_block() -> None:
    block = a_block(LINEAR, 0.4)
    factors = block.transfer(torch.ones(100, 8), batch_id=1)
    kept = factors != 0
    torch.testing.assert_close(factors[kept], torch.full_like(factors[kept], 1 / 0.6))
    assert 0.51 < kept.float().mean() < 0.69  # 800 draws of 0.6
    assert len(kept.unique(dim=0)) > 50


def test_dropout_belongs_to_seed_block_and_batch_id_not_to_history() -> None:
    h = torch.ones(30, 5, 6, 6)
    first = a_block(CONV).transfer(h, batch_id=7)

    seasoned = a_block(CONV)
    for batch_id in (1, 9, 3):
        seasoned.transfer(h, batch_id=batch_id)
    torch.rand(3)
    assert torch.equal(seasoned.transfer(h, batch_id=7), first)
    assert torch.equal(seasoned.transfer(h, batch_id=7), first)

    assert not torch.equal(seasoned.transfer(h, batch_id=8), first)
    assert not torch.equal(a_block(CONV, seed=2).transfer(h, batch_id=7), first)
    wide = torch.ones(30, 6, 6, 6)
    elsewhere = a_block(OTHER_CONV).dropout.mask(wide, 7)[:, :5]
    assert not torch.equal(elsewhere, a_block(CONV).dropout.mask(wide, 7)[:, :5])


@pytest.mark.parametrize("width", [1, 5, 8])
def test_dropout_draws_what_numpys_generator_gives(width: int) -> None:
    """So older runs can be trained again, whatever makes the masks faster."""
    block, h = a_block(LINEAR, 0.4), torch.ones(3, width)
    numbers = generator(1, Purpose.DROPOUT, LINEAR, 7)
    bits = numbers.integers(0, 1 << 16, h.shape, dtype=np.uint16)
    kept = torch.from_numpy(bits >= round(0.4 * (1 << 16))).float()
    assert torch.equal(block.dropout.mask(h, 7), kept)
    assert torch.equal(block.transfer(h, batch_id=7), kept / 0.6)


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are worked out where they are needed, as on every device but the CPU."""
    monkeypatch.setattr(dropout, "HOST_DEVICES", frozenset())


@pytest.mark.usefixtures("on_a_device")
def test_devices_draw_splitmix64_for_seed_block_and_batch_id() -> None:
    block, h = a_block(LINEAR, 0.4), torch.ones(3, 5)
    key = derived_seed(1, Purpose.DROPOUT, LINEAR)
    numbers = [splitmix64(key, 7, unit) for unit in range(15)]
    expected = torch.tensor([number >= 0.4 for number in numbers]).view(3, 5).float()
    assert torch.equal(block.dropout.mask(h, 7), expected)
    assert not torch.equal(block.dropout.mask(h, 8), expected)
    assert not torch.equal(a_block(LINEAR, 0.4, seed=2).dropout.mask(h, 7), expected)


def splitmix64(key: int, batch_id: int, unit: int) -> float:
    """In [0, 1), but for the last step, which leaves the 31 highest bits as they are; the sign of
    an int64 is its highest bit."""
    bits, all_bits = key + batch_id * 0xD1B54A32D192ED03 + unit * 0x9E3779B97F4A7C15, (1 << 64) - 1
    bits &= all_bits
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & all_bits
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & all_bits
    return (bits + (1 << 63) & all_bits) / (1 << 64)


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.9])
def test_devices_drop_what_is_asked_for_and_neighbours_have_nothing_in_common(rate: float) -> None:
    block, count = a_block(CONV, rate), 100_000
    masks = [block.dropout.mask(torch.ones(count, 1), batch_id) for batch_id in (1, 2, 3)]
    rows = torch.stack([mask.flatten() == 0 for mask in masks]).double()
    deviation = (rate * (1 - rate) / count) ** 0.5
    assert (rows.mean(dim=1) - rate).abs().max() < 5 * deviation
    both = torch.cat([rows, rows.roll(1, dims=1)])  # other batches, and the next unit
    correlations = torch.corrcoef(both) - torch.eye(6, dtype=torch.float64)
    assert correlations.abs().max() < 5 / count**0.5


@pytest.mark.usefixtures("on_a_device")
def test_compilers_find_no_index_in_the_drawing() -> None:
    """Inductor computes `arange * constant` in 32 bits, or not at all: it must meet a tensor."""
    traced = make_fx(dropout.uniform)(torch.tensor(7), 1, 15, 0)
    (counted,) = (node for node in traced.graph.nodes if "arange" in node.name)
    assert [(user.target, user.args[1].op) for user in counted.users] == [
        (torch.ops.aten.add.Tensor, "call_function")
    ]


@pytest.mark.parametrize("pool", [None, PoolSpec("max", (2, 2), (2, 2), (0, 0))])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25])
def test_dropout_in_bf16_keeps_the_mean(pool: PoolSpec | None, rate: float) -> None:
    """1 / (1 - rate) is no number of bfloat16, which is off by 1.6e-3 to 2e-3 at these rates.

    What rounding each value leaves on average is below 3e-4 for any draw (of 300 of each)."""
    drop = block_of(replace(a_block(CONV, rate).spec, pool=pool))
    h = (1 + torch.rand(64, 5, 6, 6)).bfloat16()
    kept = drop.dropout.mask(h, 7).float()
    plain = block_of(replace(drop.spec, dropout=0.0)).transfer(h, batch_id=7).float()
    got = drop.transfer(h, batch_id=7).float()
    assert (got.sum() / (plain * kept).sum()).item() == pytest.approx(1 / (1 - rate), rel=5e-4)


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_looks_for_the_batch_id_in_memory(dtype: torch.dtype) -> None:
    """A replayed step has no other way to learn that the batch is another."""
    drop, h, batch_id = a_block(CONV).dropout, torch.ones(20, 5, 6, 6, dtype=dtype), 7
    expected = drop.mask(h, batch_id)
    assert (expected.shape, expected.dtype) == ((20, 5, 1, 1), dtype)
    memory = torch.tensor(0)
    drop.follow(memory)
    assert not torch.equal(drop.mask(h, batch_id), expected)
    memory.fill_(batch_id)
    assert torch.equal(drop.mask(h, 999), expected)


def test_dropout_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    a_block(CONV).transfer(torch.ones(3, 5, 6, 6), batch_id=7)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_dropped_in_evaluation_or_without_dropout() -> None:
    h = torch.rand(4, 5, 6, 6)
    assert torch.equal(a_block(CONV, 0.9).transfer(h, batch_id=None), h)
    assert torch.equal(a_block(CONV, 0.0).transfer(h, batch_id=3), h)
