"""`runtime.cuda_graphs`: recorded steps train as plain ones do, or are given up."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.device.cuda_graphs import PLAIN_STEPS, CudaGraphCapture
from pipeline.kernels import dropout, memory_layout
from pipeline.kernels.dropout import Dropout
from pipeline.learning import optimizers
from pipeline.learning.block import Block
from pipeline.learning.build import build_stage, graphs_prevented_by, prepare_process
from pipeline.learning.built_in import HeadLosses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.device.cuda_graphs import GraphCapture
    from pipeline.learning.stage import Stage

pytestmark = pytest.mark.usefixtures("torch_settings")

CPU = torch.device("cpu")
VGG = {"name": "vgg", "layers": [4, "M", 6], "hidden": 16, "dropout": 0.2}
WHOLE = (0, 1, 2, 3)
SIZES = (8, 8, 8, 8, 5, 8, 5, 5, 8, 5)
"""Of the batches: two shapes take turns, as the last batch of an epoch does with the others."""


@dataclass
class Again:
    """Replaces CudaGraphCapture: does the work again, as it is written."""

    replays: int = 0
    records: int = 0
    tidied: int = 0

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        self.records += 1

        def replay() -> None:
            self.replays += 1
            work()

        return replay

    def release_unused(self) -> None:
        self.tidied += 1


class Refusing(Again):
    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        raise RuntimeError("operation not permitted when stream is capturing\nfurther words")


class Idle(Again):
    """What is replayed does nothing, as where something was not recorded."""

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        work()
        return lambda: None


@dataclass
class Trained:
    stage: Stage
    sent: list[torch.Tensor] = field(default_factory=list)

    @property
    def remarks(self) -> list[str]:
        return self.stage.take_remarks()

    def check_equals(self, other: Trained) -> None:
        for ours, theirs in zip(self.stage.blocks, other.stage.blocks, strict=True):
            for name, tensor in ours.state().items():
                assert torch.equal(tensor, theirs.state()[name]), name
        assert len(self.sent) == len(other.sent)
        for ours_sent, theirs_sent in zip(self.sent, other.sent, strict=True):
            assert torch.equal(ours_sent, theirs_sent)
        assert self.stage.training.read() == other.stage.training.read()


def trained(
    recorder: GraphCapture | None,
    blocks: Sequence[int] = WHOLE,
    device: torch.device = CPU,
    sizes: Sequence[int] = SIZES,
    slots: Slots | None = None,
    **sections: Any,
) -> Trained:
    """A stage after batches of these sizes, with a learning rate that changes.

    Args:
        slots: where batches lie by turns; None: each in memory of its own.
    """
    data = {"name": "synthetic", "size": 8, "batch_size": 8, "crop_padding": 1, "flip": True}
    given = {"model": VGG, "loss": {"name": "predsim", "dim_in_decoder": 32}, "data": data}
    config = build_config({**given, **sections}, "test")
    stage = build_stage(config, data_facts(config.data), blocks, device)
    stage.take_remarks()  # on the processor's bf16
    if recorder is not None:
        stage.capture(recorder)
    done = Trained(stage)
    for batch_id, examples in enumerate(sizes, start=1):
        x, labels = batch(stage, examples, batch_id)
        lr, x = 0.01 / (1 + batch_id // 4), x.to(device)
        stage.train(
            slots.filled(x) if slots else x,
            labels.to(device),
            batch_id=batch_id,
            lr=lr,
            send=lambda passed: done.sent.append(passed.clone()),
            in_slot=slots is not None,
        )
    return done


class Slots:
    """As a ring has them, which are filled by turns."""

    def __init__(self, count: int, most_numbers: int, device: torch.device = CPU) -> None:
        self._memory = torch.zeros(count, most_numbers, device=device)
        self._filled = 0

    def filled(self, x: torch.Tensor) -> torch.Tensor:
        """The next one, with these numbers."""
        slot = self._memory[self._filled % len(self._memory)]
        self._filled += 1
        return slot[: x.numel()].copy_(x.reshape(-1)).view(x.shape)

    def holds(self, x: torch.Tensor) -> bool:
        """Whether x lies at the beginning of one."""
        return x.data_ptr() in {slot.data_ptr() for slot in self._memory}


def batch(stage: Stage, examples: int, batch_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(batch_id)
    shape = (examples, *stage.blocks[0].spec.in_shape)
    x = torch.rand(shape, generator=numbers)
    if stage.blocks[0].spec.index == 0:
        x = (255 * x).to(torch.uint8)
    return x, torch.randint(10, (examples,), generator=numbers)


@pytest.mark.parametrize("blocks", [(0, 1, 2, 3), (0, 1), (1, 2), (3,)], ids=str)
def test_replayed_steps_change_and_send_what_plain_ones_do(blocks: tuple[int, ...]) -> None:
    recorder = Again()
    recorded, plain = trained(recorder, blocks), trained(None, blocks)
    recorded.check_equals(plain)
    assert recorded.remarks == []
    assert recorder.records == 4  # two halves for each of two shapes
    assert recorder.replays == 2 * (len(SIZES) - 2 * PLAIN_STEPS)
    assert recorder.tidied == 2
    assert len(recorded.sent) == (0 if blocks[-1] == 3 else len(SIZES))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_batches_in_slots_are_read_there(count: int) -> None:
    recorder, slots = Again(), Slots(count, 8 * 4 * 4 * 4)
    recorded = trained(recorder, (1, 2), sizes=(8,) * 12 + (5,) * 12, slots=slots)
    recorded.check_equals(trained(None, (1, 2), sizes=(8,) * 12 + (5,) * 12))
    assert recorded.remarks == []
    assert recorder.records == 2 * 2 * count
    assert recorder.tidied == 2 * count
    captured = recorded.stage._captured
    assert captured is not None
    assert all(slots.holds(step.given[0]) for step in captured._captured.values())


def test_what_lies_otherwise_in_a_slot_is_recorded_anew() -> None:
    stage, recorder = trained(None, (1, 2), sizes=()).stage, Again()
    stage.capture(recorder)
    memory = torch.rand(8 * 4 * 4 * 4)
    for batch_id in range(1, 11):
        x = memory.view(8, 4, 4, 4)
        x = x if batch_id < 6 else x.permute(0, 3, 1, 2)
        labels = torch.zeros(8, dtype=torch.int64)
        stage.train(x, labels, batch_id=batch_id, lr=0.1, send=lambda passed: None, in_slot=True)
    assert recorder.records == 4
    assert stage.take_remarks() == []


def test_images_are_prepared_wherever_they_lie() -> None:
    recorder = Again()
    stage = trained(None, sizes=()).stage
    stage.capture(recorder)
    for batch_id in range(1, 6):
        x, labels = batch(stage, 8, batch_id)
        stage.train(x, labels, batch_id=batch_id, lr=0.1, send=lambda passed: None, in_slot=True)
    assert recorder.records == 2


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {**VGG, "group": 2}},
        {"loss": {"name": "glob"}},
        {"loss": {"name": "sim"}, "optimizer": {"name": "sgd", "momentum": 0.9}},
        {"runtime": {"precision": "bf16"}},
        {"model": {"name": "resnet18", "feat_mult": 0.0625}},
    ],
    ids=str,
)
def test_so_do_those_of_other_losses_and_networks(sections: dict[str, Any]) -> None:
    blocks = range(18) if "resnet18" in str(sections) else WHOLE
    sizes = (4, 4, 4, 4) if "resnet18" in str(sections) else SIZES
    recorded = trained(Again(), blocks, sizes=sizes, **sections)
    recorded.check_equals(trained(None, blocks, sizes=sizes, **sections))
    assert recorded.remarks == []


def test_where_recording_fails_training_goes_on_and_says_so_once() -> None:
    recorded = trained(Refusing(), (0, 1))
    recorded.check_equals(trained(None, (0, 1)))
    assert recorded.remarks == [
        "runtime.cuda_graphs: training goes on without them (recording failed: operation not "
        "permitted when stream is capturing)"
    ]


def test_a_replay_that_is_not_the_plain_step_is_found_out_and_taken_back() -> None:
    forgetful = trained(Idle(), (0, 1), sizes=(8,) * 6)
    assert forgetful.remarks == [
        "runtime.cuda_graphs: training goes on without them (a replayed step did not equal a "
        "plain one bit for bit)"
    ]
    # its first recording was run, which real ones are not: equal from there on it can't be
    assert len(forgetful.sent) == 6


class NotAllOfIt(Again):
    """A replay that forgets what a number changes from batch to batch."""

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        again = super().capture(work)
        return again if self.records == 1 else lambda: None


def test_of_a_half_that_was_not_recorded_nothing_stays() -> None:
    recorded = trained(NotAllOfIt(), (0, 1))
    recorded.check_equals(trained(None, (0, 1)))
    assert len(recorded.remarks) == 1


def test_on_devices_masks_depend_on_nothing_that_a_recording_would_keep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dropout, "HOST_DEVICES", frozenset())
    told = trained(Again())
    mask = Dropout.mask
    monkeypatch.setattr(Dropout, "mask", lambda self, h, batch_id: mask(self, h, -1))
    trained(Again()).check_equals(told)
    monkeypatch.setattr(Dropout, "follow", lambda self, batch_id: None)
    assert not torch.equal(*(run.stage.blocks[1].encoder.weight for run in (trained(None), told)))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"runtime": {"on_nonfinite": "skip_batch"}}, "skip_batch looks at each loss"),
        ({"schedule": {"greedy": True}}, "what learns changes"),
        ({"model": {"factory": "a:b"}}, "a user's own modules"),
    ],
)
def test_what_no_graph_can_do_is_known_beforehand(sections: dict[str, Any], words: str) -> None:
    tree = {"model": VGG, "loss": {"name": "predsim"}, "data": {"name": "synthetic"}}
    assert graphs_prevented_by(build_config(tree, "test")) is None
    assert words in str(graphs_prevented_by(build_config({**tree, **sections}, "test")))


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Stands for a CUDA device: whoever asks for a number of a tensor gets an error, as while a
    graph is recorded."""
    monkeypatch.setattr(Block, "autocast", lambda block: nullcontext())
    monkeypatch.setattr(HeadLosses, "_autocast", lambda rule: nullcontext())
    monkeypatch.setitem(memory_layout.SLICE_BYTES, "meta", 1 << 20)
    for fused in ("fused_adam", "fused_adamw", "sgd"):  # their kernels know no such device
        monkeypatch.setattr(optimizers, fused, check_rate)
    return torch.device("meta")


