"""Similarity losses that cost less than the paper's: off by default, what each computes, and that
batches are told apart by their number alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.blocks import CPU, block_of, loss_of, specs_of
from torch.nn import functional as F

from benchmarks.memory import peaks_of_blocks
from launch.plan.checks import network_costs
from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError
from pipeline.learning.losses import similarity_matrix
from pipeline.network.from_config import network_specs
from pipeline.network.specs import stage_units
from pipeline.planning.cost import estimated_bytes

if TYPE_CHECKING:
    from pipeline.learning.block import Block

VGG = {"name": "vgg", "layers": [8, "M", 12], "hidden_layers": 1, "hidden": 16}
CHEAPER: dict[str, Any] = {
    "similarity_pool": 2, "similarity_channels": 0.5, "similarity_groups": 4,
    "similarity_batches": 0.25, "similarity_bf16": True,
}  # fmt: skip


def block_with(index: int = 0, loss: str = "predsim", **keys: Any) -> Block:
    specs = specs_of(VGG, {"name": loss, **keys}, (3, 8, 8), 10)
    return block_of(specs[index], dtype=torch.float32)


def drawn(index: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    shape = ((8, 8, 8), (12, 4, 4), (16,))[index]
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(6, *shape, generator=generator)
    h = h.contiguous(memory_format=torch.channels_last) if len(shape) == 3 else h
    return h.requires_grad_(), torch.arange(6) % 10


def matching(mapped: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Equation 4, in the words of plain PyTorch."""
    wanted = similarity_matrix(F.one_hot(labels, 10).float())
    return F.mse_loss(similarity_matrix(mapped), wanted)


