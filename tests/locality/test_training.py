"""Blocks that are retrained alone from their tapes: honest ones are never accused.

In one process, which honest blocks don't mind; what does is in `processes/test_locality.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.locality import config_with, specs_of
from support.user_networks import FACTORY, NETWORKS
from torch import nn

from pipeline.locality.tape import Tape
from pipeline.locality.trace import first_difference
from pipeline.locality.training import record, retrain, shortened
from pipeline.network.specs import learning_units
from pipeline.rules import SHIPPED
from pipeline.schedule.feed import Course, Feed, Position
from pipeline.schedule.items import EvaluationBatch, TrainBatch

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.sections import Config
    from pipeline.locality.trace import Trace

CPU = torch.device("cpu")
STEPS = 6
"""With the fifth an epoch of 36 images ends: it is a smaller batch."""


def dropping() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(288, 16),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Linear(16, 5),
    )


def network_of_rule(name: str, **given: Any) -> dict[str, Any]:
    """One that is shipped with a rule."""
    kwargs = {"image_shape": [3, 8, 8], "classes": 5, **given}
    return {"factory": f"pipeline.rules.networks:{name}", "kwargs": kwargs}


NETWORKS["dropping"] = dropping
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"dropout": 0.1},
    "groups": {"hidden_layers": 4, "group": 2},
    "vgg8b": {"name": "vgg8b", "feat_mult": 0.125, "dropout": 0.1},
    "resnet": {"name": "resnet18", "feat_mult": 0.0625},
    "factory": {"factory": FACTORY, "kwargs": {"network": "dropping"}},
}
MODELS_OF_MAPS: dict[str, dict[str, Any]] = {
    "vgg": {"name": "vgg", "layers": [4, "M", 6], "hidden_layers": 1, "hidden": 16},
    "wide": {"name": "wrn-10-1", "feat_mult": 0.3},
}
"""Smaller ones for rules, each block of which is asked more than a built-in loss."""
LOSSES: dict[str, dict[str, Any]] = {
    "pred": {"name": "pred"},
    "sim": {"name": "sim"},
    "predsim": {"name": "predsim"},
    "bio": {"name": "predsim", "bio": True, "beta": 0.01},
    "fixed": {"name": "pred", "classifier": "fixed"},
    "unsupervised": {"name": "sim", "unsupervised": "sim", "alpha": 0.5},
}
OF_RULES: dict[str, dict[str, Any]] = {
    "NoProp": network_of_rule("denoisers", blocks=3, hidden=6),
    "SoftHebb": network_of_rule("hebbian", channels=[5], hidden=[6], kernel=3),
}
"""The networks of shipped rules that need others than an MLP."""


def both(config: Config, folder: Path) -> list[tuple[Trace, Trace, int]]:
    """Of each unit: recorded among the others, trained alone, and its last block."""
    units = [[spec.index for spec in unit] for unit in learning_units(specs_of(config))]
    tapes = [Tape(folder / str(at)) for at in range(len(units))]
    recorded, facts = record(config, CPU, STEPS, units, tapes, {})
    alone = [
        retrain(config, facts, CPU, unit, tape, {}) for unit, tape in zip(units, tapes, strict=True)
    ]
    return [(one, other, unit[-1]) for one, other, unit in zip(recorded, alone, units, strict=True)]


def check_local(config: Config, folder: Path) -> None:
    for recorded, alone, last in both(config, folder):
        assert recorded.fault is None
        assert alone.fault is None
        assert first_difference(recorded, alone, last) is None
        assert len(recorded.steps) == len(alone.steps) == STEPS
        assert recorded.initial != recorded.final


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", ["predsim", "pred"])
def test_networks_learn_locally(model: str, loss: str, tmp_path: Path) -> None:
    size = 32 if "name" in MODELS[model] else 8
    config = config_with(loss=LOSSES[loss], model=MODELS[model], data={"size": size})
    check_local(config, tmp_path)


@pytest.mark.parametrize("loss", LOSSES)
def test_built_in_losses_are_local(loss: str, tmp_path: Path) -> None:
    check_local(config_with(loss=LOSSES[loss], model=MODELS["mlp"]), tmp_path)


@pytest.mark.parametrize("rule", SHIPPED)
def test_shipped_rules_are_local(rule: str, tmp_path: Path) -> None:
    model = OF_RULES.get(rule, MODELS["mlp"])
    check_local(config_with(loss={"rule": rule}, model=model), tmp_path)


@pytest.mark.parametrize("model", ["mlp", "groups"])
def test_a_rule_that_uses_every_hook_is_local(model: str, tmp_path: Path) -> None:
    check_local(
        config_with(loss={"rule": "support.rules:EveryHook"}, model=MODELS[model]), tmp_path
    )


@pytest.mark.parametrize(("rule", "model"), [("InfoPro", "vgg"), ("DGL", "wide")])
def test_shipped_rules_of_feature_maps_are_local(rule: str, model: str, tmp_path: Path) -> None:
    loss = {"rule": rule, "options": {"hidden": 8}}
    config = config_with(loss=loss, model=MODELS_OF_MAPS[model], data={"size": 16})
    check_local(config, tmp_path)


def test_bf16_is_local(tmp_path: Path) -> None:
    config = config_with(loss={"name": "predsim"}, runtime={"precision": "bf16"})
    check_local(config, tmp_path)


def test_what_is_augmented_is_the_same_again(tmp_path: Path) -> None:
    data = {"size": 32, "crop_padding": 1, "flip": True, "cutout": 3}
    check_local(config_with(loss={"name": "pred"}, model=MODELS["vgg8b"], data=data), tmp_path)


def test_each_block_of_greedy_training_learns_in_its_turn(tmp_path: Path) -> None:
    config = config_with(loss={"name": "pred"}, schedule={"epochs": 1, "greedy": True})
    for at, (recorded, alone, last) in enumerate(both(config, tmp_path)):
        assert first_difference(recorded, alone, last) is None
        assert len(alone.steps) == (3 - at) * 2  # the last two of them as the learner
        assert alone.initial != alone.final


def test_a_test_of_one_batch_comes_half_way(tmp_path: Path) -> None:
    course = Course(epochs=9, steps_per_epoch=40, evaluation_batches=7, lr=0.1)
    fed = [
        item.batch_id if isinstance(item, TrainBatch) else "test"
        for item in Feed(shortened(course, 5), Position())
        if isinstance(item, TrainBatch | EvaluationBatch)
    ]
    assert fed == [1, 2, 3, "test", 4, 5]


def test_a_tape_gives_back_bits_and_how_they_lie(tmp_path: Path) -> None:
    maps = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    given = (maps, torch.arange(2), torch.randn(2, 7).bfloat16())
    item = TrainBatch(3, 1, 0.1 + 0.2, learner=4)
    tape = Tape(tmp_path / "tape")
    tape.add(item, given)
    [(again, found)] = tape.read(CPU)
    assert again == item
    for was, now in zip(given, found, strict=True):
        assert (now.dtype, now.stride()) == (was.dtype, was.stride())
        assert torch.equal(now, was)
        assert now.data_ptr() % 64 == 0
