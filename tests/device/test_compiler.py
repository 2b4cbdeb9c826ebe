"""`runtime.compile`: the same training, and what happens where the compiler fails."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.run_in_threads import TREE, Job

from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.device import compiler as compiler_module
from pipeline.device.compiler import Compiler
from pipeline.kernels import dropout
from pipeline.learning.build import build_stage
from pipeline.network.from_config import network_specs
from pipeline.run.events import Note
from pipeline.single import SingleTrainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.learning.stage import Stage

pytestmark = [
    pytest.mark.usefixtures("torch_settings", "generators_of_their_own"),
    pytest.mark.xdist_group("compiler"),
    # what the tracer itself does, from version to version
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

CPU = torch.device("cpu")
VGG = {"name": "vgg", "layers": [4, "M", 6], "hidden": 16, "dropout": 0.2}
STAGES = ["stage 0", "stage 1", "stage 2"]
SHORT: dict[str, Any] = {
    "data": {**TREE["data"], "train_images": 16, "test_images": 8},
    "schedule": {"epochs": 1},
}
"""Two steps and a test, on batches of one size: for each other the compiler is asked anew."""
MLP = {"name": "mlp", "hidden_layers": 1, "hidden": 16}


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the compiler does but to generate code, which takes minutes."""
    monkeypatch.setattr(compiler_module, "BACKEND", "aot_eager")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(graph: Any, examples: Any) -> Any:
        raise RuntimeError("no C++ compiler\nfurther words")

    monkeypatch.setattr(compiler_module, "BACKEND", refuses)


def trained(model: dict[str, Any], loss: dict[str, Any], **runtime: Any) -> Stage:
    """A whole network after three batches, by an optimizer that forgives the last bit."""
    tree = {
        "model": model,
        "loss": {"dim_in_decoder": 32, **loss},
        "data": {"name": "synthetic", "size": 8, "batch_size": 8},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "runtime": runtime,
    }
    config = build_config(tree, "test")
    facts = data_facts(config.data)
    stage = build_stage(config, facts, range(len(network_specs(config, facts))), CPU)
    images = torch.randint(256, (8, *facts.shape), generator=torch.Generator().manual_seed(1))
    for batch_id in (1, 2, 3):
        labels = torch.arange(8).remainder(facts.classes)
        stage.train(
            images.to(torch.uint8), labels, batch_id=batch_id, lr=0.1, send=lambda passed: None
        )
    return stage


def check_alike(one: Stage, other: Stage) -> None:
    for ours, theirs in zip(one.blocks, other.blocks, strict=True):
        for name, tensor in ours.state().items():
            torch.testing.assert_close(tensor, theirs.state()[name], rtol=1e-3, atol=1e-4)
    assert one.take_remarks() == other.take_remarks() == []


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("loss", [{"name": "predsim"}, {"name": "pred", "bio": True}], ids=str)
def test_compiled_blocks_learn_the_same(loss: dict[str, Any]) -> None:
    check_alike(trained(VGG, loss, compile=True), trained(VGG, loss))


@pytest.mark.usefixtures("traced_only")
def test_so_do_those_whose_masks_a_device_works_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "HOST_DEVICES", frozenset())
    check_alike(trained(VGG, {"name": "pred"}, compile=True), trained(VGG, {"name": "pred"}))


@pytest.mark.processes  # of the C++ compiler, a dozen: they take half a minute
@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_with_generated_code_too() -> None:
    """Of both losses, and of an output layer."""
    loss = {"name": "predsim"}
    check_alike(trained(MLP, loss, compile=True), trained(MLP, loss))


@pytest.mark.usefixtures("no_compiler")
def test_where_the_compiler_fails_a_run_goes_on_and_each_stage_says_so_once(
    folder: Callable[[], Path],
) -> None:
    plain, other = Job(folder(), 3, **SHORT), Job(folder(), 3, **SHORT, compile=True)
    for job in (plain, other):
        SingleTrainer(job.run).run()
    assert other.store.files == plain.store.files
    texts = [event.text for event in other.events if isinstance(event, Note)]
    assert [text.partition(":")[0].partition(" (")[0] for text in texts] == STAGES
    for text in texts:
        assert "runtime.compile: the compiler failed, what it failed at runs as it is (" in text
        assert "no C++ compiler" in text
        assert "further words" not in text


