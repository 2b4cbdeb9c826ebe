"""Activations that are computed again, against those that are kept; who may overwrite them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.blocks import CPU, stage_of
from torch import nn

from benchmarks.lib.allocations import peak, pieces_of, recorded
from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.kernels import memory_layout
from pipeline.kernels.memory_layout import channels_last
from pipeline.kernels.nonlinearity import activate
from pipeline.kernels.pooling import pool, pool_values
from pipeline.kernels.recompute import Activation, normalised
from pipeline.kernels.spatial_std import overwriting_pool, spatial_std
from pipeline.learning import block as blocks
from pipeline.learning.build import build_stage
from pipeline.network.from_config import network_specs
from pipeline.network.specs import PoolSpec

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.config.sections import Config
    from pipeline.kernels.nonlinearity import Nonlinearity
    from pipeline.learning.stage import Stage


SHAPE = (5, 4, 6, 7)
NONLINEARITIES = pytest.mark.parametrize("nonlinearity", ["relu", "leaky_relu"])


@pytest.fixture(params=[1, 2, 5], ids="{} at a time".format)
def few_examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    nbytes = 8 * SHAPE[1] * SHAPE[2] * SHAPE[3]
    monkeypatch.setitem(memory_layout.SLICE_BYTES, "cpu", request.param * nbytes)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Channel 0 lies far from 0, channel 1 is the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x[:, 0] += 100
    x[:, 1] = 1
    return channels_last(x.to(dtype))


def norm(dtype: torch.dtype = torch.float64) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(SHAPE[1], dtype=dtype)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.7]))
        made.bias.copy_(torch.tensor([0.1, 0.3, -0.2, 0.0]))
    return made


@pytest.mark.usefixtures("few_examples")
@NONLINEARITIES
def test_values_gradients_and_statistics_are_those_of_batch_norm(
    nonlinearity: Nonlinearity,
) -> None:
    found = []
    for ours in (True, False):
        z, made = drawn(*SHAPE).requires_grad_(), norm()
        h = normalised(z, made, nonlinearity) if ours else activate(made(z), nonlinearity)
        values = h.detach().clone()
        gradients = torch.autograd.grad(h, (z, made.weight, made.bias), drawn(*SHAPE, seed=1))
        found.append((values, *gradients, *made.buffers()))
    for ours_is, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours_is, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_its_gradient_may_come_in_any_order(order: torch.memory_format) -> None:
    z, made, by_h = drawn(*SHAPE).requires_grad_(), norm(), drawn(*SHAPE, seed=1)
    (expected,) = torch.autograd.grad(normalised(z, made, "relu"), z, by_h.clone())
    ordered = by_h.contiguous(memory_format=order)
    (gradient,) = torch.autograd.grad(normalised(z, made, "relu"), z, ordered)
    assert torch.equal(gradient, expected)


@NONLINEARITIES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_computed_again_bit_for_bit(dtype: torch.dtype, nonlinearity: Nonlinearity) -> None:
    z = drawn(*SHAPE, dtype=dtype).requires_grad_()
    h = normalised(z, norm(dtype if dtype.itemsize > 2 else torch.float32), nonlinearity)
    passed = h.detach().clone()
    _, recompute = Activation.read_last(h, passed)
    h.detach().zero_()
    assert recompute is not None
    assert torch.equal(torch.cat([recompute(slice(0, 2)), recompute(slice(2, 9))]), passed)


def test_what_is_passed_on_itself_or_made_otherwise_is_kept() -> None:
    z = drawn(*SHAPE).requires_grad_()
    ours, other = normalised(z, norm(), "relu"), activate(norm()(z), "relu")
    assert Activation.read_last(ours, ours.clone()).recompute is not None
    assert Activation.read_last(ours, ours.detach()).recompute is None
    for h in (other, ours.detach(), drawn(*SHAPE)):
        assert Activation.read_last(h, h.clone()).recompute is None


@pytest.mark.usefixtures("few_examples")
@pytest.mark.parametrize("overwrite", [True, False])
def test_heads_learn_the_same_whether_it_is_overwritten(overwrite: bool) -> None:
    spec = PoolSpec("average", (2, 3), (2, 3), (0, 0))
    weight = drawn(4, 4, 3, 3, seed=1).requires_grad_()
    found = []
    for overwrites in (overwrite, False):
        z, made = drawn(*SHAPE).requires_grad_(), norm()
        h = normalised(z, made, "relu")
        before = h.detach().clone()
        read = Activation.read_last(h, before) if overwrites else Activation(h)
        std, pooled = spatial_std(read, weight, spec)
        assert pooled is not None
        assert torch.equal(h, before) is not overwrites
        loss = std.pow(3).sum() + pooled.pow(3).sum()
        found.append((loss, *torch.autograd.grad(loss, (z, weight, made.weight))))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("few_examples")
@pytest.mark.parametrize(
    "spec",
    [
        PoolSpec("average", (2, 7), (2, 7), (0, 0)),  # the only one whose windows tile the map
        PoolSpec("average", (2, 2), (2, 2), (0, 0)),
        PoolSpec("average", (2, 2), (2, 2), (1, 1)),
        PoolSpec("average", (3, 7), (1, 7), (0, 0)),
    ],
)
def test_pooling_over_it_has_the_gradient_of_pooling(spec: PoolSpec) -> None:
    found = []
    for pooling in (overwriting_pool, pool):
        z = drawn(*SHAPE).requires_grad_()
        loss = pooling(normalised(z, norm(), "relu"), spec).pow(3).sum()
        found.append(torch.autograd.grad(loss, z)[0])
    torch.testing.assert_close(*found)


@pytest.mark.usefixtures("few_examples")
@pytest.mark.parametrize(
    "spec",
    [
        None,
        PoolSpec("max", (2, 2), (2, 2), (0, 0)),
        PoolSpec("max", (3, 7), (3, 7), (0, 0)),
        PoolSpec("max", (2, 4), (2, 4), (0, 0)),
        PoolSpec("max", (3, 3), (2, 2), (1, 1)),
        PoolSpec("average", (2, 2), (2, 2), (0, 0)),
    ],
)
def test_pooled_values_are_those_of_pooling(spec: PoolSpec | None) -> None:
    x = drawn(*SHAPE)
    values = pool_values(x, spec)
    assert torch.equal(values, pool(x, spec))
    assert memory_layout.is_channels_last(values)


def configured(loss: str, **model: Any) -> Config:
    tree = {
        "model": {"name": "vgg8b", "feat_mult": 0.125, "hidden": 16, **model},
        "data": {"name": "synthetic", "size": 32, "channels": 3},
        "loss": {"name": loss, "dim_in_decoder": 64},
        "optimizer": {"name": "sgd"},
    }
    return build_config(tree, "a test")


def vgg(loss: str, **model: Any) -> Stage:
    """In float64, with SGD: Adam makes much of a bias's gradient that is only rounding."""
    config = configured(loss, **model)
    return stage_of(network_specs(config, data_facts(config.data))[:3], momentum=0.9)


