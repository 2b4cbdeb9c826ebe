"""Block specifications against the paper's tables and against torch's own layers."""

from __future__ import annotations

from math import ceil, prod
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.config.sections import build_config
from pipeline.data.facts import DataFacts, data_facts
from pipeline.errors import ConfigError
from pipeline.kernels.pooling import pool
from pipeline.network.from_config import build_specs, decoder_pool, network_specs
from pipeline.network.specs import BlockSpec, LayerSpec, PoolSpec, stage_units

CIFAR = (3, 32, 32)


def specs_of(
    image_shape: tuple[int, int, int] = CIFAR,
    classes: int = 10,
    loss: dict[str, Any] | None = None,
    **model: Any,
) -> tuple[BlockSpec, ...]:
    tree = {
        "model": model,
        "loss": {"name": "predsim", **(loss or {})},
        "data": {"name": "cifar10"},
    }
    config = build_config(tree, "test")
    return build_specs(config.model, config.loss, config.nonlinearity, image_shape, classes)


def channels(specs: tuple[BlockSpec, ...]) -> list[int]:
    return [spec.layer.out_features for spec in specs if spec.layer.kind == "conv"]


# --- presets ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "convolutions", "last"),
    [
        ("vgg6a", [128, 256, 512, 512], (512, 4, 4)),
        ("vgg6b", [128, 256, 512, 512], (512, 2, 2)),
        ("vgg8", [64, 128, 256, 512, 512], (512, 1, 1)),
        ("vgg8a", [128, 256, 256, 512, 512, 512], (512, 4, 4)),
        ("vgg8b", [128, 256, 256, 512, 512, 512], (512, 2, 2)),
        ("vgg11", [64, 128, 256, 256, 512, 512, 512, 512], (512, 1, 1)),
        ("vgg11b", [128, 128, 128, 256, 256, 512, 512, 512, 512], (512, 2, 2)),
        ("vgg13", [64, 64, 128, 128, 256, 256, 512, 512, 512, 512], (512, 1, 1)),
        ("vgg16", [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6, (512, 1, 1)),
        ("vgg19", [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8, (512, 1, 1)),
    ],
)
def test_presets(name: str, convolutions: list[int], last: tuple[int, int, int]) -> None:
    specs = specs_of(name=name)
    assert channels(specs) == convolutions
    assert len(stage_units(specs)) == len(convolutions) + 1
    *_, before_last, hidden, output = specs
    assert before_last.out_shape == last
    assert hidden.layer == LayerSpec("linear", prod(last), 1024)
    assert output.layer == LayerSpec("linear", 1024, 10)
    assert [spec.is_output for spec in specs] == [False] * (len(specs) - 1) + [True]


@pytest.mark.parametrize("name", ["vgg8b", "vgg11b", "vgg16"])
def test_each_block_takes_what_the_one_before_sends(name: str) -> None:
    specs = specs_of(name=name, hidden_layers=2)
    assert [spec.index for spec in specs] == list(range(len(specs)))
    assert specs[0].in_shape == CIFAR
    assert [spec.in_shape for spec in specs[1:]] == [spec.out_shape for spec in specs[:-1]]


def test_feat_mult_widens_convolutions_only() -> None:
    specs = specs_of(name="vgg8b", feat_mult=3)
    assert channels(specs) == [384, 768, 768, 1536, 1536, 1536]
    assert specs[-2].layer == LayerSpec("linear", 1536 * 2 * 2, 1024)
    assert channels(specs_of(name="vgg8b", feat_mult=0.3))[0] == 38
    assert channels(specs_of(name="vgg8b", feat_mult=1e-3))[0] == 1


def test_mlp_flattens_the_image_first() -> None:
    specs = specs_of(image_shape=(1, 28, 28), name="mlp", hidden_layers=3, hidden=1024)
    assert [spec.layer for spec in specs] == [
        LayerSpec("linear", 784, 1024),
        LayerSpec("linear", 1024, 1024),
        LayerSpec("linear", 1024, 1024),
        LayerSpec("linear", 1024, 10),
    ]
    assert len(stage_units(specs)) == 3
    assert specs[0].in_shape == (1, 28, 28)


def test_network_without_fully_connected_blocks() -> None:
    specs = specs_of(name="vgg", layers=[8, "M"], hidden_layers=0)
    assert len(stage_units(specs)) == 1
    assert specs[-1].layer == LayerSpec("linear", 8 * 16 * 16, 10)


def test_network_of_a_config_uses_the_facts_of_its_data() -> None:
    tree = {
        "model": {"name": "mlp"},
        "loss": {"name": "pred"},
        "data": {"name": "synthetic", "channels": 2, "size": 5, "classes": 7},
    }
    config = build_config(tree, "test")
    specs = network_specs(config, data_facts(config.data))
    assert specs[0].in_shape == (2, 5, 5)
    assert {spec.classes for spec in specs} == {7}


# --- layers and pooling against torch -----------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [(64, 3, 1, 1), (65, 7, 2, 3), (96, 7, 2, 3)]
)
def test_first_convolution_is_wide_above_64_pixels(
    size: int, kernel: int, stride: int, padding: int
) -> None:
    first, second, *_ = specs_of(image_shape=(3, size, size), name="vgg8b")
    assert first.layer == LayerSpec("conv", 3, 128, kernel, stride, padding)
    assert second.layer == LayerSpec("conv", 128, 256, 3, 1, 1)
    x = torch.zeros(1, 3, size, size)
    weight = torch.zeros(128, 3, kernel, kernel)
    convolved = F.conv2d(x, weight, stride=stride, padding=padding)
    assert convolved.shape[1:] == first.shape


