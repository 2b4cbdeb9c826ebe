"""What is wrong with a local rule is said before anything starts; what is right gives shapes."""

from __future__ import annotations

from typing import Any

import pytest
from support import rules
from torch import nn

from pipeline.config.sections import Config, build_config
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError
from pipeline.network.from_config import network_specs
from pipeline.network.rule_shapes import make_rule
from pipeline.network.specs import Arrival, CarriedSpec
from pipeline.planning.cost import block_costs
from pipeline.rules import SHIPPED

DATA = {"name": "synthetic", "size": 4, "channels": 1, "classes": 3}


TREE: dict[str, Any] = {"model": {"name": "mlp", "hidden_layers": 2, "hidden": 6}, "data": DATA}


def config_of(rule: str, options: dict[str, Any] | None = None, **model: Any) -> Config:
    loss = {"rule": rule, "options": options or {}}
    return build_config({**TREE, "model": {**TREE["model"], **model}, "loss": loss}, "test")


def specs_of(kind: type, options: dict[str, Any] | None = None, **model: Any) -> Any:
    config = config_of(f"{rules.__name__}:{kind.__name__}", options, **model)
    return network_specs(config, data_facts(config.data))


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (rules.NotARule, {}, "NotARule is not a LocalRule; make it a subclass of pipeline.LocalR"),
        (rules.Raising, {}, "RuntimeError: no rule for (6,)"),
        (rules.Plain, {"width": 3}, "has no option 'width'; it has none"),
        (rules.EveryHook, {"nose": 3}, "has no option 'nose'; it has noise"),
        (rules.Needy, {}, "needs the option 'width': give it in loss.options"),
        (rules.ManyLosses, {}, "block 0: loss gives a Tensor of shape (2,): a scalar is needed"),
        (rules.Infinite, {}, "block 0: loss gives inf for numbers between 0 and 1"),
        (rules.Detached, {}, "block 0: loss has no gradient for the activation, so the block wou"),
        (rules.Silent, {}, "block 0: neither loss nor update gives anything to learn from"),
        (rules.Unset, {}, "carries 'image', which was never set: set it in expand"),
        (rules.Unnamed, {}, "puts 'image' into batch.carry: name it in carries, too"),
        (rules.Number, {}, "carries 'image' as a int, not as a tensor"),
        (rules.Half, {}, "carries 'image' of torch.float16; what travels is uint8, int64, float3"),
        (rules.Retyped, {}, "block 0: leave makes torch.float32 of image a torch.float64: what"),
        (rules.Flattening, {}, "block 0: enter gives (2, 32) for 2 rows, and the block takes (2, "),
        (rules.OddScores, {}, "block 0: scores are a tensor (1, 3) of float32; (2, 3) of real num"),
        (rules.WholeScores, {}, "block 0: scores are a tensor (2, 3) of int64; (2, 3) of real nu"),
        (rules.WideScores, {}, "block 0: scores are a tensor (2, 6) of float32; (2, 3) of real nu"),
        (rules.Narrowing, {}, "block 1: loss: IndexError: "),
        (rules.OddOptimizer, {}, "ValueError: OwnOptimizer: 'banana' is none of adam, adamw, sgd"),
        (rules.Copying, {}, "expand makes 2 rows of each example, and an output layer needs one"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    kind: type, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        specs_of(kind, options)
    assert str(caught.value).startswith(f"loss.rule {rules.__name__}:{kind.__name__}: {says}")


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("Nonesuch", f"loss.rule Nonesuch: is no shipped rule; these are {', '.join(SHIPPED)};"),
        ("not_there:Rule", "loss.rule not_there:Rule: ModuleNotFoundError: No module named"),
        ("support.rules:Nonesuch", "loss.rule support.rules:Nonesuch: support.rules ("),
    ],
)
def test_a_rule_that_is_not_there(rule: str, says: str) -> None:
    config = config_of(rule)
    with pytest.raises(ConfigError) as caught:
        network_specs(config, data_facts(config.data))
    assert str(caught.value).startswith(says)


