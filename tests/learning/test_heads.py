"""Local classifiers with hidden layers: their sizes, their start, what they cost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.blocks import block_of, specs_of
from torch import nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.kernels.recompute import Activation
from pipeline.learning.heads import PredHead, heads_of, similarity_map
from pipeline.network.from_config import decoder_pool
from pipeline.network.specs import PredSpec, SimSpec
from pipeline.planning.cost import block_costs

if TYPE_CHECKING:
    from pipeline.network.specs import BlockSpec

SMALL_VGG = {"name": "vgg", "layers": [4, "M", 6], "hidden": 5}
"""Three hidden blocks; with 16 inputs their classifiers see 4x2x2, 6x1x2 and 5 numbers."""


def specs(
    pred_hidden: Any, model: dict[str, Any] | None = None, **loss: Any
) -> tuple[BlockSpec, ...]:
    loss = {"name": "pred", "dim_in_decoder": 16, "pred_hidden": pred_hidden, **loss}
    return specs_of({**SMALL_VGG, **(model or {})}, loss, (3, 4, 4), 10)


def hidden_of(built: tuple[BlockSpec, ...]) -> list[tuple[int, ...] | None]:
    return [spec.pred.hidden if spec.pred else None for spec in built]


# --- which blocks have which --------------------------------------------------------------


@pytest.mark.parametrize(
    ("pred_hidden", "expected"),
    [
        ([], [(), (), (), None]),
        (8, [(8,), (8,), (8,), None]),
        ([8, 7], [(8, 7), (8, 7), (8, 7), None]),
        ([[8], [], [7, 6]], [(8,), (), (7, 6), None]),
        ([[], [], []], [(), (), (), None]),
    ],
)
def test_for_all_blocks_or_for_each(pred_hidden: Any, expected: list[Any]) -> None:
    for name in ("pred", "predsim", "glob+pred"):
        assert hidden_of(specs(pred_hidden, name=name)) == expected


def test_blocks_that_learn_together_have_one_classifier() -> None:
    assert hidden_of(specs([[8], [7]], model={"group": 2})) == [None, (8,), (7,), None]


@pytest.mark.parametrize(
    ("lists", "model", "blocks"),
    [([[8], [8]], {}, 3), ([[]] * 4, {}, 3), ([[8]] * 3, {"group": 2}, 2)],
)
def test_a_list_for_each_block_must_be_for_each_block(
    lists: list[list[int]], model: dict[str, Any], blocks: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        specs(lists, model=model)
    assert str(caught.value) == (
        f"loss.pred_hidden: {len(lists)} lists for {blocks} hidden blocks with a local loss; give"
        " one list for each ([] for a linear classifier), or one list for all"
    )


# --- the classifier -----------------------------------------------------------------------


def test_state_keys_of_the_last_layer_are_those_of_a_linear_classifier() -> None:
    plain, deep = (block_of(specs(hidden)[0]).state_dict() for hidden in ([], [8, 7]))
    assert {name for name in deep if "hidden" not in name} == plain.keys()
    shapes = {name: tuple(deep[name].shape) for name in deep if name.startswith("pred")}
    assert shapes == {
        "pred.weight": (10, 7),
        "pred.bias": (10,),
        "pred.hidden.0.weight": (8, 16),
        "pred.hidden.0.bias": (8,),
        "pred.hidden.1.weight": (7, 8),
        "pred.hidden.1.bias": (7,),
    }


def test_the_last_layer_starts_at_zero_and_the_hidden_ones_as_torch_draws_them() -> None:
    state = block_of(specs([400])[0]).state_dict()
    assert not state["pred.weight"].any()
    bound = 16**-0.5
    assert 0.95 * bound < state["pred.hidden.0.weight"].abs().max() <= bound
    assert 0.9 * bound < state["pred.hidden.0.bias"].abs().max() <= bound


@pytest.mark.parametrize("nonlinearity", ["relu", "leaky_relu"])
def test_hidden_layers_have_the_non_linearity_of_the_block(nonlinearity: str) -> None:
    block = block_of(specs([8], model={"nonlinearity": nonlinearity})[0])
    head = block.pred
    assert head is not None
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))
    h = torch.randn(3, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    state = block.state_dict()
    x = F.avg_pool2d(h, 2).flatten(1)
    x = x @ state["pred.hidden.0.weight"].T + state["pred.hidden.0.bias"]
    x = torch.where(x > 0, x, x * (0.01 if nonlinearity == "leaky_relu" else 0))
    torch.testing.assert_close(head(h), x @ state["pred.weight"].T + state["pred.bias"])


# --- positions with features ---------------------------------------------------------------


def token_heads() -> tuple[PredHead, nn.Module]:
    """Of an activation (2, 1, 3, 4): 6 positions, of which a classifier with 12 inputs sees 3."""
    pool = decoder_pool((2, 1, 3, 4), 12)
    return PredHead(PredSpec(pool, 12, 5, 1.0)), similarity_map(SimSpec("linear", 4, 1.0))


def test_heads_of_tokens_are_what_they_are_said_to_be() -> None:
    pred, sim = token_heads()
    nn.init.normal_(pred.weight, generator=torch.Generator().manual_seed(1))
    h = torch.randn(8, 2, 1, 3, 4, generator=torch.Generator().manual_seed(2))
    logits, mapped = heads_of(Activation(h), pred, sim)
    assert logits is not None
    assert mapped is not None
    averages = h.view(8, 3, 2, 4).mean(2).flatten(1)
    torch.testing.assert_close(logits, averages @ pred.weight.T + pred.bias)
    torch.testing.assert_close(mapped, torch.einsum("nabcd,ed->nabce", h, sim.weight))


def test_similarity_of_tokens_costs_a_product_at_each_position() -> None:
    built = specs([], {"layers": [4]}, name="sim")[0]
    tokens = replace(built, shape=(2, 1, 3, 4), sim=SimSpec("linear", 4, 1.0))
    given = {"batch_size": 2, "element_bytes": 4, "optimizer_name": "adam", "backprop": False}
    (cost,), (without,) = block_costs([tokens], **given), block_costs([built], **given)
    assert cost.head_parameters == 16
    assert (cost.train_macs - 2 * cost.forward_macs) == 3 * 16 * 6
    assert without.head_parameters == 9 * 16


# --- what it costs ------------------------------------------------------------------------


def test_costs_by_hand() -> None:
    given = {"batch_size": 2, "element_bytes": 4, "optimizer_name": "adam", "backprop": False}
    plain, deep = (block_costs(specs(hidden), **given)[0] for hidden in ([], [8, 7]))
    weights = 16 * 8 + 8 * 7 + 7 * 10
    assert plain.head_parameters == 16 * 10 + 10
    assert deep.head_parameters == weights + 8 + 7 + 10
    assert deep.train_macs - plain.train_macs == 3 * (weights - 16 * 10)
    assert deep.activation_bytes - plain.activation_bytes == (8 + 7) * 2 * 4
    assert (deep.parameters, deep.forward_macs) == (plain.parameters, plain.forward_macs)


@pytest.mark.parametrize("name", ["pred", "predsim"])
def test_parameters_are_those_of_the_blocks(name: str) -> None:
    built = specs([[8], [], [7, 6]], name=name)
    costs = block_costs(built, batch_size=2, element_bytes=4, optimizer_name="adam", backprop=False)
    for spec, cost in zip(built, costs, strict=True):
        counted = sum(parameter.numel() for parameter in block_of(spec).parameters())
        assert counted == cost.parameters + cost.head_parameters