@pytest.mark.parametrize(
    "keys",
    [
        {"similarity_pool": 2},
        {"similarity_pool": 3},  # does not divide the sides
        {"similarity_pool": 64},  # all of a map: a number for each channel
        {"similarity_channels": 0.5},
        {"similarity_groups": 4},
        {"similarity_groups": 3},  # the most below that divide 8 channels
        {"similarity_pool": 2, "similarity_channels": 0.5, "similarity_groups": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_what_it_computes(keys: dict[str, Any], index: int) -> None:
    block = block_with(index, "sim", **keys)
    h, labels = drawn(index)
    loss = loss_of(block, h, labels, h).loss
    found = torch.autograd.grad(loss, [h, block.sim.weight])
    weight = block.sim.weight
    if h.dim() == 2:
        mapped = h @ weight.T
        assert len(weight) == (8 if "similarity_channels" in keys else 16)
    else:
        side = min(keys.get("similarity_pool", 1), h.size(2))
        groups = {3: 2 if index == 0 else 3}.get(
            keys.get("similarity_groups", 1), keys.get("similarity_groups", 1)
        )
        mapped = F.conv2d(F.avg_pool2d(h, side), weight, padding=1, groups=groups)
    wanted = matching(mapped, labels)
    assert torch.allclose(loss, wanted, atol=1e-6)
    for one, other in zip(found, torch.autograd.grad(wanted, [h, weight]), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_in_bf16_it_is_near_and_the_classifier_is_as_it_was() -> None:
    plain, low = block_with(), block_with(similarity_bf16=True)
    for index in (plain, low):
        torch.nn.init.normal_(index.pred.weight, generator=torch.Generator().manual_seed(1))
    h, labels = drawn()
    one, other = loss_of(plain, h, labels, h), loss_of(low, h, labels, h)
    assert torch.equal(one.cross_entropy, other.cross_entropy)
    assert not torch.equal(one.similarity, other.similarity)
    assert torch.allclose(one.similarity, other.similarity, rtol=0.02)
    gradients = [torch.autograd.grad(value.loss, h)[0] for value in (one, other)]
    assert gradients[1].dtype == torch.float32
    assert torch.allclose(*gradients, atol=0.02 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.3, 1.0])
def test_batches_are_spread_evenly_by_their_number(share: float) -> None:
    spec = block_with(similarity_batches=share).spec.sim
    assert spec is not None
    due = [spec.is_due(batch_id) for batch_id in range(1, 101)]
    assert sum(due) == round(100 * share)
    for first in range(0, 80, 20):
        assert abs(sum(due[first : first + 20]) - 20 * share) <= 1


def test_a_batch_without_similarity_learns_by_the_classifier_alone() -> None:
    block = block_with(similarity_batches=0.5)
    h, labels = drawn()
    for batch_id, has in ((1, False), (2, True), (3, False), (None, True)):
        block(torch.zeros(6, 3, 8, 8), batch_id=batch_id)
        value = loss_of(block, h, labels, h)
        assert value.similarity is not None
        assert value.cross_entropy is not None
        assert (value.similarity > 0) == has
        wanted = 0.01 * value.cross_entropy + 0.99 * value.similarity
        assert torch.allclose(value.loss, wanted)


def test_by_default_all_is_the_papers() -> None:
    plain = specs_of(VGG, {"name": "predsim"}, (3, 8, 8), 10)
    assert all(spec.sim is None or spec.sim.is_own_shape for spec in plain)
    assert all(spec.sim is None or spec.sim.share == 1 for spec in plain)
    for key, value in CHEAPER.items():
        changed = specs_of(VGG, {"name": "predsim", key: value}, (3, 8, 8), 10)
        assert changed[0] != plain[0], key


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ({"name": "pred", "similarity_pool": 2}, "similarity_pool needs loss.name sim or predsim"),
        ({"name": "predsim", "bio": True, "similarity_bf16": True}, "without loss.bio"),
        ({"name": "sim", "similarity_batches": 0.5}, "needs loss.name predsim"),
        ({"rule": "DGL", "similarity_pool": 2}, "is for the built-in losses"),
    ],
)
def test_where_they_mean_nothing_they_are_refused(loss: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        specs_of(VGG, loss, (3, 8, 8), 10)


@pytest.mark.parametrize(
    ("keys", "share"),
    [
        ({"similarity_pool": 2}, 1 / 4),
        ({"similarity_channels": 0.5}, 1 / 2),
        ({"similarity_groups": 8}, 1 / 8),
        ({"similarity_batches": 0.25}, 1 / 4),
        ({"similarity_bf16": True}, 1),
    ],
)
def test_multiply_adds_know_of_them(keys: dict[str, Any], share: float) -> None:
    def of_g(**more: Any) -> int:
        tree = {
            "model": {"name": "vgg", "layers": [16], "hidden_layers": 0},
            "loss": {"name": "predsim", **more},
            "data": {"name": "cifar10"},
        }
        config = build_config(tree, "test")
        costs = network_costs(config, network_specs(config, data_facts(config.data)))
        head = 3 * 10 * 4096
        return costs[0].train_macs - 2 * costs[0].forward_macs - head

    assert of_g() == 3 * 16 * 16 * 9 * 32 * 32
    assert of_g(**keys) == pytest.approx(share * of_g())


@pytest.mark.usefixtures("torch_settings")
@pytest.mark.parametrize("key", ["similarity_pool", "similarity_channels", "similarity_groups"])
@pytest.mark.parametrize("model", ["vgg", "mlp"])
def test_what_they_hold_is_estimated_as_it_is_measured(key: str, model: str) -> None:
    """Within 20 %, gradients of weights aside."""
    tree = {
        "model": {
            "vgg": {"name": "vgg", "layers": [32, 64, "M"], "hidden": 128},
            "mlp": {"name": "mlp", "hidden_layers": 2, "dropout": 0.1},
        }[model],
        "loss": {"name": "predsim", key: CHEAPER[key]},
        "data": {"name": "synthetic", "batch_size": 64},
    }
    config = build_config(tree, "test")
    specs = network_specs(config, data_facts(config.data))
    costs = network_costs(config, specs)
    for unit in stage_units(specs):
        own = [costs[spec.index] for spec in unit]
        estimate = estimated_bytes(own) - sum(cost.state_bytes for cost in own)
        measured = peaks_of_blocks(config, [cost.block for cost in own], CPU)
        assert estimate == pytest.approx(measured.activations, rel=0.2), unit[0].name
