"""What a block may touch, draw and send; how its state is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.blocks import CPU, block_of, ignored, loss_of, specs_of, stage_of
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.kernels.memory_layout import is_channels_last
from pipeline.learning.augment import Preprocess
from pipeline.learning.block_file import decode_block, encode_block
from pipeline.learning.stage import Stage, learn

if TYPE_CHECKING:
    from pipeline.learning.block import Block
    from pipeline.network.specs import BlockSpec


IMAGE = (2, 6, 6)
CLASSES = 3


def specs(dropout: float = 0.3, loss: str = "predsim") -> tuple[BlockSpec, ...]:
    """Two convolutions (one pooled), a linear block and the output."""
    model = {"name": "vgg", "layers": [5, 6, "M"], "hidden": 8, "dropout": dropout}
    return specs_of(model, {"name": loss, "dim_in_decoder": 40}, IMAGE, CLASSES)


DEFAULTS: dict[str, Any] = {"dtype": torch.float32, "optimizer": "adam", "momentum": 0.9}


def made(spec: BlockSpec, **given: Any) -> Block:
    return block_of(spec, **{**DEFAULTS, **given})


def staged(*, dropout: float = 0.3, loss: str = "predsim", last: int | None = None) -> Stage:
    return stage_of(specs(dropout, loss)[:last], **DEFAULTS)


def batch(seed: int = 0, n: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(n, *IMAGE, generator=generator),
        torch.randint(CLASSES, (n,), generator=generator),
    )


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def nowhere(x: Tensor) -> None:
    raise AssertionError("the stage with the output block sends nothing")


# --- initial state ------------------------------------------------------------------------


def test_initial_weights_belong_to_seed_and_block_index() -> None:
    all_specs = specs()
    alone = [copied(made(spec).state()) for spec in all_specs]
    torch.manual_seed(99)
    backwards = [copied(made(spec).state()) for spec in reversed(all_specs)][::-1]
    assert all(same(one, other) for one, other in zip(alone, backwards, strict=True))
    other_seed = made(all_specs[0], seed=2).state()
    assert not torch.equal(other_seed["encoder.weight"], alone[0]["encoder.weight"])


def test_blocks_of_equal_shape_begin_differently() -> None:
    model = {"name": "mlp", "hidden_layers": 2, "hidden": 8}
    first, second, _ = specs_of(model, {"name": "pred"}, (8,), CLASSES)
    one, other = made(first).state(), made(second).state()
    assert not torch.equal(one["encoder.weight"], other["encoder.weight"])


def test_building_a_block_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    made(specs()[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_state_names_every_tensor() -> None:
    parameters = ["encoder.bias", "encoder.weight", "pred.bias", "pred.weight", "sim.weight"]
    parameters += ["bn.bias", "bn.weight"]
    statistics = ["bn.num_batches_tracked", "bn.running_mean", "bn.running_var"]
    quantities = ("exp_avg", "exp_avg_sq", "step")
    optimizer = [f"optimizer.{name}.{quantity}" for name in parameters for quantity in quantities]
    assert sorted(made(specs()[0]).state()) == sorted(parameters + statistics + optimizer)


# --- training and evaluating --------------------------------------------------------------


def test_what_is_passed_on_is_pooled_dropped_out_and_channels_last() -> None:
    block = made(specs(dropout=0.4)[1])
    h = torch.rand(4, 6, 6, 6)
    passed = block.transfer(h, batch_id=1)
    assert is_channels_last(passed)
    dropped = h * block.dropout.mask(h, 1) * block.dropout.scale
    assert block.dropout.scale == pytest.approx(1 / 0.6)
    assert torch.equal(passed, torch.nn.functional.max_pool2d(dropped, 2))


@pytest.mark.parametrize("loss", ["predsim", "glob"])
def test_evaluation_leaves_every_tensor_unchanged(loss: str) -> None:
    stage = staged(loss=loss)
    stage.train(*batch(), batch_id=1, lr=0.01, send=nowhere)
    before = {index: copied(state) for index, state in stage.state().items()}
    tallies = stage.training.read()
    generator = torch.get_rng_state()
    stage.evaluate(*batch(seed=5), send=nowhere)
    assert all(same(before[index], state) for index, state in stage.state().items())
    assert stage.training.read() == tallies
    assert torch.equal(torch.get_rng_state(), generator)
    assert [(tally.block, tally.images) for tally in stage.evaluation.read()] == [(3, 7)]


def test_evaluating_in_between_does_not_change_training() -> None:
    plain, interrupted = staged(), staged()
    for batch_id in (1, 2, 3):
        plain.train(*batch(batch_id), batch_id=batch_id, lr=0.01, send=nowhere)
        interrupted.evaluate(*batch(seed=50), send=nowhere)
        interrupted.train(*batch(batch_id), batch_id=batch_id, lr=0.01, send=nowhere)
    states = zip(plain.state().values(), interrupted.state().values(), strict=True)
    assert all(same(one, other) for one, other in states)


def test_what_is_sent_is_detached_and_older_than_the_update() -> None:
    stage = staged(last=2)
    before = [copied(block.state()) for block in stage.blocks]
    sent: list[Tensor] = []

    def record(x: Tensor) -> None:
        # the first block has learned, the last has not: only its batch statistics moved
        assert not x.requires_grad
        assert x.grad_fn is None
        assert not torch.equal(
            stage.blocks[0].state()["encoder.weight"], before[0]["encoder.weight"]
        )
        last = stage.blocks[1].state()
        fixed = [name for name in last if "running" not in name and "tracked" not in name]
        assert all(torch.equal(last[name], before[1][name]) for name in fixed)
        sent.append(x.clone())

    x, labels = batch()
    stage.train(x, labels, batch_id=4, lr=0.1, send=record)
    assert len(sent) == 1
    assert not torch.equal(stage.blocks[1].state()["encoder.weight"], before[1]["encoder.weight"])

    # the same again by hand, with the weights from before the batch
    expected = x
    for spec in specs()[:2]:
        block = made(spec)
        expected = block.transfer(block(expected, batch_id=1).detach(), batch_id=4)
    assert torch.equal(sent[0], expected)


def test_what_is_sent_is_detached_even_where_it_is_the_activation_itself() -> None:
    """Without dropout and pooling nothing is computed in between."""
    stage, sent = staged(dropout=0.0, last=1), []
    stage.train(*batch(), batch_id=1, lr=0.1, send=sent.append)
    assert not sent[0].requires_grad
    assert sent[0].grad_fn is None


def test_a_block_learns_its_own_parameters_only() -> None:
    first, second = made(specs()[0]), made(specs()[1])
    x, labels = batch()
    x = first.transfer(first(x, batch_id=1).detach(), batch_id=1)
    before = copied(first.state())
    h = second(x, batch_id=1)
    mine = copied(dict(second.named_parameters()))
    learn([second], loss_of(second, h, labels, h).loss, 0.01)
    assert same(first.state(), before)
    moved = [name for name, p in second.named_parameters() if not torch.equal(p, mine[name])]
    # Adam's first step is the learning rate in the direction of every gradient that is not zero
    assert set(moved) == set(mine)
    assert all(parameter.grad is None for parameter in second.parameters())


def test_inputs_are_not_modified() -> None:
    x, labels = batch()
    before = x.clone(), labels.clone()
    stage = staged()
    stage.train(x, labels, batch_id=1, lr=0.01, send=nowhere)
    stage.evaluate(x, labels, send=nowhere)
    assert torch.equal(x, before[0])
    assert torch.equal(labels, before[1])


def test_failure_names_the_block_at_work() -> None:
    stage = staged()
    x, _ = batch()
    wrong = torch.full((7,), CLASSES)  # no such class: the first block's loss refuses
    with pytest.raises((IndexError, RuntimeError)):
        stage.train(x, wrong, batch_id=1, lr=0.01, send=nowhere)
    assert stage.at_work == 0
    stage = staged()
    stage.train(*batch(), batch_id=1, lr=0.01, send=nowhere)
    assert stage.at_work is None


def test_first_stage_prepares_images() -> None:
    preprocess = Preprocess((0.5, 0.25), (0.5, 0.25), flip=True, seed=1, device=CPU)
    prepared = Stage([made(specs()[0])], preprocess)
    plain = Stage([made(specs()[0])], None)
    images = torch.randint(256, (7, *IMAGE), dtype=torch.uint8)
    _, labels = batch()
    sent: list[Tensor] = []
    prepared.train(images, labels, batch_id=3, lr=0.01, send=sent.append)
    plain.train(preprocess.train(images, 3), labels, batch_id=3, lr=0.01, send=sent.append)
    prepared.evaluate(images, labels, send=sent.append)
    plain.evaluate(preprocess.evaluate(images), labels, send=sent.append)
    assert torch.equal(sent[0], sent[1])
    assert torch.equal(sent[2], sent[3])
    assert not torch.equal(sent[0], sent[2])


# --- loading ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "amsgrad", "sgd"])
def test_optimizer_state_is_the_whole_history(name: str) -> None:
    """A block loaded with another's state goes on exactly as the other."""
    spec = specs()[0]
    one, other = (made(spec, seed=seed, optimizer=name, weight_decay=0.01) for seed in (1, 2))
    stage = Stage([one], None)
    for batch_id in (1, 2):
        stage.train(*batch(batch_id), batch_id=batch_id, lr=0.01, send=ignored)
    other.seed = one.seed
    other.load(decode_block(encode_block(one.state())))
    assert same(one.state(), other.state())
    stage.train(*batch(3), batch_id=3, lr=0.01, send=ignored)
    Stage([other], None).train(*batch(3), batch_id=3, lr=0.01, send=ignored)
    assert same(one.state(), other.state())


