"""What is found out about a user's own network before anything starts: state that no buffer
holds, draws that no seed sets, sizes that it can't take. None of these may pass, or fail later."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import re
import sys
import time
from hashlib import sha256
from os import getpid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.processes import final_digests, launch
from support.user_networks import FACTORY, NETWORKS, batch, config_of, stage_of
from torch import Tensor, nn

from pipeline.config.sections import build_config
from pipeline.config.yaml_file import load_tree
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError
from pipeline.kernels.memory_layout import as_it_arrives
from pipeline.learning.block_file import decode_block, encode_block
from pipeline.network.from_config import network_specs
from pipeline.network.to_device import memory_of
from pipeline.rehearsal.rehearsal import rehearse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.learning.stage import Stage
    from pipeline.rehearsal.rehearsal import Rehearsal


class Block(nn.Module):
    """What `step` makes of a linear layer's output; `make` sets it up."""

    def __init__(
        self,
        step: Callable[[Any, Tensor], Tensor] = lambda own, h: h,
        make: Callable[[Any], object] = lambda own: None,
    ) -> None:
        super().__init__()
        self.own, self.step = nn.Linear(12, 12), step
        make(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, torch.relu(self.own(x)))


def around(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 12), *middle, nn.Linear(12, 5))


def rehearsed(make: Callable[[], nn.Sequential], **sections: Any) -> Rehearsal:
    NETWORKS["this"] = make
    config = config_of("this", **sections)
    facts = data_facts(config.data)
    return rehearse(config, facts, network_specs(config, facts))


def refused(make: Callable[[], nn.Sequential], complaint: str, **sections: Any) -> None:
    with pytest.raises(ConfigError, match=f"^model.factory {FACTORY}: {complaint}"):
        rehearsed(make, **sections)


# --- state that no buffer holds -----------------------------------------------------------


def moving_mean(own: Any, h: Tensor) -> Tensor:
    own.mean = 0.9 * own.mean + 0.1 * h.detach().mean(0)
    return h - own.mean


def warm_up(own: Any, h: Tensor) -> Tensor:
    own.calls += own.training
    return h if own.calls < 1000 else h * 2


def in_a_list(own: Any, h: Tensor) -> Tensor:
    own.seen.append(float(h.detach().mean()))
    return h


def in_a_dict(own: Any, h: Tensor) -> Tensor:
    own.totals["all"] = own.totals["all"] + h.detach().sum()
    return h


def in_an_array(own: Any, h: Tensor) -> Tensor:
    own.array += 1
    return h + float(own.array[0])


class Held:
    def __init__(self) -> None:
        self.level = 0.0


def in_an_object(own: Any, h: Tensor) -> Tensor:
    own.held.level += 0.5
    return h


def own_generator(own: Any, h: Tensor) -> Tensor:
    return h + torch.rand(12, generator=own.draws)


def own_random(own: Any, h: Tensor) -> Tensor:
    return h + own.draws.random()


def own_numpy(own: Any, h: Tensor) -> Tensor:
    return h * float(own.draws.uniform())