def trained(stage: Stage, sent: list[Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    for batch_id in range(3):
        x = torch.randn(6, 3, 32, 32, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 10, (6,), generator=generator)
        stage.train(x, labels, batch_id=batch_id, lr=0.01, send=lambda x: sent.append(x.clone()))
    return {
        f"{index}/{name}": tensor
        for index, state in stage.state().items()
        for name, tensor in state.items()
        if "optimizer" not in name
    }


@pytest.mark.parametrize("loss", ["predsim", "pred", "sim"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("nonlinearity", ["relu", "leaky_relu"])
def test_a_stage_learns_the_same_with_and_without(
    loss: str, dropout: float, nonlinearity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: rounding decides on which side of 0 a unit lies that is all but 0."""
    sent: tuple[list[Tensor], list[Tensor]] = ([], [])
    ours = trained(vgg(loss, dropout=dropout, nonlinearity=nonlinearity), sent[0])
    monkeypatch.setattr(blocks, "RECOMPUTING_DEVICES", frozenset())
    plain = trained(vgg(loss, dropout=dropout, nonlinearity=nonlinearity), sent[1])
    for name, expected in plain.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-11, msg=name)
    for passed, expected in zip(*sent, strict=True):
        torch.testing.assert_close(passed, expected, rtol=1e-9, atol=1e-11)


def test_what_is_passed_on_as_it_is_stays_as_it_is() -> None:
    """Without dropout and pooling the next block computes on h itself, after this one learned."""
    stage = vgg("predsim", dropout=0.0)
    first, second = stage.blocks[:2]
    assert first.spec.pool is None
    received = []
    second.register_forward_pre_hook(lambda block, given: received.append(given[0]))
    made = []
    first.register_forward_hook(lambda block, given, h: made.append(h.detach().clone()))
    trained(stage, [])
    assert all(torch.equal(x, h) for x, h in zip(received, made, strict=True))
    assert second.spec.index == 1


@pytest.mark.parametrize("loss", ["predsim", "pred", "sim"])
def test_a_block_takes_its_input_two_tensors_and_what_it_passes_on(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peak of the widest block with pooling; a slice at a time and weights come on top."""
    monkeypatch.setitem(memory_layout.SLICE_BYTES, "cpu", 1 << 14)
    config = configured(loss, dropout=0.2)
    stage = build_stage(config, data_facts(config.data), range(3), CPU)
    _one_step(stage, 1)
    unit = 16 * 32 * 32 * 32 * 4  # examples, channels of the second block, pixels, bytes
    pieces = pieces_of(recorded(lambda: _one_step(stage, 2), CPU))
    assert stage.blocks[1].spec.shape == (32, 32, 32)
    assert peak(pieces) < 3.1 * unit


def _one_step(stage: Stage, batch_id: int) -> None:
    x = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)
    labels = torch.zeros(16, dtype=torch.int64)
    stage.train(x, labels, batch_id=batch_id, lr=1e-3, send=lambda passed: None)