def test_equal_states_give_equal_bytes() -> None:
    one, other = made(specs()[0]).state(), made(specs()[0]).state()
    assert encode_block(one) == encode_block(dict(reversed(other.items())))
    other["encoder.bias"][0] += 1.0
    assert encode_block(one) != encode_block(other)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sim.weight": None}, r".* differ in \['sim.weight'\]"),
        ({"extra": torch.zeros(1)}, r".* differ in \['extra'\]"),
        (
            {"encoder.bias": torch.zeros(4)},
            r"encoder.bias is torch.float32 \(4,\) in the checkpoint, torch.float32 \(5,\) in the",
        ),
        (
            {"encoder.bias": torch.zeros(5, dtype=torch.float64)},
            r"encoder.bias is torch.float64 \(5,\) in",
        ),
        ({"encoder.bias": torch.zeros(5, 1)}, r"encoder.bias is torch.float32 \(5, 1\) in"),
        ({"encoder.bias": torch.zeros(())}, r"encoder.bias is torch.float32 \(\) in"),
    ],
)
def test_load_refuses_other_names_shapes_and_types(
    changed: dict[str, Tensor | None], said: str
) -> None:
    block = made(specs()[0])
    given = {**copied(block.state()), **changed}
    with pytest.raises(CheckpointError, match=f"block 0: {said}"):
        block.load({name: tensor for name, tensor in given.items() if tensor is not None})