class Teaching(Block):
    """A moving average of itself that is hidden from PyTorch in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = [nn.Linear(12, 12)]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.teacher[0].weight.lerp_(self.own.weight, 0.1)
        return super().forward(x)


@pytest.mark.parametrize(
    ("step", "make", "name"),
    [
        (moving_mean, lambda own: setattr(own, "mean", torch.zeros(12)), "mean"),
        (warm_up, lambda own: setattr(own, "calls", 0), "calls"),
        (in_a_list, lambda own: setattr(own, "seen", []), r"seen, encoder.0.seen\[0\]"),
        (in_a_dict, lambda own: setattr(own, "totals", {"all": torch.zeros(())}), "totals"),
        (in_an_array, lambda own: setattr(own, "array", np.zeros(2)), "array"),
        (in_an_object, lambda own: setattr(own, "held", Held()), "held.level"),
        (own_generator, lambda own: setattr(own, "draws", torch.Generator()), "draws"),
        (own_random, lambda own: setattr(own, "draws", random.Random(3)), "draws"),
        (own_numpy, lambda own: setattr(own, "draws", np.random.default_rng(3)), "draws"),
    ],
)
def test_an_attribute_that_steps_change_is_named(
    step: Callable[[Any, Tensor], Tensor], make: Callable[[Any], object], name: str
) -> None:
    refused(
        lambda: around(Block(step, make)),
        rf"block 1: encoder.0.{name}.* from step to step and is no part of its state",
    )


CALLS = {"count": 0}
DRAWS = np.random.default_rng(0)


def in_this_file(own: Any, h: Tensor) -> Tensor:
    CALLS["count"] += 1
    return h


def of_this_file(own: Any, h: Tensor) -> Tensor:
    return h + float(DRAWS.uniform())


class Shared(Block):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(x)


def looking() -> nn.Sequential:
    first = nn.Linear(12, 12)
    return around(first, Block(lambda own, h: h + first.weight.detach().sum()))


def with_iterator() -> nn.Sequential:
    turns = itertools.cycle([1.0, 2.0, 3.0])
    return around(Block(lambda own, h: h * next(turns)))


CHANGES = f"block 1: its step changes {__name__}.%s, which is no part of its state"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: around(Teaching()), r"block 1: encoder.0.teacher\[0\].weight changes from"),
        (looking, "block 2: the same step from the same state does not give the same "),
        (lambda: around(Block(in_this_file)), CHANGES % r"CALLS\['count'\]"),
        (lambda: around(Block(of_this_file)), CHANGES % "DRAWS"),
        (lambda: around(Shared()), CHANGES % "Shared.calls"),
        (with_iterator, "block 1: the same step from the same .* keeps what no buffer"),
    ],
)
def test_state_elsewhere_is_found(make: Callable[[], nn.Sequential], complaint: str) -> None:
    refused(make, complaint)


def last_only(own: Any, h: Tensor) -> Tensor:
    own.last, own.size = h.detach(), len(h)
    return h


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Block(last_only),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(12, 12)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(12, 12)),
        lambda: nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 12), nn.Dropout(0.3)),
        lambda: nn.Sequential(nn.Unflatten(1, (3, 4)), Recurrent(), nn.Flatten()),
    ],
)
def test_attributes_that_each_step_sets_anew_are_no_state(layer: Callable[[], nn.Module]) -> None:
    assert not rehearsed(lambda: around(layer())).notes


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.own(x)[0]
        return h


# --- draws --------------------------------------------------------------------------------


class NoisyBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, by_h: Tensor) -> Tensor:
        return by_h + 0.1 * torch.rand_like(by_h)


@pytest.mark.parametrize(
    "step",
    [
        lambda own, h: h + float(np.random.default_rng().uniform()),
        lambda own, h: h + int.from_bytes(os.urandom(2), "big"),
        lambda own, h: h + os.getpid() % 1000,
        lambda own, h: h + getpid() % 1000,
        lambda own, h: h + random.Random(int(time.time())).random(),
        lambda own, h: h + random.SystemRandom().random(),
        lambda own, h: NoisyBackward.apply(h),
    ],
)
def test_draws_in_training_that_no_seed_sets_are_found(
    step: Callable[[Any, Tensor], Tensor],
) -> None:
    refused(
        lambda: around(Block(step)),
        "block 1: the same step from the same state does not give the same (its|encoder)",
    )


STARTS = itertools.count()


@pytest.mark.parametrize(
    "value",
    [
        lambda: float(np.random.default_rng().uniform()),
        lambda: os.getpid() / 1e6,
        lambda: getpid() / 1e6,
        lambda: time.time() % 1000 / 1000,
        lambda: next(STARTS) / 100,
        lambda: random.Random().random(),
    ],
)
def test_a_network_that_starts_otherwise_each_time_is_refused(value: Callable[[], float]) -> None:
    def fill(own: Any) -> None:
        nn.init.constant_(own.own.weight, value())

    complaint = "block 1: encoder.0.own.weight does not start as it did when the func"
    refused(lambda: around(Block(make=fill)), complaint)


@pytest.mark.parametrize("draw", [np.random.uniform, random.random, lambda: float(torch.rand(()))])
def test_what_is_drawn_from_generators_that_all_share_belongs_to_the_seed(
    draw: Callable[[], float],
) -> None:
    def make() -> nn.Sequential:
        def fill(own: Any) -> None:
            nn.init.constant_(own.own.weight, draw())

        return around(Block(lambda own, h: h * draw(), fill))

    one, other = rehearsed(make), rehearsed(make)
    assert one == other
    assert one.initial != rehearsed(make, runtime={"seed": 2}).initial


# --- learning, and what is given out ------------------------------------------------------


def without_grad(own: Any, h: Tensor) -> Tensor:
    return h.detach()


def rounding(own: Any, h: Tensor) -> Tensor:
    return (h > 0).float()


class Frozen(Block):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize(
    "layer", [lambda: Block(without_grad), lambda: Block(rounding), lambda: Frozen()]
)
def test_a_block_that_can_never_learn_is_refused(layer: Callable[[], nn.Module]) -> None:
    refused(lambda: around(layer()), "block 1: none of its parameters gets a gradient")


def test_a_block_that_is_left_out_at_random_is_not() -> None:
    def maybe(own: Any, h: Tensor) -> Tensor:
        return h if not own.training or torch.rand(()) < 0.5 else h.detach()

    assert not rehearsed(lambda: around(Block(maybe))).notes


@pytest.mark.parametrize("table", [nn.Embedding, nn.EmbeddingBag])
def test_a_sparse_gradient_is_refused_with_the_cure(table: Callable[..., nn.Module]) -> None:
    def looked_up(own: Any, h: Tensor) -> Tensor:
        found: Tensor = own.table(h.abs().long().clamp(0, 5))
        return h + (found if found.dim() == 2 else found.mean(1))

    refused(
        lambda: around(
            Block(looked_up, lambda own: setattr(own, "table", table(6, 12, sparse=True)))
        ),
        "block 1, in training, .*gives a sparse gradient.* sparse=False",
    )


def test_parameters_without_a_gradient_are_named_once() -> None:
    def make() -> nn.Sequential:
        return around(Block(make=lambda own: setattr(own, "spare", nn.Linear(2, 2))))

    (note,) = rehearsed(make).notes
    assert note.startswith("block 1: encoder.0.spare.weight, encoder.0.spare.bias got no gradient")


class ReusingPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = torch.zeros(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out[: len(x)].copy_(x.detach())


def test_what_is_given_out_may_not_change_later() -> None:
    def make() -> nn.Sequential:
        return around(nn.Linear(12, 12), ReusingPool())

    refused(make, "block 1: what it gave for one batch has changed with the next one")


class HandingOutPool(nn.Module):
    """Gives its own buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("out", torch.zeros(8, 12))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == len(self.out):
            self.out = x.detach().clone()
        return self.out[: len(x)]


