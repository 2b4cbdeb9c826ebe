"""torchvision's networks, cut at their own blocks: the same bytes in a pipeline as in one process,
and nothing in them that the rehearsal would refuse."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import pytest
from support.run_in_threads import Job, train_pipelined, train_single
from support.torchvision_networks import NETWORKS, sections

from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.network.from_config import network_specs
from pipeline.rehearsal.rehearsal import rehearse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")

STAGES = 3
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{network: (network, {}) for network in NETWORKS},
    "transformer in bf16": ("transformer", {"precision": "bf16"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_pipeline_of_three_stages_equals_single_mode(
    case: str, folder: Callable[[], Path]
) -> None:
    network, runtime = CASES[case]  # without dropout: threads share the generator that draws it
    single, pipelined = (Job(folder(), STAGES, **sections(network), **runtime) for _ in range(2))
    train_single(single)
    train_pipelined(pipelined)
    assert pipelined.store.files == single.store.files
    assert pipelined.lines() == single.lines()
    assert all(isfinite(line["test"]["loss"]) for line in single.lines())


@pytest.mark.parametrize(
    ("network", "given"),
    [("resnet", {}), *((network, {"dropout": 0.2}) for network in NETWORKS if network != "resnet")],
)
def test_the_rehearsal_takes_it(network: str, given: dict[str, float]) -> None:
    config = build_config(sections(network, **given), "test")
    facts = data_facts(config.data)
    assert rehearse(config, facts, network_specs(config, facts)).notes == ()
