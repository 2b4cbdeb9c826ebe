"""Layers that learn together, and residual connections, against plain autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.blocks import ignored, stage_of
from torch import nn
from torch.nn import functional as F

from pipeline.config.sections import LossConfig, ModelConfig, build_config
from pipeline.errors import ConfigError
from pipeline.kernels.pooling import pool
from pipeline.network.from_config import build_specs
from pipeline.network.specs import BlockSpec, LayerSpec, stage_units
from pipeline.planning.cost import block_costs

if TYPE_CHECKING:
    from pipeline.learning.stage import Stage

CLASSES = 4
RESNET = {"name": "resnet18", "feat_mult": 0.05}


def specs_of(
    model: dict[str, Any], size: int = 6, loss: dict[str, Any] | None = None
) -> tuple[BlockSpec, ...]:
    config = LossConfig.model_validate(loss or {"name": "pred", "dim_in_decoder": 64})
    whole = ModelConfig.model_validate(model)
    return build_specs(whole, config, "leaky_relu", (3, size, size), CLASSES)


def stirred(specs: tuple[BlockSpec, ...]) -> Stage:
    stage = stage_of(specs, seed=3)
    for block in stage.blocks:
        for head in (block.pred, block.encoder if block.spec.zero_start else None):
            if isinstance(head, nn.Linear):  # zero would hide a wrong gradient
                nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(5))
    return stage


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, size, size, generator=generator, dtype=torch.float64)
    return x, torch.arange(8) % CLASSES


def weights(stage: Stage) -> dict[str, torch.Tensor]:
    return {
        f"{block.spec.index}.{name}": parameter.detach().clone()
        for block in stage.blocks
        for name, parameter in block.named_parameters()
    }


def gradients(stage: Stage, size: int = 6) -> dict[str, torch.Tensor]:
    """What one step takes away."""
    before = weights(stage)
    x, labels = batch(size)
    stage.train(x, labels, batch_id=1, lr=1.0, send=ignored)
    return {name: before[name] - after for name, after in weights(stage).items()}


def plain_losses(stage: Stage, size: int, detach_after: set[int]) -> list[torch.Tensor]:
    """The losses of every block that has one, in the words of plain PyTorch; no dropout.

    Nothing that is computed up to a block of `detach_after` gets a gradient from later ones.
    """
    x, labels = batch(size)
    losses: list[torch.Tensor] = []
    inputs: dict[int, torch.Tensor] = {}
    for block in stage.blocks:
        spec = block.spec
        inputs[spec.index] = x
        h = block.encoder(x.flatten(1) if spec.layer.kind == "linear" else x)
        if not spec.is_output:
            h = F.batch_norm(h, None, None, block.bn.weight, block.bn.bias, training=True)  # type: ignore[union-attr, arg-type]
            if spec.shortcut:
                carried = inputs[spec.shortcut.source]
                if block.shortcut is not None:
                    conv, norm = block.shortcut  # type: ignore[misc]
                    carried = F.batch_norm(
                        conv(carried), None, None, norm.weight, norm.bias, training=True
                    )
                h = h + carried
            h = F.leaky_relu(h, 0.01)
        if spec.is_output:
            losses.append(F.cross_entropy(h, labels))
        elif block.pred is not None:
            decoded = pool(h, spec.pred.pool).flatten(1)  # type: ignore[union-attr]
            losses.append(
                F.cross_entropy(F.linear(decoded, block.pred.weight, block.pred.bias), labels)
            )
        x = pool(h, spec.pool)
        if spec.index in detach_after:
            x = x.detach()
            inputs = {index: kept.detach() for index, kept in inputs.items()}
    return losses


@pytest.mark.parametrize(
    ("model", "ends"),
    [
        ({"name": "mlp", "hidden_layers": 5, "hidden": 9, "group": 2}, {1, 3, 4}),
        ({"name": "vgg", "layers": [4, "M", 5], "hidden": 7, "group": 3}, {2}),
        ({"name": "mlp", "hidden_layers": 3, "hidden": 9, "group": "all"}, {2}),
        ({**RESNET, "group": 1}, set(range(17))),
        ({**RESNET, "group": 3}, {2, 5, 8, 11, 14, 16}),
        ({**RESNET, "group": "all"}, {16}),
        ({**RESNET, "residual": False}, set(range(17))),
        (RESNET, set()),  # global backprop
    ],
)
def test_the_gradient_is_that_of_the_local_losses_within_each_group(
    model: dict[str, Any], ends: set[int]
) -> None:
    specs = specs_of(model, 16, None if ends else {"name": "glob"})
    assert {spec.index for spec in specs if spec.pred} == ends
    stage, twin = stirred(specs), stirred(specs)
    total = torch.stack(plain_losses(twin, 16, ends)).sum()
    parameters = [p for block in twin.blocks for p in block.parameters()]
    expected = dict(zip(weights(twin), torch.autograd.grad(total, parameters), strict=True))
    for name, gradient in gradients(stage, 16).items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda m, n=name: f"{n}: {m}")


def test_a_group_of_one_is_the_same_as_no_group() -> None:
    model = {"name": "mlp", "hidden_layers": 3}
    assert specs_of({**model, "group": 1}) == specs_of(model)


def test_a_group_larger_than_the_network_is_the_whole_of_it() -> None:
    model = {"name": "mlp", "hidden_layers": 3}
    assert specs_of({**model, "group": 99}) == specs_of({**model, "group": "all"})


def test_a_stage_boundary_cuts_neither_a_group_nor_a_shortcut() -> None:
    def units(model: dict[str, Any]) -> list[tuple[int, ...]]:
        return [tuple(spec.index for spec in unit) for unit in stage_units(specs_of(model, 32))]

    mlp = {"name": "mlp", "hidden_layers": 4}
    assert units({**mlp, "group": 3}) == [(0, 1, 2), (3, 4)]
    assert units(RESNET) == [(0,), *((i, i + 1) for i in range(1, 15, 2)), (15, 16, 17)]
    assert len(units({**RESNET, "residual": False})) == 17
    in_threes = units({**RESNET, "group": 3})
    assert in_threes == [(0, 1, 2), tuple(range(3, 9)), tuple(range(9, 15)), (15, 16, 17)]


# --- the published networks ---------------------------------------------------------------


def test_resnets_are_those_of_the_literature() -> None:
    """torchvision's own, but for biases before batch norms, which change nothing."""
    torchvision = pytest.importorskip("torchvision")
    for name in ("resnet18", "resnet34"):
        model = ModelConfig.model_validate({"name": name})
        specs = build_specs(model, LossConfig(name="glob"), "relu", (3, 224, 224), 1000)
        theirs = getattr(torchvision.models, name)()
        biases = sum(
            spec.layer.out_features * (2 if spec.shortcut and spec.shortcut.layer else 1)
            for spec in specs[:-1]
        )
        expected = sum(p.numel() for p in theirs.parameters())
        costs = block_costs(
            specs, batch_size=1, element_bytes=4, optimizer_name="adam", backprop=True
        )
        assert sum(cost.parameters for cost in costs) - biases == expected
        assert specs[-2].shape == (512, 7, 7)
        assert specs[-2].out_shape == (512, 1, 1)