class ViewPool(nn.Module):
    """Gives what the block was given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Adding(nn.Module):
    """Changes its input in place, and gives it back."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.own(x.clone()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: around(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(12, 12))),
        lambda: around(Adding(), nn.Linear(12, 12)),
        lambda: around(nn.Linear(12, 12), HandingOutPool(), nn.Linear(12, 12)),
        lambda: around(
            nn.Linear(12, 12), ViewPool(), nn.Sequential(nn.ELU(inplace=True), Adding())
        ),
    ],
)
@pytest.mark.parametrize(
    "loss", [{"name": "pred"}, {"name": "pred", "unsupervised": "sim", "alpha": 0.5}]
)
def test_what_is_changed_in_place_stays_within_the_block(
    make: Callable[[], nn.Sequential], loss: dict[str, Any]
) -> None:
    NETWORKS["this"] = make
    config = config_of("this", loss=loss)
    whole = stage_of(config)
    parts = [stage_of(config, range(k, k + 1)) for k in range(len(whole.blocks))]
    for batch_id in (1, 2, 3):
        x, labels = batch(batch_id)
        whole.train(x, labels, batch_id=batch_id, lr=0.1, send=lambda passed: None)
        for part in parts:
            given, sent = x.clone(), []

            def send(passed: Tensor, sent: list[Tensor] = sent, part: Stage = part) -> None:
                own = {memory_of(t) for t in part.state()[part.blocks[0].spec.index].values()}
                assert memory_of(passed) not in own
                sent.append(passed.clone())  # as a link does, at once

            part.train(given, labels, batch_id=batch_id, lr=0.1, send=send)
            given.zero_()  # its slot is filled again
            x = sent[0] if sent else x
    for part in parts:
        index = part.blocks[0].spec.index
        own, expected = part.state()[index], whole.state()[index]
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name], expected[name]) for name in own), index


