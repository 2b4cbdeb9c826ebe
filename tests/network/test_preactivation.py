"""`model.preactivation`: the wide residual networks of the literature, against plain PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support import REPOSITORY
from torch import Tensor, nn
from torch.nn import functional as F

from launch.plan.checks import network_costs
from pipeline.config.config_file import load_config
from pipeline.config.loss import LossConfig
from pipeline.config.model import ModelConfig
from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError
from pipeline.kernels.recompute import Activation
from pipeline.learning.block import Block
from pipeline.learning.optimizers import make_optimizer
from pipeline.learning.stage import Stage
from pipeline.network.from_config import build_specs, network_specs
from pipeline.network.specs import BlockSpec, stage_units
from pipeline.rules.rule import Batch

CLASSES, CPU = 4, torch.device("cpu")
WIDE: dict[str, Any] = {"name": "wrn-10-2", "feat_mult": 0.2, "preactivation": True}
DEEP: dict[str, Any] = {"name": "wrn-16-1", "feat_mult": 0.3, "preactivation": True}


def specs_of(model: dict[str, Any], loss: str = "glob", size: int = 12) -> tuple[BlockSpec, ...]:
    given = LossConfig.model_validate({"name": loss, "dim_in_decoder": 32})
    whole = ModelConfig.model_validate(model)
    return build_specs(whole, given, "relu", (3, size, size), CLASSES)


def stage_of(specs: tuple[BlockSpec, ...], optimizer: str) -> Stage:
    make = partial(make_optimizer, optimizer, weight_decay=0.0, momentum=0.0)
    blocks = [Block(spec, seed=3, device=CPU, dtype=torch.float64, bf16=False) for spec in specs]
    for block in blocks:
        if block.pred is not None:  # zero would hide a wrong gradient
            nn.init.normal_(block.pred.weight, generator=torch.Generator().manual_seed(5))
        block.attach(make)
    return Stage(blocks, None)


def batch(number: int = 1, size: int = 12) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(number)
    x = torch.randn(6, 3, size, size, generator=draws, dtype=torch.float64)
    return x, torch.randint(CLASSES, (6,), generator=draws)


class Plain:
    """The network as the literature draws it, unit by unit, in functions of PyTorch.

    `state`: that of the stage's blocks, by `index.key`. `masks`: index of a unit's first block ->
    what its dropout keeps, scaled.
    """

    def __init__(self, stage: Stage, units: int) -> None:
        self.units, self.last = units, len(stage.blocks) - 1
        self.state = {
            f"{block.spec.index}.{key}": tensor.detach().clone()
            for block in stage.blocks
            for key, tensor in block.state_dict().items()
        }
        learned = {f"{b.spec.index}.{key}" for b in stage.blocks for key in names(b)}
        self.learned = {name: self.state[name].requires_grad_() for name in sorted(learned)}
        self.masks: dict[int, Tensor] = {}

    def logits(self, x: Tensor, *, detached: bool = False) -> tuple[Tensor, list[Tensor]]:
        """And the sums that the layers give, the last one's activation instead of its sum."""
        apart = Tensor.detach if detached else (lambda tensor: tensor)
        x = self.conv(x, "0.encoder", 1)
        sums = [x]
        for first in range(1, 2 * self.units, 2):
            x, second = apart(x), first + 1
            halves = first > 1 and (first // 2) % (self.units // 3) == 0
            stride = 2 if halves else 1
            y = self.conv(self.normed(x, f"{first}.bn_input"), f"{first}.encoder", 1)
            sums.append(y)
            y = apart(y * self.masks[first] if first in self.masks else y)
            y = self.conv(self.normed(y, f"{second}.bn_input"), f"{second}.encoder", stride)
            if f"{second}.shortcut.0.weight" in self.state:
                x = self.conv(x, f"{second}.shortcut.0", stride)
            x = x + y
            sums.append(x)
        x = sums[-1] = self.normed(x, f"{self.last - 1}.bn")
        x = apart(x).mean(dim=(2, 3))
        output = f"{self.last}.encoder"
        return F.linear(x, self.state[f"{output}.weight"], self.state[f"{output}.bias"]), sums

    def conv(self, x: Tensor, name: str, stride: int) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = weight.size(2) // 2
        return F.conv2d(x, weight, self.state[f"{name}.bias"], stride=stride, padding=padding)

    def normed(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.relu(F.batch_norm(x, None, None, weight, bias, training=True))


def names(block: Block) -> list[str]:
    return [name for name, parameter in block.named_parameters() if parameter.requires_grad]


# --- the network --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "dataset", "parameters"),
    [
        ({"name": "wrn-28-10", "preactivation": True}, "cifar10", 36_489_322),
        ({"name": "wrn-28-10", "preactivation": True}, "cifar100", 36_547_012),
        ({"name": "wrn-28-10", "preactivation": True}, "fashion_mnist", 36_489_034),
        ({"name": "wrn-28-10"}, "cifar10", 36_491_530),
    ],
    ids=str,
)
def test_as_many_parameters_as_the_authors_network_has(
    model: dict[str, Any], dataset: str, parameters: int
) -> None:
    tree = {"model": model, "loss": {"name": "glob"}, "data": {"name": dataset}}
    config = build_config(tree, "test")
    costs = network_costs(config, network_specs(config, data_facts(config.data)))
    assert sum(cost.parameters for cost in costs) == parameters


def test_the_quoted_baselines_can_be_trained() -> None:
    """The config of Table 2's, and the commands of docs/differences.md, sizes as the paper's."""
    text = (REPOSITORY / "docs/differences.md").read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if "pipeline-launch --single" in line]
    commands = [[], *(["optimizer.nesterov=true", words[4], words[6]] for words in lines)]
    printed = ["36M", *(words[-1] for words in lines)]  # Table 2 prints 37M, of 36.49M
    assert printed == ["36M", "56M", "56M", "11M"]
    for overrides, size in zip(commands, printed, strict=True):
        config = load_config(REPOSITORY / "configs/wrn_28_10.yaml", overrides)
        assert config.model.preactivation
        assert config.optimizer.nesterov == bool(overrides)
        costs = network_costs(config, network_specs(config, data_facts(config.data)))
        assert f"{sum(cost.parameters for cost in costs) / 1e6:.0f}M" == size