@pytest.mark.parametrize(("name", "convolutions"), [("wrn-10-1", 7), ("wrn-28-10", 25)])
def test_wide_residual_networks(name: str, convolutions: int) -> None:
    specs = specs_of({"name": name}, 32)[:-1]
    width = 16 * int(name.rsplit("-", 1)[1])
    assert len(specs) == convolutions
    assert specs[0].layer.out_features == 16
    assert specs[1].layer == LayerSpec("conv", 16, width, kernel=3, padding=1)
    assert [spec.shape[1] for spec in specs if spec.shortcut and spec.shortcut.layer][-1] == 8
    assert specs[-1].out_shape == (4 * width, 1, 1)


def test_sides_are_halved_where_rounding_makes_widths_equal() -> None:
    specs = specs_of({"name": "wrn-10-2", "feat_mult": 0.01}, 32)[:-1]
    assert [spec.layer.out_features for spec in specs] == [1] * 7
    assert [spec.shape[1] for spec in specs] == [32, 32, 32, 16, 16, 8, 8]


@pytest.mark.parametrize("name", ["wrn-11-2", "wrn-4-1", "wrn-28-0", "wrn-28", "resnet50"])
def test_other_depths_are_refused(name: str) -> None:
    tree = {"model": {"name": name}, "loss": {"name": "pred"}, "data": {"name": "digits"}}
    with pytest.raises(ConfigError, match=f"model.name: '{name}' is not allowed: .*6n"):
        build_config(tree, "test")


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"model": {"name": "vgg8b", "residual": False}}, "vgg8b has no shortcuts to remove"),
        ({"model": {"name": "mlp", "group": 0}}, "model.group: 0 is not allowed: use a number"),
        (
            {"model": {"name": "mlp", "group": "ALL"}},
            "model.group: 'ALL' is not allowed: .* or all",
        ),
        (
            {"model": {"name": "resnet18"}, "data": {"name": "digits", "batch_size": 1}},
            "data.batch_size 1 leaves",
        ),
        ({"model": {"name": "mlp", "group": 2}, "loss": {"name": "glob"}}, "model.group needs"),
        (
            {
                "model": {"name": "mlp", "group": 2},
                "loss": {"name": "pred", "unsupervised": "recon", "alpha": 0.5},
            },
            "recon rebuilds the input of one layer",
        ),
        ({"schedule": {"greedy": True}, "loss": {"name": "glob+pred"}}, "greedy needs blocks"),
    ],
)
def test_what_does_not_fit_together_is_refused(sections: dict[str, Any], complaint: str) -> None:
    tree = {"model": {"name": "mlp"}, "loss": {"name": "pred"}, "data": {"name": "digits"}}
    with pytest.raises(ConfigError, match=complaint):
        build_config({**tree, **sections}, "test")