@pytest.mark.parametrize(
    ("given", "fresh"),
    [
        (lambda: torch.rand(2, 3, 5)[1], (5, 1)),
        (lambda: torch.rand(3, 4, 4, 1).permute(0, 3, 1, 2), (16, 16, 4, 1)),
        (
            lambda: torch.rand(1, 2, 3, 3).contiguous(memory_format=torch.channels_last),
            (18, 9, 3, 1),
        ),
        (lambda: torch.rand(1, 6)[:, 1:], (5, 1)),
    ],
)
def test_what_is_passed_on_lies_as_it_would_in_another_process(
    given: Callable[[], Tensor], fresh: tuple[int, ...]
) -> None:
    x = given()
    passed = as_it_arrives(x)
    assert torch.equal(passed, x)
    assert passed.stride() == fresh
    assert passed.data_ptr() % 64 == 0


# --- as it will be used -------------------------------------------------------------------


def needs_eight(own: Any, h: Tensor) -> Tensor:
    return h if len(h) in (2, 8) else h.view(8, -1)


def squeezes(own: Any, h: Tensor) -> Tensor:
    return h.squeeze()


def only_in_tests(own: Any, h: Tensor) -> Tensor:
    return h.no_such_method() if own.training else h


def only_in_training(own: Any, h: Tensor) -> Tensor:
    return h if own.training or len(h) == 2 else h[:, :7] @ h


def counts_in_tests(own: Any, h: Tensor) -> Tensor:
    own.seen += len(h)
    return h


def buffer_later(own: Any, h: Tensor) -> Tensor:
    own.memory = h.detach().mean(0) if own.training else own.memory
    return h


def growing(own: Any, h: Tensor) -> Tensor:
    own.memory = torch.cat([own.memory, h.detach().mean(0)[:1]]) if own.training else own.memory
    return h


@pytest.mark.parametrize(
    ("step", "make", "data", "complaint"),
    [
        (
            needs_eight,
            None,
            {"train_images": 43},
            "block 1, in training, for a batch of 3: Runtime",
        ),
        (needs_eight, None, {"test_images": 13}, "block 1, in a test, for a batch of 5: Runtime"),
        (squeezes, None, {"train_images": 33}, "block [12], in training, for a batch of 1: "),
        (squeezes, None, {"test_images": 1}, "block [12], in a test, for a batch of 1: "),
        (only_in_tests, None, {}, r"block 1, in training, for inputs of shape \(8, 12\): Attr"),
        (only_in_training, None, {}, r"block 1, in a test, for inputs of shape \(8, 12\): Runt"),
        (counts_in_tests, ("seen", torch.zeros(())), {}, "block 1: a test changes its .*seen; let"),
        (buffer_later, ("memory", None), {}, "block 1, on the way back .*memory"),
        (growing, ("memory", torch.zeros(0)), {}, "block 1, on the way back .*memory is torch.fl"),
    ],
)
def test_it_is_tried_as_it_will_be_used(
    step: Callable[[Any, Tensor], Tensor],
    make: tuple[str, Tensor | None] | None,
    data: dict[str, int],
    complaint: str,
) -> None:
    refused(
        lambda: around(Block(step, lambda own: own.register_buffer(*make) if make else None)),
        complaint,
        data=data,
    )