def check_rate(*tensors: Any, lr: torch.Tensor, **settings: Any) -> None:
    assert lr.device.type == "meta"


@pytest.mark.parametrize(
    "sections",
    [
        *({"loss": {"name": name, "dim_in_decoder": 32}} for name in ("predsim", "pred", "sim")),
        {"loss": {"name": "glob"}},
        {"loss": {"name": "predsim", "bio": True, "dim_in_decoder": 32}},
        {"loss": {"name": "pred", "unsupervised": "recon"}},
        {"model": {**VGG, "group": 2}, "optimizer": {"name": "sgd", "momentum": 0.9}},
        {"optimizer": {"name": "adamw", "clip_norm": 1.0, "blocks": {0: {"lr": 0.1}}}},
    ],
    ids=str,
)
def test_a_step_asks_nothing_of_the_device(no_data: torch.device, sections: dict[str, Any]) -> None:
    tree = {"model": VGG, "loss": {"name": "predsim", "dim_in_decoder": 32}}
    data = {"name": "synthetic", "size": 8}
    config = build_config({**tree, "data": data, **sections}, "test")
    stage = build_stage(config, data_facts(config.data), WHOLE, no_data)
    stage._finite._later = True  # as on a CUDA device
    stage._scalars.lr = torch.zeros((), device=no_data)
    x = torch.empty(8, 3, 8, 8, device=no_data, dtype=torch.uint8)
    labels = torch.empty(8, device=no_data, dtype=torch.int64)
    for batch_id in (1, 2):
        stage.train(x, labels, batch_id=batch_id, lr=0.1, send=lambda passed: None)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"meta|Meta"):
        stage.training.read()  # which the comparison would not survive


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("blocks", [(0, 1, 2, 3), (0, 1), (1, 2), (3,)], ids=str)
def test_cuda_graphs_train_as_plain_steps_do(blocks: tuple[int, ...], precision: str) -> None:
    device = torch.device("cuda", 0)
    prepare_process(device, 1)
    runtime = {"precision": precision, "cuda_graphs": False}
    recorded = trained(CudaGraphCapture(device), blocks, device, runtime=runtime)
    recorded.check_equals(trained(None, blocks, device, runtime=runtime))
    assert recorded.remarks == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_read_batches_in_their_slots() -> None:
    device = torch.device("cuda", 0)
    prepare_process(device, 1)
    plain = {"runtime": {"cuda_graphs": False}}
    slots = Slots(2, 8 * 4 * 4 * 4, device)
    recorded = trained(CudaGraphCapture(device), (1, 2), device, slots=slots, **plain)
    recorded.check_equals(trained(None, (1, 2), device, **plain))
    assert recorded.remarks == []