@pytest.mark.parametrize("model", [WIDE, DEEP, {**WIDE, "batch_norm": False}], ids=str)
@pytest.mark.parametrize("loss", ["glob", "glob+sim", "predsim"])
def test_costs_count_the_parameters_that_there_are(model: dict[str, Any], loss: str) -> None:
    tree = {"model": model, "loss": {"name": loss}, "data": {"name": "synthetic", "size": 16}}
    config = build_config(tree, "test")
    specs = network_specs(config, data_facts(config.data))
    for spec, cost in zip(specs, network_costs(config, specs), strict=True):
        block = Block(spec, seed=1, device=CPU, dtype=torch.float32, bf16=False)
        found = sum(parameter.numel() for parameter in block.parameters())
        assert found == cost.parameters + cost.head_parameters


def test_shapes_strides_and_shortcuts_of_wrn_28_10() -> None:
    specs = specs_of({"name": "wrn-28-10", "preactivation": True}, size=32)[:-1]
    assert len(specs) == 25
    firsts, seconds = specs[1::2], specs[2::2]
    assert {spec.layer.stride for spec in firsts} == {1}
    assert [spec.index for spec in seconds if spec.layer.stride == 2] == [10, 18]
    changed = [spec for spec in seconds if spec.shortcut and spec.shortcut.layer]
    assert [spec.index for spec in changed] == [2, 10, 18]
    assert all(spec.shortcut and spec.shortcut.source == spec.index - 1 for spec in seconds)
    assert [spec.passes_raw for spec in specs] == [True] * 24 + [False]
    assert [spec.activates_input for spec in specs] == [False] + [True] * 24
    assert (specs[-1].shape, specs[-1].out_shape) == ((640, 8, 8), (640, 1, 1))
    assert len(stage_units(specs_of(DEEP, "pred"))) == 7  # the stem, then a unit each


def test_dropout_is_of_units_and_only_between_the_two_convolutions() -> None:
    stage = stage_of(specs_of({**WIDE, "dropout": 0.3}), "adam")
    rates = [block.spec.dropout for block in stage.blocks[:-1]]
    assert rates == [0.0, *(0.3, 0.0) * 3]
    block = stage.blocks[1]
    h = torch.zeros(6, block.spec.shape[0], 12, 12)
    mask = block.dropout.mask(h, 7)
    assert mask.shape == h.shape
    assert mask.mean().item() == pytest.approx(0.7, abs=0.03)
    torch.testing.assert_close(mask, block.dropout.mask(h, 7), rtol=0, atol=0)
    assert not torch.equal(mask, block.dropout.mask(h, 8))
    assert not torch.equal(mask, stage.blocks[3].dropout.mask(h, 7))


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"model": {"name": "resnet18"}}, "model.preactivation: model.name resnet18 has no such"),
        ({"model": {"name": "vgg8b"}}, "model.preactivation: model.name vgg8b has no such form"),
        ({"model": {"name": "mlp"}}, "model.preactivation: model.name mlp has no such form"),
        (
            {"loss": {"name": "sim", "unsupervised": "sim", "alpha": 0.1}},
            "model.preactivation passes on sums instead of activations: loss.unsupervised must",
        ),
        (
            {"loss": {"name": "glob+pred", "unsupervised": "recon", "alpha": 0.1}},
            "model.preactivation passes on sums instead of activations: loss.unsupervised must",
        ),
    ],
    ids=str,
)
def test_what_has_no_such_form_is_refused(sections: dict[str, Any], says: str) -> None:
    model = {**(sections.get("model") or {"name": "wrn-10-1"}), "preactivation": True}
    loss = sections.get("loss") or {"name": "glob"}
    with pytest.raises(ConfigError) as caught:
        build_config({"model": model, "loss": loss, "data": {"name": "cifar10"}}, "test")
    assert says in str(caught.value)