@pytest.mark.parametrize(
    "step",
    [
        lambda own, h: setattr(own, "level", own.level + own.training) or h,
        lambda own, h: setattr(own, "level", own.level.lerp(h.detach().mean(), 0.1)) or h,
    ],
)
def test_what_skipping_a_batch_can_not_take_back_is_refused(
    step: Callable[[Any, Tensor], Tensor],
) -> None:
    def make() -> nn.Sequential:
        def at_first(own: Any) -> None:
            own.register_buffer("level", torch.zeros(()))

        return around(Block(lambda own, h: step(own, h) if own.training else h, at_first))

    rehearsed(make)
    skipping = {"on_nonfinite": "skip_batch"}
    refused(make, "block 1: its step puts another .* encoder.0.level, which runt", runtime=skipping)


def test_bf16_is_tried_where_it_is_asked_for() -> None:
    def strict(own: Any, h: Tensor) -> Tensor:
        return h if h.dtype == torch.float32 else h.no_such_method()

    rehearsed(lambda: around(Block(strict)))
    refused(lambda: around(Block(strict)), "block 1, in tr", runtime={"precision": "bf16"})


def test_a_state_that_can_not_be_written_is_found_at_the_first_snapshot() -> None:
    class Failing(Block):
        def get_extra_state(self) -> Tensor:
            if not self.training:
                return torch.ones(1)
            raise OSError("nowhere to look")

        def set_extra_state(self, state: Tensor) -> None: ...

    class Quiet(Failing):
        def __init__(self) -> None:
            super().__init__()
            self.training = False

    refused(lambda: around(Quiet()), "block 1, at its first snapshot: OSError: nowhere to look")


def test_groups_and_global_backprop_are_rehearsed_as_they_learn() -> None:
    def make() -> nn.Sequential:
        return around(nn.Linear(12, 12), Block(without_grad))

    for section in ({"loss": {"name": "glob"}}, {"loss": {"name": "pred"}}):
        refused(make, "block [012]: none of its parameters gets a gradient", **section)
    refused(
        lambda: around(nn.Linear(12, 12), Block(warm_up, lambda own: setattr(own, "calls", 0))),
        "block 2: encoder.0.calls changes from step to step",
        loss={"name": "glob"},
    )


@pytest.mark.parametrize(
    ("width", "complaint"), [(0, "LookupError: no licence"), (7, "block 1 has")]
)
def test_what_a_later_call_gives_names_the_factory_once(width: int, complaint: str) -> None:
    calls = itertools.count()

    def make() -> nn.Sequential:
        if next(calls) < 2:  # for the shapes, and for the first of two networks
            return around(nn.Linear(12, 12))
        if not width:
            raise LookupError("no licence")
        return around(nn.Linear(12, width), nn.Linear(width, 12))

    refused(make, complaint)


def test_fixed_ranges_of_quantisation_are_taken() -> None:
    from torch.ao.quantization import FakeQuantize

    def add(own: Any) -> None:
        own.rounded = FakeQuantize()
        own.rounded.disable_observer()

    rehearsed(lambda: around(Block(lambda own, h: own.rounded(h), add)))


