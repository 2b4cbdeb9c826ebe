"""What a block may touch, draw and send; its optimizers against torch's own classes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.config.sections import build_config
from pipeline.errors import CheckpointError
from pipeline.kernels import dropout
from pipeline.kernels.memory_layout import is_channels_last
from pipeline.learning.augment import Preprocess
from pipeline.learning.block import Block
from pipeline.learning.block_file import decode_block, encode_block
from pipeline.learning.optimizers import make_optimizer
from pipeline.learning.stage import Stage, learn
from pipeline.network.from_config import build_specs
from pipeline.network.specs import PoolSpec
from pipeline.seeding import Purpose, derived_seed, generator

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.network.specs import BlockSpec

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
IMAGE = (2, 6, 6)
CLASSES = 3


def specs_of(dropout: float = 0.3, loss: str = "predsim") -> tuple[BlockSpec, ...]:
    """Two convolutions (one pooled), a linear block and the output."""
    tree = {
        "model": {"name": "vgg", "layers": [5, 6, "M"], "hidden": 8, "dropout": dropout},
        "loss": {"name": loss, "dim_in_decoder": 40},
        "data": {"name": "cifar10"},
    }
    config = build_config(tree, "test")
    return build_specs(config.model, config.loss, config.nonlinearity, IMAGE, CLASSES)


def block_of(
    spec: BlockSpec, seed: int = 1, optimizer: str = "adam", weight_decay: float = 0.0
) -> Block:
    block = Block(spec, seed=seed, device=CPU, dtype=torch.float32, bf16=False)
    block.attach(
        partial(make_optimizer, optimizer, weight_decay=weight_decay, momentum=0.9)  # type: ignore[arg-type]
    )
    return block


def stage_of(*, dropout: float = 0.3, loss: str = "predsim", last: int | None = None) -> Stage:
    return Stage([block_of(spec) for spec in specs_of(dropout, loss)[:last]], None)


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


def ignored(x: Tensor) -> None:
    """For a stage whose output does not matter."""


# --- dropout ------------------------------------------------------------------------------


def test_dropout_drops_whole_channels_after_a_convolution_and_scales_the_rest() -> None:
    block = block_of(specs_of(dropout=0.4)[0])
    factors = block.transfer(torch.ones(50, 5, 6, 6), batch_id=1)
    per_channel = factors.flatten(2)
    assert torch.equal(per_channel, per_channel[:, :, :1].expand_as(per_channel))
    kept = per_channel[:, :, 0] != 0
    torch.testing.assert_close(factors[kept], torch.full_like(factors[kept], 1 / 0.6))
    assert 0.45 < kept.float().mean() < 0.75  # 250 draws of 0.6: five standard deviations
    assert kept.any(dim=1).sum() > (kept.all(dim=1)).sum()  # channels differ within an image


def test_dropout_drops_single_units_after_a_linear_block() -> None:
    block = block_of(specs_of(dropout=0.4)[2])
    factors = block.transfer(torch.ones(100, 8), batch_id=1)
    kept = factors != 0
    torch.testing.assert_close(factors[kept], torch.full_like(factors[kept], 1 / 0.6))
    assert 0.51 < kept.float().mean() < 0.69  # 800 draws of 0.6
    assert len(kept.unique(dim=0)) > 50


def test_dropout_belongs_to_seed_block_and_batch_id_not_to_history() -> None:
    spec, other_spec = specs_of()[0], specs_of()[1]
    h = torch.ones(30, 5, 6, 6)
    first = block_of(spec).transfer(h, batch_id=7)

    seasoned = block_of(spec)
    for batch_id in (1, 9, 3):
        seasoned.transfer(h, batch_id=batch_id)
    torch.rand(3)
    assert torch.equal(seasoned.transfer(h, batch_id=7), first)
    assert torch.equal(seasoned.transfer(h, batch_id=7), first)

    assert not torch.equal(seasoned.transfer(h, batch_id=8), first)
    assert not torch.equal(block_of(spec, seed=2).transfer(h, batch_id=7), first)
    wide = torch.ones(30, 6, 6, 6)
    elsewhere = block_of(other_spec).dropout.mask(wide, 7)[:, :5]
    assert not torch.equal(elsewhere, block_of(spec).dropout.mask(wide, 7)[:, :5])


@pytest.mark.parametrize("width", [1, 5, 8])
def test_dropout_draws_what_numpys_generator_gives(width: int) -> None:
    """So older runs can be trained again, whatever makes the masks faster."""
    spec, h = specs_of(dropout=0.4)[2], torch.ones(3, width)
    numbers = generator(1, Purpose.DROPOUT, spec.index, 7)
    bits = numbers.integers(0, 1 << 16, h.shape, dtype=np.uint16)
    kept = torch.from_numpy(bits >= round(0.4 * (1 << 16))).float()
    assert torch.equal(block_of(spec).dropout.mask(h, 7), kept)
    assert torch.equal(block_of(spec).transfer(h, batch_id=7), kept / 0.6)


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are worked out where they are needed, as on every device but the CPU."""
    monkeypatch.setattr(dropout, "HOST_DEVICES", frozenset())