class Chosen:
    """A backend that compiles what has no such operation in it, in a way that rounds otherwise."""

    def __init__(self, refused: str) -> None:
        self.refused, self.asked = refused, 0

    def __call__(self, graph: torch.fx.GraphModule, examples: Any) -> Any:
        self.asked += 1
        if any(self.refused in str(node.target) for node in graph.graph.nodes):
            raise RuntimeError(f"no {self.refused} here")
        return lambda *given: [
            1.0001 * y if isinstance(y, torch.Tensor) and y.is_floating_point() else y
            for y in graph(*given)
        ]


def test_what_it_fails_at_depends_neither_on_the_stages_nor_on_what_was_before(
    folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions are refused, other parts are compiled: by each stage, and before they fail."""
    monkeypatch.setattr(compiler_module, "BACKEND", Chosen("conv2d"))
    one, three, plain = (
        Job(folder(), 1, **SHORT, compile=True),
        Job(folder(), 3, **SHORT, compile=True),
        Job(folder(), 1, **SHORT),
    )
    for job in (one, three, plain):
        SingleTrainer(job.run).run()
    assert one.store.files == three.store.files
    assert one.store.files != plain.store.files


def test_a_compiler_is_not_asked_again_about_what_it_failed_at() -> None:
    heard: list[str] = []
    backend = Chosen("add")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler_module, "BACKEND", backend)
        compiler = Compiler(heard.append)
        plus, times, minus = map(compiler.compiled, (plus_one, times_two, plus_three))
    x = torch.tensor([5.0])
    found = [float(f(x)) for f in (plus, plus, times, plus, minus)]
    assert found == pytest.approx([6, 6, 10.001, 6, 8], abs=1e-5)
    assert (backend.asked, len(heard)) == (3, 1)
    assert float(plus(torch.ones(2))[0]) == 2  # other tensors, another kernel
    assert backend.asked == 4


@pytest.mark.parametrize("loss", ["pred", "predsim"])  # compiled; refused, as g is a convolution
def test_it_is_not_asked_again_because_another_activation_is_computed_again(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where convolutions are refused, losses get activations with a `recompute`, which is another
    function for each batch."""
    backend = Chosen("conv2d")
    monkeypatch.setattr(compiler_module, "BACKEND", backend)
    stage = trained(VGG, {"name": loss}, compile=True)
    asked, images = backend.asked, torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    labels = torch.zeros(8, dtype=torch.int64)
    stage.train(images, labels, batch_id=4, lr=0.1, send=lambda passed: None)
    assert backend.asked == asked > 0


def plus_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def times_two(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def plus_three(x: torch.Tensor) -> torch.Tensor:
    return x + 3


def test_of_a_function_that_breaks_apart_no_piece_is_run_twice() -> None:
    """As a user's own block may: batch norm, then what can't be traced, then what can't be
    compiled."""
    heard: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler_module, "BACKEND", Chosen("neg"))
        counted = Compiler(heard.append).compiled(counted_and_turned)
    count = torch.zeros(())
    for batches in (1, 2):
        assert float(counted(torch.ones(1), count)) == -1
        assert count == batches
    assert len(heard) == 1


def counted_and_turned(x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    count.add_(1)
    torch._dynamo.graph_break()
    return -x


def test_more_variants_than_the_compiler_makes_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(compiler_module, "BACKEND", Chosen("nothing"))
    monkeypatch.setattr(compiler_module, "_VARIANTS", 1)
    plus = Compiler(heard.append).compiled(plus_five)
    found = [float(plus(torch.ones(size))[0]) for size in (1, 2, 2)]
    assert found == pytest.approx([6.0006, 6, 6], abs=1e-5)
    assert len(heard) == 1


def plus_five(x: torch.Tensor) -> torch.Tensor:
    return x + 5


def test_what_goes_wrong_as_compiled_kernels_run_is_not_done_again() -> None:
    """It may have changed statistics already."""

    def backend(graph: torch.fx.GraphModule, examples: Any) -> Any:
        def runs_out_of_memory(*given: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return runs_out_of_memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler_module, "BACKEND", backend)
        plus = Compiler(lambda text: None).compiled(plus_one)
    with pytest.raises(torch.OutOfMemoryError):
        plus(torch.ones(1))