@pytest.mark.parametrize("rule", ["InPlaceByData", "InPlaceByNumpy"])
def test_a_rule_that_changes_what_it_has_passed_on_unseen_is_named(rule: str) -> None:
    """No counter of PyTorch's tells of it, and in another process the next block would read other
    numbers."""
    named = f"support.rules:{rule}"
    model = {"name": "mlp", "hidden_layers": 2, "hidden": 6}
    data = {"name": "synthetic", "size": 4, "channels": 1, "classes": 3}
    config = build_config({"model": model, "loss": {"rule": named}, "data": data}, "test")
    facts = data_facts(config.data)
    says = f"loss.rule {named}: block 0: changes what it has passed on, which the next block may"
    with pytest.raises(ConfigError, match=f"^{says}"):
        rehearse(config, facts, network_specs(config, facts))


def test_nothing_of_the_process_is_changed() -> None:
    before = torch.get_rng_state(), torch.get_deterministic_debug_mode(), os.getpid, time.time
    rehearsed(lambda: around(nn.Linear(12, 12)))
    after = torch.get_rng_state(), torch.get_deterministic_debug_mode(), os.getpid, time.time
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


# --- among real processes -----------------------------------------------------------------

OWN = """\
import itertools, random, sys
import numpy as np
import torch
from torch import nn

class Noisy(nn.Linear):
    def forward(self, x):
        h = super().forward(x)
        return h + float(np.random.uniform()) + random.random() if self.training else h

def noisy():
    return nn.Sequential(nn.Flatten(), Noisy(64, 8), nn.ReLU(), Noisy(8, 8), nn.Linear(8, 10))

def by_process():
    network = noisy()
    if "pytest" not in sys.modules:  # as in the process that is started
        nn.init.zeros_(network[3].bias)
    return network

def only_here():
    if "pytest" not in sys.modules:
        raise LookupError("no licence")
    return noisy()

class Kept(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        for name, value in (("mean", 0.0), ("steps", 0), ("scale", 2.0)):
            self.register_buffer(name, torch.tensor(value), persistent=False)

    def forward(self, x):
        h = super().forward(x)
        if self.training:
            self.mean.lerp_(h.detach().mean(), 0.1)
            self.steps += 1
        return self.scale * h - self.mean + 1 / (1 + self.steps)

def not_persistent():
    return nn.Sequential(nn.Flatten(), Kept(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 10))

def edited(changed):
    hidden, last = [nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8)], nn.Linear(8, 10)
    if changed == "narrower":
        hidden[0], hidden[2] = nn.Linear(64, 6), nn.Linear(6, 8)
    if changed == "without a bias":
        hidden[2] = nn.Linear(8, 8, bias=False)
    if changed == "with a norm":
        hidden[2] = nn.Sequential(hidden[2], nn.BatchNorm1d(8, affine=False))
    if changed == "complex":
        hidden[2].bias = nn.Parameter(hidden[2].bias.detach().cfloat())
        hidden[2].forward = lambda x: x @ hidden[2].weight.T + hidden[2].bias.real
    if changed == "deeper":
        hidden.append(nn.Linear(8, 8))
    return nn.Sequential(nn.Flatten(), *hidden, last)

CALLS = itertools.count(1)

def by_call(before):
    network = noisy()
    if next(CALLS) > before:
        nn.init.zeros_(network[3].bias)
    return network
"""
RUN = """\
loss: {name: pred}
schedule: {epochs: 1}
data: {name: digits, batch_size: 32, train_limit: 100, test_limit: 40}
"""


@pytest.fixture
def own_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes a config whose network is a function of a file in the current folder."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def config(function: str) -> Path:
        model = f"model: {{factory: '{name}:{function}', kwargs: {{}}}}\n"
        (tmp_path / "own.yaml").write_text(model + RUN, encoding="utf-8")
        return tmp_path / "own.yaml"

    return config


def later_than(calls: int) -> dict[str, Any]:
    return {"single": True, "overrides": (f"model.kwargs={{before: {calls}}}",)}


