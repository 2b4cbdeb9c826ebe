"""Runs by shipped rules: the same bytes in one process, in several stages, and resumed."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import pytest
from support.run_in_threads import Fate, Job, train_pipelined, train_single, trained_alike

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")


def network(name: str, **kwargs: Any) -> dict[str, Any]:
    """One of the networks that come with rules, for the images of `TREE`."""
    kwargs |= {"image_shape": [2, 6, 6], "classes": 10}
    return {"factory": f"pipeline.rules.networks:{name}", "kwargs": kwargs}


MLP = {"name": "mlp", "hidden_layers": 3, "hidden": 12, "batch_norm": False}
DGL, AUGLOCAL, INFOPRO, CONTRASTIVE = (
    {"rule": rule} for rule in ("DGL", "AugLocal", "InfoPro", "Contrastive")
)
CASES: dict[str, dict[str, Any]] = {
    "DGL": {"loss": {**DGL, "options": {"hidden": 8}}},
    "DGL with cnn": {"loss": {**DGL, "options": {"auxiliary": "cnn", "hidden": 8}}},
    "AugLocal": {"loss": {**AUGLOCAL, "options": {"depth": 3}}},
    "InfoPro": {"loss": {**INFOPRO, "options": {"hidden": 8}}},
    "InfoPro by contrast": {
        "loss": {**INFOPRO, "options": {"surrogate": "contrastive", "hidden": 8}}
    },
    "Contrastive": {"loss": {**CONTRASTIVE, "options": {"hidden": 8, "projected": 6}}},
    "ForwardForward": {"model": MLP, "loss": {"rule": "ForwardForward"}},
    "MonoForward": {"loss": {"rule": "MonoForward", "options": {"predict": "sum"}}},
    "NoProp": {
        "model": network("denoisers", blocks=3, channels=[4], hidden=6),
        "loss": {"rule": "NoProp"},
    },
    "SoftHebb": {
        "model": network("hebbian", channels=[5], hidden=[6, 5], kernel=3),
        "loss": {"rule": "SoftHebb"},
    },
}
"""What differs from `TREE`: each network has three hidden blocks."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_a_pipeline_trains_as_one_process(
    case: str, precision: str, folder: Callable[[], Path]
) -> None:
    """So do as many stages as there can be, of which one is lost, and 2 from a checkpoint on."""
    given = {**CASES[case], "precision": precision, "checkpoint_every_steps": 2}
    single, three = (Job(folder(), stages, **given) for stages in (2, 3))
    train_single(single)
    lost = Fate(20)
    train_pipelined(three, {1: lost})
    assert three.store.files == single.store.files
    assert three.lines() == single.lines()
    assert lost.acts == lost.last
    first, *_, last = single.store.files
    two = Job(folder(), 2, three.store.states[first], **given)
    train_pipelined(two)
    before, after = single.store.files[first], single.store.files[last]
    assert two.store.files == {
        step: files for step, files in single.store.files.items() if step > first
    }
    assert two.lines() == single.lines()[-len(two.lines()) :]
    assert all(before[block] != after[block] for block in before)
    assert all(isfinite(line["test"]["loss"]) for line in single.lines())


@pytest.mark.parametrize("case", CASES)
def test_greedy_training_is_the_same_in_a_pipeline(case: str, folder: Callable[[], Path]) -> None:
    given = {**CASES[case], "schedule": {"epochs": 1, "greedy": True}}
    trained_alike(folder, 3, **given)
