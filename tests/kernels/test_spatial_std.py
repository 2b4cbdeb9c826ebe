"""What heads read from feature maps, against the same in plain PyTorch; how maps lie in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from support.gradients import check_gradients
from torch.nn import functional as F

from pipeline.kernels import memory_layout
from pipeline.kernels import spatial_std as module
from pipeline.kernels.memory_layout import channels_last, flattened, is_channels_last, pixels
from pipeline.kernels.pooling import pool
from pipeline.kernels.recompute import Activation
from pipeline.kernels.spatial_std import spatial_std
from pipeline.network.from_config import decoder_pool
from pipeline.network.specs import PoolSpec

if TYPE_CHECKING:
    from torch import Tensor


SHAPE = (5, 4, 6, 7)
POOLS = {
    "no pooling": None,
    "exact": PoolSpec("average", (2, 7), (2, 7), (0, 0)),
    "padded": decoder_pool(SHAPE[1:], 16),
}


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return channels_last(torch.randn(shape, generator=generator, dtype=dtype)).requires_grad_()


def by_hand(h: Tensor, weight: Tensor, spec: PoolSpec | None) -> tuple[Tensor, Tensor | None]:
    return spatial_std(Activation(h), weight, spec)


def plainly(h: Tensor, weight: Tensor, spec: PoolSpec | None) -> tuple[Tensor, Tensor | None]:
    g = F.conv2d(h, weight, padding=1)
    return g.flatten(2).std(dim=2), None if spec is None else pool(h, spec)


@pytest.fixture(params=[1, 3, 5], ids="{} at a time".format)
def few_examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    nbytes = 8 * SHAPE[1] * SHAPE[2] * SHAPE[3]
    monkeypatch.setitem(memory_layout.SLICE_BYTES, "cpu", request.param * nbytes)


@pytest.fixture(params=[frozenset(), frozenset({"cpu"})], ids=["copies", "converts"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device where PyTorch copies numbers of another type, and of one that converts them."""
    monkeypatch.setattr(module, "CONVERTING_DEVICES", request.param)


@pytest.mark.usefixtures("few_examples", "kernels")
@pytest.mark.parametrize("name", POOLS)
def test_values_and_gradients_are_those_of_plain_pytorch(name: str) -> None:
    found = []
    for way in (by_hand, plainly):
        h, weight = drawn(*SHAPE), drawn(4, 4, 3, 3, seed=1)
        std, pooled = way(h, weight, POOLS[name])
        assert (pooled is None) == (POOLS[name] is None)
        looked_at = [std] if pooled is None else [std, pooled]
        # of the sum of cubes, so that gradients differ from example to example
        loss = torch.stack([part.pow(3).sum() for part in looked_at]).sum()
        found.append((*looked_at, *torch.autograd.grad(loss, (h, weight))))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_gradients_agree_with_differences() -> None:
    def loss(h: Tensor, weight: Tensor) -> Tensor:
        std, pooled = by_hand(h, weight, POOLS["padded"])
        assert pooled is not None
        return std.pow(3).sum() + pooled.pow(3).sum()

    check_gradients(loss, drawn(*SHAPE), drawn(4, 4, 3, 3, seed=1))


def test_a_map_without_spread_gives_no_gradient() -> None:
    h = torch.zeros(2, 4, 5, 5).requires_grad_()
    std, _ = by_hand(h, drawn(4, 4, 3, 3, dtype=torch.float32), None)
    assert torch.equal(std, torch.zeros(2, 4))
    (gradient,) = torch.autograd.grad(std.sum(), h)
    assert torch.equal(gradient, torch.zeros_like(h))


def test_a_second_backward_pass_is_refused_not_wrong() -> None:
    h = drawn(*SHAPE)
    std, _ = by_hand(h, drawn(4, 4, 3, 3, seed=1), None)
    torch.autograd.grad(std.sum(), h, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(std.sum(), h)


@pytest.mark.usefixtures("kernels")
def test_under_bf16_moments_are_float32() -> None:
    h = drawn(*SHAPE, dtype=torch.float32)
    weight = drawn(4, 4, 3, 3, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        std, pooled = by_hand(h, weight, POOLS["exact"])
        g = F.conv2d(h, weight, padding=1)
    assert g.dtype == torch.bfloat16
    assert pooled is not None
    torch.testing.assert_close(std, g.float().flatten(2).std(dim=2))
    ours = torch.autograd.grad(std.pow(3).sum() + pooled.pow(3).sum(), (h, weight))
    expected_std, expected_pooled = plainly(h, weight, POOLS["exact"])
    assert expected_pooled is not None
    loss = expected_std.pow(3).sum() + expected_pooled.pow(3).sum()
    for gradient, expected in zip(ours, torch.autograd.grad(loss, (h, weight)), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - expected).norm() < 0.02 * expected.norm()  # bf16 has 8 bits


# --- layout -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 1, 1), (2, 1, 4, 4), (1, 1, 1, 1)])
def test_feature_maps_have_one_layout_only(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    other = x.clone().to(memory_format=torch.channels_last)
    for given in (x, other):
        laid_out = channels_last(given)
        assert is_channels_last(laid_out)
        assert torch.equal(laid_out, x)
    assert channels_last(x).stride() == channels_last(other).stride()
    assert channels_last(laid_out) is laid_out
    assert pixels(laid_out).data_ptr() == laid_out.data_ptr()
    assert torch.equal(pixels(laid_out), x.flatten(2).mT)


def test_what_is_not_feature_maps_is_contiguous() -> None:
    assert channels_last(torch.rand(4, 3).T).is_contiguous()


def test_flattened_goes_channel_by_channel_and_its_gradient_comes_back_laid_out() -> None:
    x = drawn(2, 3, 4, 5)
    flat = flattened(x)
    assert torch.equal(flat, x.detach().contiguous().view(2, -1))
    factors = torch.arange(120, dtype=torch.float64).view(2, 60)
    (gradient,) = torch.autograd.grad((flat * factors).sum(), x)
    assert is_channels_last(gradient)
    assert torch.equal(gradient, factors.view(2, 3, 4, 5))