@pytest.mark.parametrize(
    ("function", "given", "says"),
    [
        pytest.param(
            "by_process",
            {"stages": 2},
            "block 1: encoder.0.bias starts otherwise in the process of stage 1 (blocks 1",
            marks=pytest.mark.processes,
        ),
        pytest.param(
            "only_here",
            {"stages": 1},
            "only_here: LookupError: no licence",
            marks=pytest.mark.processes,
        ),
        # a call for the shapes, three for the rehearsal; then those of the run
        ("by_call", later_than(5), "block 1: encoder.0.bias starts otherwise in stage"),
        # a call for the shapes, two that are compared
        ("by_call", later_than(2), "block 1: encoder.0.bias does not start as it did"),
    ],
)
def test_a_network_that_is_another_later_is_refused_in_a_line(
    own_networks: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    function: str,
    given: dict[str, Any],
    says: str,
) -> None:
    assert launch(own_networks(function), tmp_path / "run", **given) == 2
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if "error" in line.lower()] == said[-1:]
    assert says in said[-1]
    assert not list(tmp_path.glob("run/checkpoints/step-*"))
    assert (tmp_path / "run").exists() == ("does not start" not in says)  # the rehearsal is before


@pytest.mark.processes
def test_global_draws_of_numpy_and_python_give_the_same_in_all_processes(
    own_networks: Callable[[str], Path], tmp_path: Path
) -> None:
    config = own_networks("noisy")
    assert launch(config, tmp_path / "one", single=True) == 0
    np.random.seed(5)
    random.seed(5)
    assert launch(config, tmp_path / "two", stages=2) == 0
    assert final_digests(tmp_path / "one") == final_digests(tmp_path / "two")


@pytest.mark.parametrize(("name", "changes"), [("mean", True), ("steps", True), ("scale", False)])
def test_what_an_earlier_version_did_not_keep_is_not_made_up(
    name: str,
    changes: bool,
    own_networks: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config, run = own_networks("not_persistent"), tmp_path / "run"
    assert launch(config, run, single=True) == 0
    (file,) = run.glob("checkpoints/step-*/block-00.safetensors")
    tensors = decode_block(file.read_bytes())
    del tensors[f"encoder.1.{name}"]
    file.write_bytes(encode_block(tensors))
    manifest = json.loads((file.parent / "manifest.json").read_text())
    manifest["blocks"][0]["sha256"] = sha256(file.read_bytes()).hexdigest()
    (file.parent / "manifest.json").write_text(json.dumps(manifest))
    status = launch(config, run, single=True, resume=True, overrides=("schedule.epochs=2",))
    said = capfd.readouterr().err
    assert status == (2 if changes else 0)
    assert (f"did not keep encoder.1.{name} of block 0" in said) is changes


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            "narrower",
            r"encoder.1.weight of block 0 is float32 \(8, 64\), in the network .* \(6, 64\)",
        ),
        ("without a bias", "the network has no encoder.0.bias in block 1"),
        ("with a norm", "of block 1 is missing, in the network it is float32"),
        ("complex", r"encoder.0.bias of block 1 is float32 \(8,\), in the .* complex64 \(8,\)"),
        ("deeper", "3 blocks, the network has 4"),
    ],
)
def test_another_network_does_not_go_on_from_a_checkpoint(
    change: str,
    complaint: str,
    own_networks: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As where somebody has edited the file since."""
    config, run = own_networks("edited"), tmp_path / "run"
    kwargs = "model.kwargs={changed: WHAT}"
    given: dict[str, Any] = {"single": True, "overrides": (kwargs.replace("WHAT", "nothing"),)}
    assert launch(config, run, **given) == 0
    own = config.parent / f"{build_config(load_tree(config), '').model.factory}".partition(":")[0]
    source = own.with_suffix(".py")
    source.write_text(OWN.replace("(changed):", f"(changed):\n    changed = {change!r}"))
    importlib.invalidate_caches()
    sys.modules.pop(own.name)
    more = {**given, "overrides": (*given["overrides"], "schedule.epochs=2")}
    assert launch(config, run, resume=True, **more) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert re.search(complaint, said)
    assert "your own code gives another network than the run began with; bring that one" in said
