"""Blocks that are named by index: the frozen ones, and lines about those that can't be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError
from pipeline.network.from_config import network_specs
from pipeline.network.tensor_names import is_weight

if TYPE_CHECKING:
    from pipeline.network.specs import BlockSpec

MLP: dict[str, Any] = {"name": "mlp", "hidden_layers": 4, "hidden": 6}
WIDE: dict[str, Any] = {"name": "wrn-10-1", "preactivation": True}


def specs_of(model: dict[str, Any], **loss: Any) -> tuple[BlockSpec, ...]:
    data = {"name": "synthetic", "size": 8, "channels": 3, "classes": 3}
    tree = {"model": model, "loss": loss or {"name": "predsim"}, "data": data}
    config = build_config(tree, "test")
    return network_specs(config, data_facts(config.data))


def test_frozen_blocks_have_no_heads_and_the_same_shapes() -> None:
    plain, frozen = specs_of(MLP), specs_of({**MLP, "freeze": [0, 2]})
    assert [spec.frozen for spec in frozen] == [True, False, True, False, False]
    assert (frozen[0].pred, frozen[0].sim, frozen[0].has_loss) == (None, None, False)
    assert frozen[1] == plain[1]
    assert [(s.in_shape, s.out_shape) for s in frozen] == [(s.in_shape, s.out_shape) for s in plain]
    assert not frozen[0].normalises  # by the batch: a batch of one may pass


@pytest.mark.parametrize(
    ("model", "loss", "says"),
    [
        (
            {**MLP, "freeze": [7]}, {},
            "model.freeze: there is no block 7; the network has blocks 0 to 4 (4 is the output la",
        ),
        ({**MLP, "freeze": [4]}, {}, "model.freeze: block 4 is the output layer, and has to learn"),
        (
            {**MLP, "freeze": [0, 1, 2, 3, 4]}, {},
            "model.freeze: block 4 is the output layer, and has to learn: freeze blocks before it",
        ),
        (
            {**MLP, "freeze": [3]}, {"rule": "ForwardForward"},
            "model.freeze: block 3 is what the network predicts by, and has to learn",
        ),
        (
            {**MLP, "group": 2, "freeze": [0, 1, 2]}, {},
            "model.freeze: blocks 2 to 3 learn together (model.group): freeze all of them, or none",
        ),
    ],
)  # fmt: skip
def test_what_can_t_be_frozen_is_said(model: dict[str, Any], loss: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        specs_of(model, **loss)
    assert str(caught.value).startswith(says)


def test_whole_groups_may_be_frozen() -> None:
    frozen = specs_of({**MLP, "group": 2, "freeze": [0, 1]})
    assert [spec.frozen for spec in frozen] == [True, True, False, False, False]
    assert [spec.same_group for spec in frozen] == [False, True, False, True, False]


def test_a_rule_that_only_teaches_goes_with_the_heads() -> None:
    """DGL reads activations; Forward-Forward changes what blocks compute on."""
    teaching, changing = (
        specs_of({**MLP, "freeze": [0]}, rule=rule) for rule in ("DGL", "ForwardForward")
    )
    assert teaching[0].rule is None
    assert teaching[1].rule is not None
    assert changing[0].rule is not None
    assert not changing[0].has_loss


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("encoder.weight", "bn.running_mean", "shortcut.0.bias", "tail.1.weight"), True),
        (("pred.weight", "sim.weight", "projection.weight", "recon.bias"), False),
        (("optimizer.encoder.weight.exp_avg", "optimizer.bn.weight.step"), False),
    ],
)
def test_names_say_what_a_network_computes_with(names: tuple[str, ...], expected: bool) -> None:
    spec = specs_of(MLP)[0]
    assert [is_weight(spec, name) for name in names] == [expected] * len(names)


def test_a_batch_norm_that_only_heads_read_is_no_weight() -> None:
    *_, last = (spec for spec in specs_of(WIDE) if spec.passes_raw and spec.activates_input)
    assert last.norms_output
    assert not is_weight(last, "bn.weight")
    assert is_weight(last, "bn_input.weight")


def test_a_rule_is_a_weight_where_the_network_computes_or_predicts_with_it() -> None:
    dgl, forward = (specs_of(MLP, rule=rule) for rule in ("DGL", "ForwardForward"))
    name = "rule.weight"
    assert not is_weight(dgl[0], name)
    assert is_weight(forward[0], name)