@pytest.mark.usefixtures("on_a_device")
def test_devices_draw_splitmix64_for_seed_block_and_batch_id() -> None:
    spec, h = specs_of(dropout=0.4)[2], torch.ones(3, 5)
    key = derived_seed(1, Purpose.DROPOUT, spec.index)
    numbers = [splitmix64(key, 7, unit) for unit in range(15)]
    expected = torch.tensor([number >= 0.4 for number in numbers]).view(3, 5).float()
    assert torch.equal(block_of(spec).dropout.mask(h, 7), expected)
    assert not torch.equal(block_of(spec).dropout.mask(h, 8), expected)
    assert not torch.equal(block_of(spec, seed=2).dropout.mask(h, 7), expected)


def splitmix64(key: int, batch_id: int, unit: int) -> float:
    """In [0, 1), but for the last step, which leaves the 31 highest bits as they are; the sign of
    an int64 is its highest bit."""
    bits, all_bits = key + batch_id * 0xD1B54A32D192ED03 + unit * 0x9E3779B97F4A7C15, (1 << 64) - 1
    bits &= all_bits
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & all_bits
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & all_bits
    return (bits + (1 << 63) & all_bits) / (1 << 64)


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.9])
def test_devices_drop_what_is_asked_for_and_neighbours_have_nothing_in_common(rate: float) -> None:
    block, count = block_of(specs_of(dropout=rate)[0]), 100_000
    masks = [block.dropout.mask(torch.ones(count, 1), batch_id) for batch_id in (1, 2, 3)]
    rows = torch.stack([mask.flatten() == 0 for mask in masks]).double()
    deviation = (rate * (1 - rate) / count) ** 0.5
    assert (rows.mean(dim=1) - rate).abs().max() < 5 * deviation
    both = torch.cat([rows, rows.roll(1, dims=1)])  # other batches, and the next unit
    correlations = torch.corrcoef(both) - torch.eye(6, dtype=torch.float64)
    assert correlations.abs().max() < 5 / count**0.5


@pytest.mark.usefixtures("on_a_device")
def test_compilers_find_no_index_in_the_drawing() -> None:
    """Inductor computes `arange * constant` in 32 bits, or not at all: it must meet a tensor."""
    traced = make_fx(dropout.uniform)(torch.tensor(7), 1, 15)
    (counted,) = (node for node in traced.graph.nodes if "arange" in node.name)
    assert [(user.target, user.args[1].op) for user in counted.users] == [
        (torch.ops.aten.add.Tensor, "call_function")
    ]


