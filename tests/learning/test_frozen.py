"""Blocks that learn nothing: they compute in training as in a test, and cost no state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.blocks import block_of, ignored, specs_of

from pipeline.learning.stage import Stage
from pipeline.network.named_blocks import with_frozen

if TYPE_CHECKING:
    from torch import Tensor

VGG = {"name": "vgg", "layers": [4, "M", 6], "hidden": 8, "dropout": 0.3}
RESNET = {"name": "resnet18", "feat_mult": 0.05, "dropout": 0.2}
SHAPE, CLASSES = (3, 6, 6), 4


def stage(freeze: Any = (), model: Any = VGG, first: int = 0, seed: int = 3) -> Stage:
    specs = specs_of(model, {"name": "predsim", "dim_in_decoder": 32}, SHAPE, CLASSES)
    specs = with_frozen(specs, freeze)
    return Stage([block_of(spec, seed=seed, optimizer="adam") for spec in specs[first:]], None)


def stirred(made: Stage) -> Stage:
    """With statistics of batch norms that are not as they begin."""
    for block in made.blocks:
        for name, buffer in block.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return made


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(8, *SHAPE, generator=generator, dtype=torch.float64), torch.arange(8) % 4


def bits(made: Stage) -> dict[tuple[int, str], bytes]:
    return {
        (index, name): tensor.numpy().tobytes()
        for index, tensors in made.state().items()
        for name, tensor in tensors.items()
    }


def test_what_follows_learns_as_from_what_a_test_would_pass_on() -> None:
    """The last blocks, fed with what the first give in an evaluation, come to the same bits."""
    whole, tests, rest = stirred(stage([0, 1])), stirred(stage([0, 1])), stirred(stage(first=2))
    first = Stage(tests.blocks[:2], None)
    for number in (1, 2, 3):
        x, y = batch(number)
        whole.train(x, y, batch_id=number, lr=0.1, send=ignored)
        sent: list[Tensor] = []
        first.evaluate(x, y, send=sent.append)
        rest.train(sent[0], y, batch_id=number, lr=0.1, send=ignored)
    found = bits(whole)
    assert {key: value for key, value in found.items() if key[0] > 1} == bits(rest)


@pytest.mark.parametrize(
    ("model", "freeze"), [(VGG, [0]), (VGG, [0, 1, 2]), (VGG, [1]), (RESNET, [2]), (RESNET, [0, 1])]
)
def test_frozen_blocks_stay_as_they_are_and_others_learn(model: Any, freeze: list[int]) -> None:
    made = stirred(stage(freeze, model))
    before = bits(made)
    x, y = batch(1)
    given = x.clone()
    made.train(x, y, batch_id=1, lr=0.1, send=ignored)
    assert torch.equal(x, given)
    changed = {key for key, value in bits(made).items() if value != before.get(key)}
    moved = {index for index, name in changed if name == "encoder.weight"}
    assert moved == {block.spec.index for block in made.blocks} - {*freeze}
    assert not {index for index, _ in changed} & {*freeze}


def test_a_frozen_block_holds_no_heads_and_no_optimizer() -> None:
    made = stage([0, 1])
    state = made.state()
    kept = {"encoder", "bn"}
    assert {name.partition(".")[0] for name in state[0]} == kept
    assert {"pred", "sim", "optimizer"} < {name.partition(".")[0] for name in state[2]}
    assert not any(parameter.requires_grad for parameter in made.blocks[0].parameters())


def test_a_frozen_block_has_a_tally_without_a_loss() -> None:
    made = stage([0])
    x, y = batch(1)
    made.train(x, y, batch_id=1, lr=0.1, send=ignored)
    made.evaluate(x, y, send=ignored)
    tallies = made.training.read()
    assert [tally.block for tally in tallies] == [0, 1, 2, 3]
    assert (tallies[0].loss, tallies[0].error_pct) == (None, None)
    assert all(tally.loss is not None for tally in tallies[1:])
    assert [tally.block for tally in made.evaluation.read()] == [3]
    made.training.reset(tallies)  # as a resumed run does
    assert made.training.read() == tallies


def test_a_stage_may_be_frozen_as_a_whole() -> None:
    specs = with_frozen(specs_of(VGG, {"name": "pred"}, SHAPE, CLASSES), [0, 1])
    made = stirred(Stage([block_of(spec) for spec in specs[:2]], None))
    x, y = batch(1)
    trained: list[Tensor] = []
    tested: list[Tensor] = []
    made.train(x, y, batch_id=1, lr=0.1, send=trained.append)
    made.evaluate(x, y, send=tested.append)
    assert torch.equal(trained[0], tested[0])
    assert not trained[0].requires_grad


def test_captured_steps_watch_only_what_can_change() -> None:
    made = stage([0, 1])
    noted = {tensor.data_ptr() for tensor in made.mutated_tensors()}
    frozen, learning = (
        {tensor.data_ptr() for block in blocks for tensor in block.parameters()}
        for blocks in (made.blocks[:2], made.blocks[2:])
    )
    assert not frozen & noted
    assert learning <= noted
