"""Rules at work: what their functions may not give, and what their numbers belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support import rules
from support.drive_rule import RuleChain
from torch import nn
from torch.nn import functional as F

from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError
from pipeline.learning.build import build_stage
from pipeline.network.from_config import network_specs
from pipeline.rules.rule import LocalRule

if TYPE_CHECKING:
    from pipeline.learning.stage import Stage

CPU = torch.device("cpu")


def stage_of(kind: type, *indices: int, **sections: Any) -> Stage:
    """Blocks of an MLP of two hidden layers of 6 units on images of 16 numbers, by a rule."""
    tree = {
        "model": {"name": "mlp", "hidden_layers": 2, "hidden": 6, "batch_norm": False},
        "loss": {"rule": f"{rules.__name__}:{kind.__name__}"},
        "data": {"name": "synthetic", "size": 4, "channels": 1, "classes": 3},
        "optimizer": {"name": "sgd", "momentum": 0.0, "lr": 0.1},
        **sections,
    }
    config = build_config(tree, "test")
    facts = data_facts(config.data)
    every = range(len(network_specs(config, facts)))
    return build_stage(config, facts, indices or every, CPU)


def batch(n: int = 5, number: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(number)
    x = torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=draws)
    return x, torch.arange(n) % 3


def trained(stage: Stage, *batches: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    sent: list[torch.Tensor] = []
    for batch_id, given in enumerate(batches, start=1):
        stage.train(*given, batch_id=batch_id, lr=0.1, send=lambda *passed: sent.extend(passed))
    return sent


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            rules.Growing,
            "carries 'image' of a tensor (5, 3) of float32 for 5 examples; (n, 2)",
        ),
        (rules.InPlace, "block 0: leave changes 'image' in place, which others may still read"),
        (rules.InPlaceLater, "block 0: changes batch.carry['image'] in place, which other blocks"),
        (rules.OtherTargets, "block 0: changes batch.y in place, which other blocks may still"),
        (rules.OwnActivation, "block 0: changes h, which is passed on, in place"),
        (rules.TargetsInEnter, "block 0: enter changes batch.y, which stays the same"),
        (rules.TargetsInLeave, "block 0: leave changes batch.y, which stays the same"),
        (rules.OneText, "carries = 'image': name each carried tensor once, in a tuple"),
        (rules.Twice, "carries = ('image', 'image'): name each carried tensor once"),
        (rules.ListCarried, "expand carries a list: a dict of tensors is needed"),
        (rules.NoModule, "its constructor does not call super().__init__(place)"),
        (rules.NamedOptimizer, "asks for the optimizer 'sgd': give an OwnOptimizer"),
        (rules.WithGraph, "block 0: carries 'image' with its graph, by which a gradient would"),
        (rules.OddDirections, "block 0: update names 'wait'; the layer has weight, bias"),
    ],
)
def test_what_may_not_be_is_named(kind: type, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trained(stage_of(kind), batch())
    assert str(caught.value).startswith(f"loss.rule {rules.__name__}:{kind.__name__}: {says}")


def test_scores_of_another_shape_are_named_in_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(rules.EveryHook)
    monkeypatch.setattr(rules.EveryHook, "scores", lambda rule, h, batch: h[:1])
    with pytest.raises(ConfigError, match=r"block 1: scores are a tensor \(1, 6\) of float32; \(5"):
        stage.evaluate(*batch(), send=lambda *passed: None)


def test_a_rule_teaches_its_block_and_itself_by_its_gradient() -> None:
    stage = stage_of(rules.Plain, 0)
    block: Any = stage.blocks[0]
    before = {name: p.detach().clone().requires_grad_() for name, p in block.named_parameters()}
    x, labels = batch()
    trained(stage, (x, labels))
    images = stage._preprocess.evaluate(x)  # type: ignore[union-attr]
    h = F.relu(F.linear(images.flatten(1), before["encoder.weight"], before["encoder.bias"]))
    scores = F.linear(h, before["rule.head.weight"], before["rule.head.bias"])
    F.cross_entropy(scores, labels).backward()
    for name, now in block.named_parameters():
        expected = before[name] - 0.1 * before[name].grad
        torch.testing.assert_close(now, expected, msg=name)
    (tally,) = stage.training.read()
    assert tally.errors == (scores.argmax(1) != labels).sum()


def test_directions_take_the_place_of_gradients_at_the_rates_of_the_rule() -> None:
    stage = stage_of(rules.EveryHook, 0)
    block: Any = stage.blocks[0]
    bias = block.encoder.bias.detach().clone()
    sent: list[torch.Tensor] = []
    stage.train(*batch(), batch_id=1, lr=0.05, send=lambda *passed: sent.extend(passed))
    direction = bias - sent[0].mean()  # no dropout, no pooling: h is sent as it is
    # half of the configured rate has come, so half of the rule's own is used; momentum begins
    torch.testing.assert_close(block.encoder.bias.detach(), bias - 0.01 * direction)


def test_what_is_carried_is_not_what_the_next_block_computes_on() -> None:
    """In two processes these are two tensors, so they are in one."""
    stage = stage_of(rules.Last)
    trained(stage, batch())
    x, carried = stage.blocks[1].rule.seen
    torch.testing.assert_close(x, 0.5 * carried, rtol=0, atol=0)
    assert x.any()


def test_numbers_belong_to_the_block_and_the_batch() -> None:
    def sent_for(batch_id: int) -> list[torch.Tensor]:
        stage, sent = stage_of(rules.EveryHook, 0), []
        stage.train(*batch(), batch_id=batch_id, lr=0.1, send=lambda *passed: sent.extend(passed))
        return sent

    torch.rand(3)  # nothing depends on what was drawn before
    once, again, other = sent_for(1), sent_for(1), sent_for(2)
    assert all(torch.equal(one, two) for one, two in zip(once, again, strict=True))
    assert not torch.equal(once[0], other[0])


def test_a_static_rule_is_given_no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    true = rules.Plain.loss

    def loss(rule: rules.Plain, h: Any, x: Any, batch: Any, generator: Any) -> Any:
        given.append(generator)
        return true(rule, h, x, batch, generator)

    stage = stage_of(rules.Plain, 0)
    monkeypatch.setattr(rules.Plain, "loss", loss)
    trained(stage, batch())
    assert given == [None]


def test_a_test_changes_nothing() -> None:
    stage = stage_of(rules.EveryHook)
    trained(stage, batch())
    before = [{k: v.clone() for k, v in block.state().items()} for block in stage.blocks]
    stage.evaluate(*batch(number=3), send=lambda *passed: None)
    for block, old in zip(stage.blocks, before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in block.state().items())
    (tally,) = stage.evaluation.read()
    assert tally.images == 5


def test_hooks_are_called_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training; when shapes are found out, where there is no layer to `update` yet; and in the
    plain loop that rules are checked by."""
    seen: list[str] = []

    class Noted(LocalRule):
        """Asks itself for nothing, so that all calls are the engine's."""

        output_layer = False

        def __getattribute__(self, name: str) -> Any:
            if name in ("enter", "leave", "update", "loss", "scores"):
                seen.append(name)
            return super().__getattribute__(name)

        def loss(self, h: Any, x: Any, batch: Any, generator: Any) -> Any:
            return h.square().mean()

        def scores(self, h: Any, batch: Any) -> Any:
            return h[:, :3]

    monkeypatch.setattr(rules, "Noted", Noted, raising=False)
    stage = stage_of(Noted)
    training, tests = ["enter", "leave", "update", "loss"], ["enter", "leave", "scores"]
    traced = [name for name in training if name != "update"]
    assert seen[:12] == 2 * [*traced, *tests]
    seen.clear()
    trained(stage, batch())
    assert seen == 2 * training
    seen.clear()
    stage.evaluate(*batch(), send=lambda *passed: None)
    assert seen == ["enter", "leave", *tests]
    seen.clear()
    chain = RuleChain(Noted, [nn.Linear(16, 6)], (16,), 3)
    chain.train(torch.rand(5, 16, dtype=torch.float64), torch.arange(5) % 3, 1)
    chain.scores(torch.rand(5, 16, dtype=torch.float64), torch.arange(5) % 3)
    assert seen == [*training, *tests]