@pytest.mark.parametrize("pool", [None, PoolSpec("max", (2, 2), (2, 2), (0, 0))])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25])
def test_dropout_in_bf16_keeps_the_mean(pool: PoolSpec | None, rate: float) -> None:
    """1 / (1 - rate) is no number of bfloat16, which is off by 1.6e-3 to 2e-3 at these rates.

    What rounding each value leaves on average is below 3e-4 for any draw (of 300 of each)."""
    drop = block_of(replace(specs_of(dropout=rate)[0], pool=pool))
    h = (1 + torch.rand(64, 5, 6, 6)).bfloat16()
    kept = drop.dropout.mask(h, 7).float()
    plain = block_of(replace(drop.spec, dropout=0.0)).transfer(h, batch_id=7).float()
    got = drop.transfer(h, batch_id=7).float()
    assert (got.sum() / (plain * kept).sum()).item() == pytest.approx(1 / (1 - rate), rel=5e-4)


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_looks_for_the_batch_id_in_memory(dtype: torch.dtype) -> None:
    """What was recorded once has no other way to learn that the batch is another."""
    drop, h, dial = block_of(specs_of()[0]).dropout, torch.ones(20, 5, 6, 6, dtype=dtype), 7
    expected = drop.mask(h, dial)
    assert (expected.shape, expected.dtype) == ((20, 5, 1, 1), dtype)
    memory = torch.tensor(0)
    drop.follow(memory)
    assert not torch.equal(drop.mask(h, dial), expected)
    memory.fill_(dial)
    assert torch.equal(drop.mask(h, 999), expected)


def test_dropout_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    block_of(specs_of()[0]).transfer(torch.ones(3, 5, 6, 6), batch_id=7)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_dropped_in_evaluation_or_without_dropout() -> None:
    h = torch.rand(4, 5, 6, 6)
    assert torch.equal(block_of(specs_of(dropout=0.9)[0]).transfer(h, batch_id=None), h)
    assert torch.equal(block_of(specs_of(dropout=0.0)[0]).transfer(h, batch_id=3), h)


def test_what_is_passed_on_is_pooled_dropped_out_and_channels_last() -> None:
    block = block_of(specs_of(dropout=0.4)[1])
    h = torch.rand(4, 6, 6, 6)
    passed = block.transfer(h, batch_id=1)
    assert is_channels_last(passed)
    dropped = h * block.dropout.mask(h, 1) * block.dropout.scale
    assert block.dropout.scale == pytest.approx(1 / 0.6)
    assert torch.equal(passed, torch.nn.functional.max_pool2d(dropped, 2))


# --- initial state ------------------------------------------------------------------------


def test_initial_weights_belong_to_seed_and_block_index() -> None:
    specs = specs_of()
    alone = [copied(block_of(spec).state()) for spec in specs]
    torch.manual_seed(99)
    backwards = [copied(block_of(spec).state()) for spec in reversed(specs)][::-1]
    assert all(same(one, other) for one, other in zip(alone, backwards, strict=True))
    other_seed = block_of(specs[0], seed=2).state()
    assert not torch.equal(other_seed["encoder.weight"], alone[0]["encoder.weight"])


def test_blocks_of_equal_shape_begin_differently() -> None:
    model = {"name": "mlp", "hidden_layers": 2, "hidden": 8}
    tree = {"model": model, "loss": {"name": "pred"}, "data": {"name": "cifar10"}}
    config = build_config(tree, "test")
    first, second, _ = build_specs(config.model, config.loss, "relu", (8,), CLASSES)
    one, other = block_of(first).state(), block_of(second).state()
    assert not torch.equal(one["encoder.weight"], other["encoder.weight"])


