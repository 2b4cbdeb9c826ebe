"""The tensors of a user's own network: which are saved and restored, kept as they are, trained in
another precision, or refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.user_networks import CPU, FACTORY, NETWORKS, batch, config_of, stage_of
from torch import nn

from pipeline.errors import CheckpointError, ConfigError, one_line
from pipeline.learning.block_file import decode_block, encode_block
from pipeline.learning.optimizers import make_optimizer
from pipeline.network.ownership import retyped
from pipeline.network.to_device import _Moved, memory_of
from pipeline.network.user_network import build_parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.learning.stage import Stage


def head(layer: nn.Module) -> nn.Sequential:
    """A network with `layer`, 12 -> 12 features, in block 1."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(48, 12), nn.Sequential(nn.Linear(12, 12), layer), nn.Linear(12, 5)
    )


class Layer(nn.Module):
    """Adds whatever a test says to a layer."""

    def __init__(self, add: Callable[[Layer], None]) -> None:
        super().__init__()
        self.own = nn.Linear(12, 12)
        add(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(x).relu()


def network(name: str) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def keep(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        NETWORKS[name] = lambda: head(make())
        return make

    return keep


def step(stage: Stage, batch_id: int) -> None:
    stage.train(*batch(batch_id), batch_id=batch_id, lr=0.01, send=lambda passed: None)


def files_of(stage: Stage) -> dict[int, bytes]:
    return {block: encode_block(tensors) for block, tensors in stage.state().items()}


# --- saved and restored -------------------------------------------------------------------


@network("norm in two places")
def norm_twice() -> nn.Module:
    norm = nn.BatchNorm1d(12)
    return nn.Sequential(norm, nn.Linear(12, 12), norm)


@network("tied weights")
def tied_weights() -> nn.Module:
    one, other = nn.Linear(12, 12), nn.Linear(12, 12)
    other.weight = one.weight
    return nn.Sequential(one, nn.ReLU(), other)


@network("overlapping buffers")
def overlapping() -> nn.Module:
    class Windows(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.all += 1
            return super().forward(x) + self.early.sum() - 0.5 * self.late.sum()

    def add(layer: Layer) -> None:
        layer.register_buffer("all", torch.arange(6.0))
        layer.register_buffer("early", layer.all[:4])
        layer.register_buffer("late", layer.all[2:], persistent=False)

    return Windows(add)


@network("buffer on a weight")
def buffer_on_weight() -> nn.Module:
    class Looking(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.row

    return Looking(lambda layer: layer.register_buffer("row", layer.own.weight.detach()[3]))


@network("moving threshold")
def moving_threshold() -> nn.Module:
    class Threshold(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = super().forward(x)
            if self.training:
                self.level = 0.9 * self.level + 0.1 * h.detach().mean()  # another tensor each time
            return h - self.level

    return Threshold(
        lambda layer: layer.register_buffer("level", torch.zeros(()), persistent=False)
    )


@network("extra state")
def extra_state() -> nn.Module:
    class Counting(Layer):
        steps = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.steps += self.training
            return super().forward(x) / (1 + self.steps)

        def get_extra_state(self) -> torch.Tensor:
            return torch.tensor(self.steps)

        def set_extra_state(self, state: torch.Tensor) -> None:
            self.steps = int(state)

    return Counting(lambda layer: None)


@network("expanded buffer")
def expanded() -> nn.Module:
    class Scaled(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.scale

    return Scaled(lambda layer: layer.register_buffer("scale", torch.full((1,), 0.5).expand(12)))


@network("complex weight")
def complex_weight() -> nn.Module:
    class Spectral(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shifted = torch.fft.rfft(x) * self.weight * self.turn
            return super().forward(torch.fft.irfft(shifted, 12))

    def add(layer: Layer) -> None:
        layer.weight = nn.Parameter(torch.full((7,), 1 + 1j))
        layer.register_buffer("turn", torch.full((7,), 1j).conj())  # carried out when it is saved

    return Spectral(add)


@network("weights clipped anew")
def clipped() -> nn.Module:
    class Clipped(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.own.weight.data = self.own.weight.data.clamp(-0.05, 0.05)
            return super().forward(x)

    return Clipped(lambda layer: None)


KEPT = [
    "norm in two places", "tied weights", "overlapping buffers", "buffer on a weight",
    "moving threshold", "extra state", "expanded buffer", "complex weight", "weights clipped anew",
]  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_block_goes_on_from_its_file_as_if_nothing_had_happened(
    name: str, optimizer: str
) -> None:
    chosen = {"name": optimizer, "lr": 0.01}
    stage = stage_of(config_of(name, optimizer=chosen))
    initial = files_of(stage)
    step(stage, 1)
    other = stage_of(config_of(name, optimizer=chosen))
    other.load({block: decode_block(data) for block, data in files_of(stage).items()})
    assert files_of(other) == files_of(stage)
    step(stage, 2)
    step(other, 2)
    assert files_of(other) == files_of(stage)
    assert all(files_of(stage)[block] != initial[block] for block in (0, 1, 2))


def test_what_shares_memory_still_does_in_a_stage() -> None:
    stage = stage_of(config_of("overlapping buffers"))
    step(stage, 1)
    buffers = dict(stage.blocks[1].named_buffers())
    assert len({memory_of(buffer) for buffer in buffers.values()}) == 1
    assert buffers["encoder.0.1.late"].tolist() == [3.0, 4.0, 5.0, 6.0]


def test_a_shared_layer_is_saved_once() -> None:
    names = stage_of(config_of("tied weights")).state()[1]
    assert sum(name.endswith("weight") and "optimizer" not in name for name in names) == 3


def test_complex_weights_stay_complex_and_are_drawn_alike() -> None:
    stages = [stage_of(config_of("complex weight")) for _ in range(2)]
    assert files_of(stages[0]) == files_of(stages[1])
    assert stages[0].state()[1]["encoder.0.1.weight"].dtype == torch.complex64


def test_a_state_of_an_older_version_lacks_only_buffers_that_it_did_not_keep() -> None:
    stage = stage_of(config_of("moving threshold"))
    states = {block: dict(tensors) for block, tensors in stage.state().items()}
    del states[1]["encoder.0.1.level"]
    stage_of(config_of("moving threshold")).load(states)
    del states[1]["encoder.0.1.own.bias"]
    with pytest.raises(CheckpointError, match=r"differ in \['encoder.0.1.own.bias'\]"):
        stage.load(states)


def test_copies_on_another_device_share_memory_as_the_originals_do() -> None:
    table = torch.arange(12, dtype=torch.float32)
    views = [table, table[4:], table.view(3, 4).t(), table.view(torch.int32)[2:]]
    placed = _Moved(views, CPU, torch.float32)
    copies = [placed._beside_its_like(view) for view in views]
    copies[0].add_(1)
    table.add_(1)
    assert len({memory_of(copy) for copy in copies}) == 1
    assert memory_of(copies[0]) != memory_of(table)
    for copy, view in zip(copies, views, strict=True):
        assert torch.equal(copy, view)
        assert copy.stride() == view.stride()


# --- refused ------------------------------------------------------------------------------


@network("sparse")
def sparse() -> nn.Module:
    return Layer(lambda layer: layer.register_buffer("graph", torch.eye(12).to_sparse()))


@network("meta")
def meta() -> nn.Module:
    return Layer(lambda layer: layer.register_buffer("shape", torch.zeros(3, device="meta")))


@network("quantised")
def quantised() -> nn.Module:
    def add(layer: Layer) -> None:
        table = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        layer.register_buffer("table", table)

    return Layer(add)


@network("quantisation-aware")
def quantisation_aware() -> nn.Module:
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    layer = nn.Sequential(nn.Linear(12, 12))
    layer.qconfig = get_default_qat_qconfig("fbgemm")
    return prepare_qat(layer)


@network("two on one")
def two_on_one() -> nn.Module:
    def add(layer: Layer) -> None:
        layer.diagonal = nn.Parameter(layer.own.weight.detach().diagonal())

    return Layer(add)


@network("doubles in one memory")
def doubles() -> nn.Module:
    def add(layer: Layer) -> None:
        layer.register_buffer("sums", torch.zeros(4, dtype=torch.float64))
        layer.register_buffer("first", layer.sums[:1])

    return Layer(add)


@network("expanded in one memory")
def expanded_view() -> nn.Module:
    def add(layer: Layer) -> None:
        layer.register_buffer("one", torch.ones(1))
        layer.register_buffer("many", layer.one.expand(12))

    return Layer(add)


class Versioned(nn.Linear):
    def get_extra_state(self) -> Any:
        return "version 3"

    def set_extra_state(self, state: Any) -> None: ...


class OneWay(nn.Linear):
    def get_extra_state(self) -> Any:
        return torch.ones(1)


NETWORKS["extra text"] = lambda: head(Versioned(12, 12))
NETWORKS["extra one way"] = lambda: head(OneWay(12, 12))


def across_blocks() -> nn.Sequential:
    table = torch.ones(20)
    layers = [nn.Linear(48, 12), nn.Linear(12, 12), nn.Linear(12, 5)]
    for layer, part in zip(layers, (table[:12], table[8:]), strict=False):
        layer.register_buffer("part", part)
    return nn.Sequential(nn.Flatten(), *layers)


NETWORKS["slices of one memory"] = across_blocks


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quant.*:UserWarning")
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("sparse", "block 1: 2.1.graph is sparse_coo, and only dense tensors can be saved"),
        ("meta", "block 1: 2.1.shape is on the meta device"),
        ("quantised", "block 1: 2.1.table is quantised"),
        (
            "quantisation-aware",
            r"block 1: 2.1.0.*_fake_quant \(.*FakeQuantize\) measures ranges for quantisation, .*"
            "or give it its ranges",
        ),
        ("two on one", "block 1: 2.1.diagonal and 2.1.own.weight share memory, and both learn"),
        ("doubles in one memory", "2.1.sums and 2.1.first share .*from float64 to float32"),
        ("expanded in one memory", "2.1.one and 2.1.many share .*2.1.many is expanded"),
        ("extra text", r"block 1: 2.1 \(Versioned\): get_extra_state gives a str; .*dense tensors"),
        ("extra one way", r"block 1: 2.1 \(OneWay\) has get_extra_state but no set_extra_state"),
        ("slices of one memory", "blocks 0 and 1: 1.part and 2.part share memory; every block"),
    ],
)
def test_what_can_not_be_trained_or_saved_is_refused_by_name(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"model.factory {FACTORY}: .*{complaint}"):
        build_parts(config_of(name).model, 1)


# --- converted, and kept ------------------------------------------------------------------


@network("many types")
def many_types() -> nn.Module:
    class Typed(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.scale

    def add(layer: Layer) -> None:
        layer.own.bfloat16()
        layer.scale = nn.Parameter(torch.ones(12, dtype=torch.float64))
        layer.register_buffer("turn", torch.ones(3, dtype=torch.complex128))
        for dtype in (torch.int64, torch.int8, torch.bool, torch.uint8):
            layer.register_buffer(str(dtype).removeprefix("torch."), torch.ones(3, dtype=dtype))

    return Typed(add)


def test_numbers_with_a_fraction_get_the_precision_of_all_and_others_stay() -> None:
    stage = stage_of(config_of("many types"))
    step(stage, 1)
    found = {
        name.rpartition(".")[2]: tensor.dtype
        for name, tensor in decode_block(files_of(stage)[1]).items()
        if name.startswith("encoder.0.1.")
    }
    assert found == {
        "weight": torch.float32, "bias": torch.float32, "scale": torch.float32,
        "turn": torch.complex64, "int64": torch.int64, "int8": torch.int8, "bool": torch.bool,
        "uint8": torch.uint8,
    }  # fmt: skip


def test_what_is_converted_is_said_once_for_a_block() -> None:
    blocks = [{"0": nn.Linear(2, 2)}, {"1": many_types()}]
    assert retyped(blocks, torch.float32) == [
        "block 1: 1.scale: float64 becomes float32, the precision of all weights and buffers",
        "block 1: 1.own.weight, 1.own.bias: bfloat16 becomes float32, the precision of all weights "
        "and buffers",
        "block 1: 1.turn: complex128 becomes complex64, the precision of all weights and buffers",
    ]


# --- no gradient --------------------------------------------------------------------------


class Sometimes(nn.Module):
    """Uses `branch` in batches of one kind only."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.branch = nn.Linear(12, 12), nn.Linear(12, 12)
        self.never = nn.Parameter(torch.ones(3))
        self.uses = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.own(x).relu()
        return h + self.branch(h) if self.uses else h


NETWORKS["sometimes"] = lambda: head(Sometimes())


@pytest.mark.parametrize("optimizer", ["adam", "amsgrad", "sgd"])
def test_no_gradient_means_no_step(optimizer: str) -> None:
    chosen = {"name": optimizer, "lr": 0.01, "weight_decay": 0.1}
    stage = stage_of(config_of("sometimes", optimizer=chosen))
    layer: Any = stage.blocks[1].encoder[0][1]

    def states(part: str) -> list[torch.Tensor]:
        return [t.clone() for name, t in stage.state()[1].items() if part in name]

    for batch_id, uses in enumerate((True, False, True, False, False), start=1):
        layer.uses = uses
        before = {part: states(part) for part in (".own.", ".branch.", "never")}
        step(stage, batch_id)
        for part, learns in ((".own.", True), (".branch.", uses), ("never", False)):
            same = [torch.equal(a, b) for a, b in zip(before[part], states(part), strict=True)]
            assert all(same) is not learns, (batch_id, part)
    if optimizer != "sgd":
        counts = {n: t.item() for n, t in stage.state()[1].items() if n.endswith(".step")}
        assert counts["optimizer.encoder.0.1.own.weight.step"] == 5
        assert counts["optimizer.encoder.0.1.branch.weight.step"] == 2
        assert counts["optimizer.encoder.0.1.never.step"] == 0


@pytest.mark.parametrize("name", ["adam", "amsgrad", "sgd"])
def test_steps_of_complex_weights_and_steps_left_out_are_those_of_torch_optim(name: Any) -> None:
    ours = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine = make_optimizer(name, dict(zip("ab", ours, strict=True)), weight_decay=0.1, momentum=0.9)
    other: torch.optim.Optimizer = (
        torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.1)
        if name == "sgd"
        else torch.optim.Adam(theirs, lr=0.1, weight_decay=0.1, amsgrad=name == "amsgrad")
    )
    for used in ((0, 1), (0,), (), (1,), (0, 1)):
        gradients = torch.tensor([0.5, -2.0]), torch.tensor([1.5j, 2 - 1j])
        given = [gradient if i in used else None for i, gradient in enumerate(gradients)]
        for p, gradient in zip(theirs, given, strict=True):
            p.grad = gradient
        mine.step(given, 0.1)
        other.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q)


# --- messages -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("\n   \n Some tensors share memory: [{'a'}]\nmore"), "RuntimeError: Some "),
        (RuntimeError(""), "RuntimeError"),
        (ValueError("  \n"), "ValueError"),
        (ConfigError("\nfirst\nsecond"), "first"),
    ],
)
def test_a_cause_is_never_empty(error: Exception, line: str) -> None:
    assert one_line(error).startswith(line)


def test_no_block_is_blamed_for_what_happens_between_batches() -> None:
    stage = stage_of(config_of("sometimes"))
    step(stage, 1)
    assert stage.at_work is None
    x, labels = torch.zeros(4, 3, 4, 4, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    stage.evaluate(x, labels, send=lambda passed: None)
    assert stage.at_work is None


def test_the_block_that_can_not_be_saved_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(config_of("sometimes"))

    def broken() -> None:
        raise OSError("no")

    monkeypatch.setattr(stage.blocks[1], "state", broken)
    with pytest.raises(OSError, match="no") as caught:
        stage.state()
    assert stage.at_work == 1, caught