TORCH_POOLS = {
    "M": lambda x: F.max_pool2d(x, 2),
    "M3": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "M4": lambda x: F.max_pool2d(x, 4),
    "A": lambda x: F.avg_pool2d(x, 2),
    "A3": lambda x: F.avg_pool2d(x, 3, stride=2, padding=1),
    "A4": lambda x: F.avg_pool2d(x, 4),
}


@pytest.mark.parametrize("name", TORCH_POOLS)
@pytest.mark.parametrize("size", [4, 5, 6, 7, 8, 13, 32])
def test_pooling_is_torchs(name: str, size: int) -> None:
    specs = specs_of(image_shape=(3, size, size), name="vgg", layers=[2, name])
    h = torch.randn(2, 2, size, size, generator=torch.Generator().manual_seed(size))
    expected = TORCH_POOLS[name](h)
    assert specs[0].out_shape == expected.shape[1:]
    assert torch.equal(pool(h, specs[0].pool), expected)


@pytest.mark.parametrize(
    ("size", "layers", "says"),
    [
        (1, [8, "M"], "block 0 would pool (8, 1, 1) to (8, 0, 0): images of 1×1 pixels"),
        (3, [8, "M4"], "block 0 would pool (8, 3, 3) to (8, 0, 0): images of 3×3 pixels"),
        (3, [8, "M", 16, "A"], "block 1 would pool (16, 1, 1) to (16, 0, 0): images of 3×3"),
    ],
)
def test_too_small_images_are_refused(size: int, layers: list[int | str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        specs_of(image_shape=(3, size, size), name="vgg", layers=layers)
    assert says in str(caught.value)
    assert str(caught.value).startswith("model vgg: ")


def test_images_just_large_enough_are_taken() -> None:
    assert specs_of(image_shape=(3, 4, 4), name="vgg", layers=[8, "M", 8, "A"])[1].out_shape == (
        8,
        1,
        1,
    )
    assert specs_of(image_shape=(1, 1, 1), name="vgg", layers=[8, "M3"])[0].out_shape == (8, 1, 1)


# --- heads --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "pred", "sim", "output"),
    [
        ({"name": "pred"}, 1.0, None, 1.0),
        ({"name": "sim"}, None, 1.0, 1.0),
        ({"name": "predsim", "beta": 0.75}, 0.25, 0.75, 0.25),
        ({"name": "predsim", "beta": 1.0}, 0.0, 1.0, 0.0),
        ({"name": "predsim", "beta": 0.0}, 1.0, 0.0, 1.0),
        ({"name": "glob"}, None, None, 1.0),
    ],
)
def test_heads_and_their_weights(
    loss: dict[str, Any], pred: float | None, sim: float | None, output: float
) -> None:
    specs = specs_of(name="vgg", layers=[8], hidden=16, loss=loss)
    for spec in specs[:-1]:
        assert (spec.pred.weight if spec.pred else None) == pred
        assert (spec.sim.weight if spec.sim else None) == sim
        assert spec.output_weight is None
    assert (specs[-1].pred, specs[-1].sim, specs[-1].output_weight) == (None, None, output)
    assert [spec.sim.kind for spec in specs if spec.sim] == ["conv", "linear"] * (sim is not None)
    assert [spec.sim.features for spec in specs if spec.sim] == [8, 16] * (sim is not None)


def test_local_classifier_of_a_linear_block_sees_every_unit() -> None:
    spec = specs_of(name="mlp", hidden=5000, loss={"dim_in_decoder": 16})[0]
    assert spec.pred is not None
    assert (spec.pred.pool, spec.pred.features) == (None, 5000)


def test_local_classifier_counts_what_is_left_after_pooling() -> None:
    spec = specs_of(name="vgg8b", loss={"dim_in_decoder": 2048})[0]
    assert spec.pred is not None
    assert spec.pred.pool == PoolSpec("average", (8, 8), (8, 8), (0, 0))
    assert spec.pred.features == 128 * 4 * 4


@pytest.mark.parametrize(
    ("shape", "limit", "kernel", "padding"),
    [
        ((128, 32, 32), 131072, None, None),
        ((128, 32, 32), 131071, (2, 1), (0, 0)),
        ((128, 32, 32), 4096, (8, 4), (0, 0)),
        ((128, 32, 32), 2048, (8, 8), (0, 0)),
        ((16, 28, 28), 256, (8, 8), (4, 4)),
        ((16, 7, 7), 64, (4, 4), (2, 2)),
        ((16, 3, 3), 96, (2, 1), (1, 0)),
        ((512, 1, 1), 10, None, None),
        ((512, 2, 2), 1, (2, 2), (0, 0)),
        ((4, 1, 9), 4, None, None),
    ],
)
def test_decoder_pooling_by_hand(
    shape: tuple[int, int, int],
    limit: int,
    kernel: tuple[int, int] | None,
    padding: tuple[int, int] | None,
) -> None:
    spec = decoder_pool(shape, limit)
    assert (spec and spec.kernel, spec and spec.padding) == (kernel, padding)


sides = st.integers(1, 40)
shapes = st.tuples(st.integers(1, 6), sides, sides)


@given(shape=shapes, limit=st.integers(1, 10_000))
def test_decoder_pooling_keeps_to_the_limit_where_the_height_allows(
    shape: tuple[int, int, int], limit: int
) -> None:
    spec = decoder_pool(shape, limit)
    kernel_h, kernel_w = spec.kernel if spec else (1, 1)
    remaining = prod(spec.out_shape(shape) if spec else shape)
    assert remaining <= limit or kernel_h >= shape[1]
    assert kernel_w in (kernel_h, kernel_h // 2) or kernel_h == 1


@given(shape=shapes, limit=st.integers(1, 10_000))
def test_decoder_pooling_is_no_larger_than_needed_and_torchs(
    shape: tuple[int, int, int], limit: int
) -> None:
    spec = decoder_pool(shape, limit)
    assume(spec is not None)
    assert spec is not None
    (channels, height, width), (kernel_h, kernel_w) = shape, spec.kernel
    # the last doubling was that of the width if both are equal, else that of the height
    before = (kernel_h, kernel_w // 2) if kernel_h == kernel_w else (kernel_h // 2, kernel_w)
    assert channels * ceil(height / before[0]) * ceil(width / before[1]) > limit
    pooled = F.avg_pool2d(torch.zeros(1, *shape), spec.kernel, spec.stride, spec.padding)
    assert pooled.shape[1:] == spec.out_shape(shape)
    sides = zip(shape[1:], spec.kernel, strict=True)
    assert spec.out_shape(shape)[1:] == tuple(ceil(side / kernel) for side, kernel in sides)


@given(shape=st.lists(st.integers(1, 9), min_size=2, max_size=4), limit=st.integers(1, 200))
def test_positions_are_averaged_in_runs_until_they_fit(shape: list[int], limit: int) -> None:
    assume(len(shape) != 3)
    *sides, features = shape
    positions = prod(sides)
    spec = decoder_pool(tuple(shape), limit)
    run = spec.kernel[0] if spec else 1
    remaining = ceil(positions / run)
    assert remaining * features <= limit or remaining == 1
    assert run == 1 or ceil(positions * 2 / run) * features > limit
    h = torch.randn(2, positions, features)
    pooled = pool(h, spec)
    assert pooled.shape[1:] == (remaining, features)
    if positions % run == 0:
        torch.testing.assert_close(pooled, h.unflatten(1, (-1, run)).mean(2))


def test_zeros_of_the_padding_count_in_the_average() -> None:
    spec = decoder_pool((1, 3, 3), 4)
    assert spec == PoolSpec("average", (2, 2), (2, 2), (1, 1))
    pooled = pool(torch.ones(1, 1, 3, 3), spec)
    assert pooled.tolist() == [[[[0.25, 0.5], [0.5, 1.0]]]]


def test_names_say_kind_and_width() -> None:
    names = [spec.name for spec in specs_of(name="vgg", layers=[8, "M"], hidden=16)]
    assert names == ["conv 3→8", "linear 2048→16", "output 16→10"]


# --- data of a user's own -----------------------------------------------------------------

MLP, GLOB = {"name": "mlp", "hidden": 8}, {"name": "glob"}


def own_specs(facts: DataFacts, model: dict[str, Any], loss: dict[str, Any]) -> tuple[Any, ...]:
    tree = {"model": model, "loss": loss, "data": {"factory": "nowhere:f"}}
    return network_specs(build_config(tree, "test"), facts)


@pytest.mark.parametrize("shape", [(7,), (5, 4), (3, 4, 5), (2, 3, 4, 5)])
def test_an_mlp_takes_examples_of_any_shape(shape: tuple[int, ...]) -> None:
    first, output = own_specs(DataFacts(shape, 4, 9, 0, dtype="float32"), MLP, {"name": "pred"})
    assert (first.in_shape, first.layer.in_features) == (shape, prod(shape))
    assert output.shape == (4,)


def test_numbers_are_predicted_by_as_many_outputs() -> None:
    facts = DataFacts((7,), 0, 9, 0, dtype="float32", target_shape=(2, 3), target_dtype="float32")
    assert own_specs(facts, MLP, GLOB)[-1].shape == (6,)


@pytest.mark.parametrize(
    ("changes", "model", "loss", "says"),
    [
        ({"dtype": "int64", "tokens": 3}, MLP, GLOB, "model.name mlp: computes with measurements"),
        ({}, {"name": "vgg8b"}, GLOB, "model.name vgg8b: is for images of (channels, height, wid"),
        ({"shape": (4, 4)}, {"name": "resnet18"}, GLOB, "has shape (4, 4): use model.name mlp"),
        ({"target_shape": (3,)}, MLP, GLOB, "predicts one class for each example, and a target"),
        ({"target_shape": (3,)}, MLP, {"rule": "DGL"}, "or a rule without an output layer"),
        ({"target_shape": (3,)}, MLP, {"name": "sim"}, "a target is int64 of shape (3,): use a"),
        (
            {"target_dtype": "float32", "classes": 0},
            MLP,
            {"name": "pred"},
            "loss.name pred: learns from one class for each example, and a target is float32 of "
            "shape (): use a rule (loss.rule), or global backprop (loss.name glob)",
        ),
        (
            {"target_dtype": "float32", "classes": 0},
            MLP,
            {**GLOB, "label_smoothing": 0.1},
            "loss.label_smoothing smooths classes, and the targets are numbers",
        ),
    ],
)
def test_networks_and_losses_that_are_not_made_for_such_data(
    changes: dict[str, Any], model: dict[str, Any], loss: dict[str, Any], says: str
) -> None:
    given = {"shape": (7,), "classes": 4, "train_images": 9, "test_images": 0, "dtype": "float32"}
    with pytest.raises(ConfigError) as caught:
        own_specs(DataFacts(**{**given, **changes}), model, loss)
    assert says in str(caught.value)