def test_a_refused_state_changes_nothing() -> None:
    block = made(specs()[0])
    state = copied(block.state())
    changed = {name: tensor + 1 for name, tensor in state.items()}
    *_, last = block.state()
    with pytest.raises(CheckpointError, match=last):
        block.load({**changed, last: torch.zeros(99)})
    assert same(block.state(), state)


@pytest.mark.parametrize("data", [b"", b"junk", b"\x00" * 100, b"\xff" * 16])
def test_what_is_no_block_file_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="not a block file"):
        decode_block(data)


@pytest.mark.parametrize("optimizer", ["adam", "amsgrad", "sgd"])
def test_a_block_that_rests_holds_no_optimizer_state(optimizer: str) -> None:
    block = made(specs()[0], optimizer=optimizer)
    x, labels = batch()

    def step() -> None:
        h = block(x, batch_id=1)
        learn([block], loss_of(block, h, labels, x).loss, 0.01)

    step()
    moved = copied(block.state())
    block.release_optimizer()
    rested = block.state()
    assert moved.keys() == rested.keys()
    state = [name for name in rested if name.startswith("optimizer.")]
    assert any(moved[name].any() for name in state)
    assert not any(rested[name].any() for name in state)
    block.load(moved)  # holds it again
    assert same(moved, block.state())