def test_rows_and_what_is_carried_are_known_for_every_block() -> None:
    first, second = specs_of(rules.EveryHook)
    assert not second.is_output
    assert second.is_last
    labels = CarriedSpec("label", "int64", 2, ())
    assert first.in_training == Arrival(
        2, (CarriedSpec("seen", "float32", 2, (2,)), labels), (1, 4, 4)
    )
    assert first.leaves_in_training.carried[0].shape == (3,)
    assert second.in_tests.rows == 3
    assert second.in_tests.carried[0] == CarriedSpec("seen", "float32", 3, (3,))
    assert second.rule is not None
    assert (second.rule.in_shape, second.rule.blocks, second.rule.parameters) == ((6,), 2, 21)


def test_in_groups_the_last_block_has_the_rule() -> None:
    specs = specs_of(rules.Plain, hidden_layers=3, group=2)
    assert [spec.rule is not None for spec in specs] == [False, True, True, False]
    assert specs[1].rule is not None
    assert specs[1].rule.in_shape == (1, 4, 4)
    assert [spec.has_loss for spec in specs] == [False, True, True, True]


def test_rules_are_counted_by_groups() -> None:
    """So that what is said of the first and the last block is so of the first and last rule."""
    config = config_of("AugLocal", {"depth": 3, "least": 1}, hidden_layers=6, group=2)
    specs = network_specs(config, data_facts(config.data))
    made = [make_rule(spec) for spec in specs if spec.rule]
    assert [(rule.place.index, rule.place.blocks) for rule in made] == [(1, 6), (3, 6), (5, 6)]
    assert [(rule.place.nth, rule.place.rules) for rule in made] == [(0, 3), (1, 3), (2, 3)]
    layers = [sum(isinstance(part, nn.Linear) for part in rule.modules()) for rule in made]
    assert layers == [4, 3, 2], "3, 2 and 1 hidden ones, and a classifier"


def test_all_shipped_rules_are_named() -> None:
    from pipeline import rules as shipped

    found = {name: getattr(shipped, name).__module__ for name in SHIPPED}
    assert found == {name: f"pipeline.rules.{file}" for name, file in SHIPPED.items()}
    with pytest.raises(AttributeError):
        shipped.Nonesuch  # noqa: B018


def test_what_a_rule_costs_is_counted_for_an_example() -> None:
    first, second = specs_of(rules.Plain)[:2]
    assert first.rule is not None
    assert first.rule.parameters == 6 * 3 + 3
    assert first.rule.forward_macs == 6 * 3
    plain = build_config({**TREE, "loss": {"name": "pred"}}, "test")
    costs = [
        block_costs(specs, batch_size=8, element_bytes=4, optimizer_name="adam", backprop=False)[:2]
        for specs in ((first, second), network_specs(plain, data_facts(plain.data)))
    ]
    # a rule that does what pred does costs as much
    for ours, builtin in zip(*costs, strict=True):
        assert ours.train_macs == builtin.train_macs
        assert ours.head_parameters == builtin.head_parameters
        assert ours.sent_bytes == builtin.sent_bytes


@pytest.mark.parametrize(("name", "several"), [("mlp", False), ("vgg", True)])
def test_a_rule_with_batch_norm_takes_several_images(name: str, several: bool) -> None:
    """Its convolutions have them, its linear layers have none."""
    layers = {"layers": [4], "hidden_layers": 0} if name == "vgg" else {}
    config = config_of("DGL", name=name, batch_norm=False, **layers)
    assert network_specs(config, data_facts(config.data))[0].normalises == several


def test_copies_of_examples_are_counted() -> None:
    once, copied = specs_of(rules.Plain)[0], specs_of(rules.EveryHook)[0]
    (one,), (both,) = (
        block_costs([spec], batch_size=8, element_bytes=4, optimizer_name="adam", backprop=False)
        for spec in (once, copied)
    )
    assert both.forward_macs == 2 * one.forward_macs
    # two rows of six numbers, and of what is carried two of three and two labels
    assert both.sent_bytes == 2 * 6 * 4 + 2 * 3 * 4 + 2 * 8