# --- what it computes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "units"), [(WIDE, 3), (DEEP, 6), ({**WIDE, "dropout": 0.4}, 3)], ids=str
)
def test_global_backprop_is_that_of_plain_pytorch(model: dict[str, Any], units: int) -> None:
    """The gradients of a first step, then five steps of Adam."""
    for optimizer in ("sgd", "adam"):
        stage = stage_of(specs_of(model), optimizer)
        plain = Plain(stage, units)
        theirs = list(plain.learned.values())
        adam = torch.optim.Adam(theirs, 0.01)
        for batch_id in range(1, 2 if optimizer == "sgd" else 6):
            plain.masks = masks(stage, batch_id)
            x, labels = batch(batch_id)
            stage.training.reset()
            stage.train(x, labels, batch_id=batch_id, lr=0.01, send=lambda sent: None)
            loss = F.cross_entropy(plain.logits(x)[0], labels)
            assert stage.training.read()[-1].loss == pytest.approx(loss.item(), rel=1e-9)
            if optimizer == "adam":
                adam.zero_grad()
                loss.backward()
                adam.step()
                continue
            gradients = torch.autograd.grad(loss, theirs)
            with torch.no_grad():
                for parameter, gradient in zip(theirs, gradients, strict=True):
                    parameter -= 0.01 * gradient
        check_state(stage, plain)


@pytest.mark.parametrize("model", [WIDE, DEEP, {**WIDE, "dropout": 0.4}], ids=str)
def test_heads_see_each_sum_through_a_norm_of_their_own(model: dict[str, Any]) -> None:
    stage = stage_of(specs_of(model, "pred"), "sgd")
    plain = Plain(stage, 6 if model is DEEP else 3)
    plain.masks = masks(stage, 1)
    x, labels = batch()
    stage.train(x, labels, batch_id=1, lr=0.1, send=lambda sent: None)
    logits, sums = plain.logits(x, detached=True)
    losses = [F.cross_entropy(logits, labels)]
    for index, h in enumerate(sums):
        spec = stage.blocks[index].spec
        seen = plain.normed(h, f"{index}.bn") if spec.passes_raw else h
        assert spec.pred
        if spec.pred.pool:
            pool = spec.pred.pool
            seen = F.avg_pool2d(seen, pool.kernel, pool.stride, pool.padding)
        weight, bias = plain.state[f"{index}.pred.weight"], plain.state[f"{index}.pred.bias"]
        losses.append(F.cross_entropy(F.linear(seen.flatten(1), weight, bias), labels))
    theirs = list(plain.learned.values())
    gradients = torch.autograd.grad(torch.stack(losses).sum(), theirs)
    with torch.no_grad():
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter -= 0.1 * gradient
    check_state(stage, plain)


def test_a_norm_that_nobody_reads_stays_as_it_was() -> None:
    stage = stage_of(specs_of(WIDE), "adam")
    stem = stage.blocks[0]
    before = {key: tensor.clone() for key, tensor in stem.state().items() if "bn." in key}
    stage.train(*batch(), batch_id=1, lr=0.1, send=lambda sent: None)
    assert before.keys() >= {"bn.weight", "bn.bias", "bn.running_mean"}
    for key, tensor in before.items():
        assert torch.equal(stem.state()[key], tensor)
    assert not any("bn" in name for name in names(stem))


@pytest.mark.parametrize("loss", ["glob", "predsim"])
def test_without_batch_norm_sums_go_on_unharmed(loss: str) -> None:
    """Non-linearities work in place: what the shortcut carries must not be what they overwrite."""
    stage = stage_of(specs_of({**WIDE, "batch_norm": False}, loss), "sgd")
    x, labels = batch()
    stage.evaluate(x, labels, send=lambda sent: None)
    block = stage.blocks[2]
    given = torch.randn(6, *block.spec.in_shape, dtype=torch.float64)
    carried = torch.randn(6, *stage.blocks[1].spec.in_shape, dtype=torch.float64)
    kept = given.clone(), carried.clone()
    with torch.no_grad():
        h = block(given, batch_id=None, shortcut=carried)
        sent = h.clone()
        if block.spec.has_loss:
            block.local_loss(Activation(h), Batch(given, labels), given)
    assert torch.equal(given, kept[0])
    assert torch.equal(carried, kept[1])
    assert torch.equal(h, sent)
    assert (h < 0).any()


def masks(stage: Stage, batch_id: int) -> dict[int, Tensor]:
    """What dropout keeps of the first convolutions of units, scaled."""
    found = {}
    for block in stage.blocks[1:-1:2]:
        if block.spec.dropout:
            h = torch.empty(6, *block.spec.shape, dtype=torch.float64)
            found[block.spec.index] = block.dropout.mask(h, batch_id) * block.dropout.scale
    return found


def check_state(stage: Stage, plain: Plain) -> None:
    for block in stage.blocks:
        for key in names(block):
            name = f"{block.spec.index}.{key}"
            found, expected = block.state_dict()[key], plain.state[name].detach()
            torch.testing.assert_close(
                found, expected, rtol=1e-7, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}"
            )
