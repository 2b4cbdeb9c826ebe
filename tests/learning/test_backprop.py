"""Global backprop that holds less: the same bits where it computes again, the same gradient where
it takes a batch in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.blocks import CPU, ignored

from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError
from pipeline.learning.backprop import FrugalBackprop
from pipeline.learning.build import build_stage
from pipeline.network.from_config import network_specs

if TYPE_CHECKING:
    from pipeline.learning.stage import Stage

VGG = {"name": "vgg", "layers": [6, 6, "M", 8], "hidden_layers": 1, "hidden": 12, "dropout": 0.2}
MLP = {"name": "mlp", "hidden_layers": 3, "hidden": 10, "dropout": 0.2}
N = 12


def config_of(model: dict[str, Any], **sections: dict[str, Any]) -> Any:
    tree: dict[str, Any] = {
        "model": model,
        "loss": {"name": "glob"},
        "data": {"name": "synthetic", "size": 8, "batch_size": N, "train_images": 5 * N},
        **sections,
    }
    return build_config(tree, "test")


def trained(model: dict[str, Any], steps: int = 3, **sections: dict[str, Any]) -> Stage:
    config = config_of(model, **sections)
    facts = data_facts(config.data)
    stage = build_stage(config, facts, range(len(network_specs(config, facts))), CPU)
    for batch_id in range(1, steps + 1):
        drawn = torch.Generator().manual_seed(batch_id)
        x = torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8, generator=drawn)
        labels = torch.randint(0, 10, (N,), generator=drawn)
        stage.train(x, labels, batch_id=batch_id, lr=0.01, send=ignored)
    return stage


def states(stage: Stage) -> dict[tuple[int, str], torch.Tensor]:
    return {
        (block, name): tensor
        for block, tensors in stage.state().items()
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("model", [VGG, MLP], ids=["vgg", "mlp"])
@pytest.mark.parametrize("blocks", [1, 2, 3, 9])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_computed_again_it_gives_the_same_bits(
    model: dict[str, Any], blocks: int, precision: str
) -> None:
    plain = trained(model, runtime={"precision": precision})
    again = trained(model, runtime={"precision": precision, "recompute": blocks})
    assert isinstance(again, FrugalBackprop)
    assert not isinstance(plain, FrugalBackprop)
    found = states(again)
    for key, tensor in states(plain).items():
        assert torch.equal(tensor, found[key]), key
    assert plain.training.read() == again.training.read()


@pytest.mark.parametrize("parts", [2, 5, 100])
def test_in_parts_it_learns_from_the_gradient_of_the_batch(parts: int) -> None:
    model = {**VGG, "batch_norm": False}
    sgd = {"name": "sgd", "momentum": 0.0}
    whole = trained(model, 1, optimizer=sgd)
    split = trained(model, 1, optimizer={**sgd, "accumulate": parts})
    found = states(split)
    for key, tensor in states(whole).items():
        assert torch.allclose(tensor, found[key], rtol=1e-4, atol=1e-6), key
    (one,), (other,) = ([*stage.training.read()] for stage in (whole, split))
    assert (one.images, one.errors) == (other.images, other.errors)
    assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-5)


def test_both_at_once_are_the_parts_alone() -> None:
    split = trained(VGG, optimizer={"accumulate": 3})
    both = trained(VGG, optimizer={"accumulate": 3}, runtime={"recompute": 2})
    found = states(both)
    assert all(torch.equal(tensor, found[key]) for key, tensor in states(split).items())


def test_in_parts_batch_norm_sees_a_part_at_a_time() -> None:
    whole, split = states(trained(VGG, 1)), states(trained(VGG, 1, optimizer={"accumulate": 3}))
    assert whole[0, "bn.num_batches_tracked"] == 1
    assert split[0, "bn.num_batches_tracked"] == 3


def test_a_batch_that_is_skipped_changes_nothing() -> None:
    config = config_of(
        MLP, optimizer={"accumulate": 3}, runtime={"on_nonfinite": "skip_batch", "recompute": 1}
    )
    facts = data_facts(config.data)
    stage = build_stage(config, facts, range(4), CPU)
    with torch.no_grad():
        stage.blocks[-1].encoder.bias[0] = float("inf")
    before = {key: tensor.clone() for key, tensor in states(stage).items()}
    x, labels = torch.zeros(N, 3, 8, 8, dtype=torch.uint8), torch.arange(N) % 10
    stage.train(x, labels, batch_id=1, lr=0.01, send=ignored)
    assert stage.take_skipped() == {3: [1]}
    assert all(torch.equal(tensor, before[key]) for key, tensor in states(stage).items())


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"loss": {"name": "pred"}}, "is for loss.name glob: by pred a block holds"),
        ({"loss": {"name": "glob+pred"}}, "is for loss.name glob"),
        ({"model": {"name": "resnet18"}}, "is for mlp and the VGGs: model.name resnet18"),
        ({"model": {"factory": "my:net"}}, "is for mlp and the VGGs: model.factory"),
    ],
)
@pytest.mark.parametrize("key", ["runtime.recompute", "optimizer.accumulate"])
def test_where_it_means_nothing_it_is_refused(
    sections: dict[str, dict[str, Any]], said: str, key: str
) -> None:
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=f"{key} {said}|{key}: {said}"):
        config_of(**{"model": MLP, **sections, section: {name: 2}})
