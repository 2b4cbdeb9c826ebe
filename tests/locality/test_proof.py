"""What is asked of a proof, refused, and said of what it has found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.locality import config_with, specs_of
from support.user_networks import FACTORY, NETWORKS
from torch import nn

from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError, StageFailedError
from pipeline.locality.folder import ProofFolder
from pipeline.locality.proof import Verdict, ask, judge, tape_bytes
from pipeline.locality.trace import Fault, Step, Trace
from pipeline.schedule.reports import Fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.sections import Config

NETWORKS["own"] = lambda: nn.Sequential(
    nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, 5)
)


def asked(config: Config, folder: Path, steps: int = 4) -> ProofFolder:
    specs, facts = specs_of(config), data_facts(config.data)
    ask(config, facts, specs, device="cpu", steps=steps, folder=folder, initial={})
    return ProofFolder(folder)


def trace(block: int, weight: str) -> Trace:
    step = Step(1, False, ("a",), (Fingerprint(block, "encoder.weight", weight),))
    return Trace((), (step,), ())


def verdict(config: Config, folder: Path, *alone: Trace) -> Verdict:
    """Where the blocks, recorded alike, have done this alone."""
    proof = asked(config, folder)
    proof.keep_recorded([trace(block, "same") for block in range(len(alone))])
    for at, each in enumerate(alone):
        proof.keep_alone(at, each)
    return judge(config, specs_of(config), folder)


@pytest.mark.parametrize(
    ("given", "who"),
    [
        ({"loss": {"name": "predsim"}}, "loss predsim"),
        ({"loss": {"rule": "DGL"}}, "rule DGL"),
        (
            {"loss": {"name": "pred"}, "model": {"factory": FACTORY, "kwargs": {"network": "own"}}},
            f"model.factory {FACTORY}",
        ),
        (
            {"loss": {"rule": "DGL"}, "model": {"factory": FACTORY, "kwargs": {"network": "own"}}},
            f"rule DGL, model.factory {FACTORY}",
        ),
    ],
)
def test_who_is_not_local_is_named(given: dict[str, Any], who: str, tmp_path: Path) -> None:
    config = config_with(**given)
    same = [trace(block, "same") for block in range(1, len(specs_of(config)))]
    found = verdict(config, tmp_path, trace(0, "other"), *same)
    assert found.batches == 1
    assert found.findings == (
        f"block 0 ({who}): trained alone from what it received, encoder.weight differs after batch "
        "1: it uses something besides what arrived",
    )


def test_what_fails_alone_is_named_once(tmp_path: Path) -> None:
    config = config_with(loss={"rule": "DGL"})
    fault = Fault("loss.rule DGL: block 1: has no head", 1, 1)
    killed = Trace(fault=Fault("its process was killed by SIGKILL"))
    found = verdict(config, tmp_path, trace(0, "same"), Trace(fault=fault), killed)
    assert found.findings == (
        "block 1 (rule DGL): fails alone, from what it received, at batch 1: has no head",
        "block 2 (output layer): fails alone, from what it received: its process was killed by "
        "SIGKILL",
    )


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            Fault("ValueError: no", 1, 3, "trail"),
            r"^block 1 \(loss pred\): fails in the whole network, at batch 3: ValueError: no$",
        ),
        (Fault("OSError: full"), "^the whole network can't be trained: OSError: full$"),
    ],
)
def test_a_network_that_can_not_be_trained_is_no_verdict(
    fault: Fault, says: str, tmp_path: Path
) -> None:
    config = config_with(loss={"name": "pred"})
    asked(config, tmp_path).keep_recorded([Trace(), Trace(fault=fault)])
    with pytest.raises(StageFailedError, match=says) as raised:
        judge(config, specs_of(config), tmp_path)
    assert raised.value.remote_traceback == fault.traceback


def test_each_block_is_a_unit_the_output_layer_too(tmp_path: Path) -> None:
    config = config_with(loss={"name": "pred"}, model={"hidden_layers": 4, "group": 2})
    assert asked(config, tmp_path).asked().units == ((0, 1), (2, 3), (4,))


def test_blocks_that_a_shortcut_joins_are_one_unit(tmp_path: Path) -> None:
    model = {"name": "resnet18", "feat_mult": 0.0625}
    config = config_with(loss={"name": "pred"}, model=model, data={"size": 32})
    units = asked(config, tmp_path).asked().units
    assert units == ((0,), *((at, at + 1) for at in range(1, 17, 2)), (17,))


def test_what_tapes_take_is_reckoned(tmp_path: Path) -> None:
    config = config_with(loss={"name": "pred"})
    specs, facts = specs_of(config), data_facts(config.data)
    images, features, labels = 3 * 8 * 8, 2 * 16 * 4, 3 * 8
    assert tape_bytes(config, facts, specs, 4) == 4 * 8 * (images + features + labels)


def test_global_backprop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^loss\.name glob is global backprop"):
        asked(config_with(loss={"name": "glob"}), tmp_path)


def test_tapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^what the blocks receive in \d+ steps takes \d+\.\d GB"
    ):
        asked(config_with(loss={"name": "pred"}), tmp_path, steps=10**12)