def test_building_a_block_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    block_of(specs_of()[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_state_names_every_tensor() -> None:
    parameters = ["encoder.bias", "encoder.weight", "pred.bias", "pred.weight", "sim.weight"]
    parameters += ["bn.bias", "bn.weight"]
    statistics = ["bn.num_batches_tracked", "bn.running_mean", "bn.running_var"]
    quantities = ("exp_avg", "exp_avg_sq", "step")
    optimizer = [f"optimizer.{name}.{quantity}" for name in parameters for quantity in quantities]
    assert sorted(block_of(specs_of()[0]).state()) == sorted(parameters + statistics + optimizer)


# --- training and evaluating --------------------------------------------------------------


@pytest.mark.parametrize("loss", ["predsim", "glob"])
def test_evaluation_leaves_every_tensor_unchanged(loss: str) -> None:
    stage = Stage([block_of(spec) for spec in specs_of(loss=loss)], None)
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
    plain, interrupted = stage_of(), stage_of()
    for batch_id in (1, 2, 3):
        plain.train(*batch(batch_id), batch_id=batch_id, lr=0.01, send=nowhere)
        interrupted.evaluate(*batch(seed=50), send=nowhere)
        interrupted.train(*batch(batch_id), batch_id=batch_id, lr=0.01, send=nowhere)
    states = zip(plain.state().values(), interrupted.state().values(), strict=True)
    assert all(same(one, other) for one, other in states)


def test_what_is_sent_is_detached_and_older_than_the_update() -> None:
    stage = stage_of(last=2)
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
    for spec in specs_of()[:2]:
        block = block_of(spec)
        expected = block.transfer(block(expected, batch_id=1).detach(), batch_id=4)
    assert torch.equal(sent[0], expected)


def test_what_is_sent_is_detached_even_where_it_is_the_activation_itself() -> None:
    """Without dropout and pooling nothing is computed in between."""
    stage, sent = stage_of(dropout=0.0, last=1), []
    stage.train(*batch(), batch_id=1, lr=0.1, send=sent.append)
    assert not sent[0].requires_grad
    assert sent[0].grad_fn is None


def test_learning_from_what_was_sent_later_changes_nothing_upstream() -> None:
    """Blocks in one stage and blocks in two stages learn the same."""
    together, upstream = stage_of(), stage_of(last=2)
    downstream = Stage([block_of(spec) for spec in specs_of()[2:]], None)
    for batch_id in (1, 2):
        x, labels = batch(batch_id)
        together.train(x, labels, batch_id=batch_id, lr=0.01, send=nowhere)
        passed: list[Tensor] = []
        upstream.train(x, labels, batch_id=batch_id, lr=0.01, send=passed.append)
        downstream.train(passed[0], labels, batch_id=batch_id, lr=0.01, send=nowhere)
    apart = {**upstream.state(), **downstream.state()}
    assert all(same(apart[index], state) for index, state in together.state().items())


def test_a_block_learns_its_own_parameters_only() -> None:
    first, second = block_of(specs_of()[0]), block_of(specs_of()[1])
    x, labels = batch()
    x = first.transfer(first(x, batch_id=1).detach(), batch_id=1)
    before = copied(first.state())
    h = second(x, batch_id=1)
    mine = copied(dict(second.named_parameters()))
    learn([second], second.local_loss(h, labels, h).loss, 0.01)
    assert same(first.state(), before)
    moved = [name for name, p in second.named_parameters() if not torch.equal(p, mine[name])]
    # Adam's first step is the learning rate in the direction of every gradient that is not zero
    assert set(moved) == set(mine)
    assert all(parameter.grad is None for parameter in second.parameters())


def test_inputs_are_not_modified() -> None:
    x, labels = batch()
    before = x.clone(), labels.clone()
    stage = stage_of()
    stage.train(x, labels, batch_id=1, lr=0.01, send=nowhere)
    stage.evaluate(x, labels, send=nowhere)
    assert torch.equal(x, before[0])
    assert torch.equal(labels, before[1])


def test_global_backprop_learns_what_torch_autograd_says() -> None:
    stage = Stage([block_of(spec, optimizer="sgd") for spec in specs_of(loss="glob")], None)
    reference = [block_of(spec, optimizer="sgd") for spec in specs_of(loss="glob")]
    x, labels = batch()
    stage.train(x, labels, batch_id=1, lr=0.5, send=nowhere)
    for block in reference:
        h = block(x, batch_id=1)
        x = block.transfer(h, batch_id=1)
    torch.nn.functional.cross_entropy(h, labels).backward()
    for block, own in zip(stage.blocks, reference, strict=True):
        for name, parameter in own.named_parameters():
            assert parameter.grad is not None
            expected = parameter.detach() - 0.5 * parameter.grad
            found = dict(block.named_parameters())[name]
            torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)


def test_failure_names_the_block_at_work() -> None:
    stage = stage_of()
    x, _ = batch()
    wrong = torch.full((7,), CLASSES)  # no such class: the first block's loss refuses
    with pytest.raises((IndexError, RuntimeError)):
        stage.train(x, wrong, batch_id=1, lr=0.01, send=nowhere)
    assert stage.at_work == 0
    stage = stage_of()
    stage.train(*batch(), batch_id=1, lr=0.01, send=nowhere)
    assert stage.at_work is None


def test_first_stage_prepares_images() -> None:
    preprocess = Preprocess((0.5, 0.25), (0.5, 0.25), flip=True, seed=1, device=CPU)
    prepared = Stage([block_of(specs_of()[0])], preprocess)
    plain = Stage([block_of(specs_of()[0])], None)
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


# --- optimizers ---------------------------------------------------------------------------


def shapes_and_gradients(steps: int = 6) -> tuple[list[Tensor], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (4,), (5, 4, 3, 3)]
    initial = [torch.randn(*shape, generator=generator) for shape in shapes]
    gradients = [
        [torch.randn(*shape, generator=generator) for shape in shapes] for _ in range(steps)
    ]
    return initial, gradients


RATES = [1e-2, 1e-2, 1e-3, 1e-3, 1e-3, 1e-2]  # the learning rate comes with each batch


def torch_result(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> list[Tensor]:
    initial, gradients = shapes_and_gradients()
    parameters = [tensor.clone().requires_grad_() for tensor in initial]
    optimizer = make(parameters)
    for lr, step in zip(RATES, gradients, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def our_result(name: Any, weight_decay: float, momentum: float = 0.9) -> list[Tensor]:
    initial, gradients = shapes_and_gradients()
    parameters = {str(index): tensor.clone() for index, tensor in enumerate(initial)}
    optimizer = make_optimizer(name, parameters, weight_decay=weight_decay, momentum=momentum)
    for lr, step in zip(RATES, gradients, strict=True):
        optimizer.step(step, lr)
    return list(parameters.values())


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_is_torchs(amsgrad: bool, weight_decay: float) -> None:
    ours = our_result("amsgrad" if amsgrad else "adam", weight_decay)
    for fused, rtol, atol in ((True, 0.0, 0.0), (False, 1e-5, 1e-7)):
        make = partial(torch.optim.Adam, amsgrad=amsgrad, weight_decay=weight_decay, fused=fused)
        torch.testing.assert_close(ours, torch_result(make), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["adam", "amsgrad", "sgd"])
def test_a_block_without_parameters_has_nothing_to_update(name: Any) -> None:
    optimizer = make_optimizer(name, {}, weight_decay=0.1, momentum=0.9)
    optimizer.step([], 0.01)
    assert optimizer.state() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_adam_takes_its_rate_from_memory() -> None:
    parameters = {"weight": torch.ones(4, 3, device="cuda")}
    optimizer = make_optimizer("adam", parameters, weight_decay=0.1, momentum=0.9)
    gradient, lr = torch.full((4, 3), 0.5, device="cuda"), torch.zeros((), device="cuda")
    expected = [parameter.cpu().clone() for parameter in parameters.values()]
    plain = torch.optim.Adam(expected, weight_decay=0.1)
    for rate in RATES:
        optimizer.step([gradient], lr.fill_(rate))
        expected[0].grad, plain.param_groups[0]["lr"] = gradient.cpu(), rate
        plain.step()
    torch.testing.assert_close(parameters["weight"].cpu(), expected[0])
    assert optimizer.state()["weight.step"] == len(RATES)


def test_amsgrad_is_not_adam() -> None:
    assert not torch.equal(our_result("adam", 0.0)[0], our_result("amsgrad", 0.0)[0])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum: float, weight_decay: float) -> None:
    ours = our_result("sgd", weight_decay, momentum)
    for fused, rtol, atol in ((True, 0.0, 0.0), (False, 1e-6, 1e-7)):
        make = partial(
            torch.optim.SGD, lr=1.0, momentum=momentum, weight_decay=weight_decay, fused=fused
        )
        torch.testing.assert_close(ours, torch_result(make), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["adam", "amsgrad", "sgd"])
def test_optimizer_state_is_the_whole_history(name: str) -> None:
    """A block loaded with another's state goes on exactly as the other."""
    spec = specs_of()[0]
    one, other = (block_of(spec, seed, optimizer=name, weight_decay=0.01) for seed in (1, 2))
    stage = Stage([one], None)
    for batch_id in (1, 2):
        stage.train(*batch(batch_id), batch_id=batch_id, lr=0.01, send=ignored)
    other.seed = one.seed
    other.load(decode_block(encode_block(one.state())))
    assert same(one.state(), other.state())
    stage.train(*batch(3), batch_id=3, lr=0.01, send=ignored)
    Stage([other], None).train(*batch(3), batch_id=3, lr=0.01, send=ignored)
    assert same(one.state(), other.state())


# --- loading ------------------------------------------------------------------------------


def test_equal_states_give_equal_bytes() -> None:
    one, other = block_of(specs_of()[0]).state(), block_of(specs_of()[0]).state()
    assert encode_block(one) == encode_block(dict(reversed(other.items())))
    other["encoder.bias"][0] += 1.0
    assert encode_block(one) != encode_block(other)


def test_load_refuses_other_names() -> None:
    block = block_of(specs_of()[0])
    state = copied(block.state())
    missing = {name: tensor for name, tensor in state.items() if name != "sim.weight"}
    with pytest.raises(CheckpointError, match=r"block 0: .* differ in \['sim.weight'\]"):
        block.load(missing)
    with pytest.raises(CheckpointError, match=r"block 0: .* differ in \['extra'\]"):
        block.load({**state, "extra": torch.zeros(1)})
    assert same(block.state(), state)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(4), r"torch.float32 \(4,\) in the checkpoint, torch.float32 \(5,\) in the"),
        (torch.zeros(5, dtype=torch.float64), r"torch.float64 \(5,\) in the checkpoint"),
        (torch.zeros(5, 1), r"torch.float32 \(5, 1\) in the checkpoint"),
        (torch.zeros(()), r"torch.float32 \(\) in the checkpoint"),
    ],
)
def test_load_refuses_other_shapes_and_types(wrong: Tensor, said: str) -> None:
    block = block_of(specs_of()[0])
    state = copied(block.state())
    with pytest.raises(CheckpointError, match=f"block 0: encoder.bias is {said}"):
        block.load({**state, "encoder.bias": wrong})


def test_a_refused_state_changes_nothing() -> None:
    block = block_of(specs_of()[0])
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
    block = block_of(specs_of()[0], optimizer=optimizer)
    x, labels = batch()

    def step() -> None:
        h = block(x, batch_id=1)
        learn([block], block.local_loss(h, labels, x).loss, 0.01)

    step()
    moved = copied(block.state())
    block.rest()
    rested = block.state()
    assert moved.keys() == rested.keys()
    state = [name for name in rested if name.startswith("optimizer.")]
    assert any(moved[name].any() for name in state)
    assert not any(rested[name].any() for name in state)
    block.load(moved)  # holds it again
    assert same(moved, block.state())
