"""What the method must give, from an independent implementation in float64.

Each case is built from its own `case` JSON. The folder is $GOLDEN_DIR, by default the golden
cases beside the repository.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support import REPOSITORY
from support.blocks import stage_of

from pipeline.config.data import DataConfig
from pipeline.config.loss import LossConfig
from pipeline.config.model import ModelConfig
from pipeline.config.recipe import OptimizerConfig
from pipeline.config.sections import Config
from pipeline.learning.block import Block
from pipeline.network.from_config import build_specs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.learning.stage import Stage

FOLDER = Path(os.environ.get("GOLDEN_DIR", REPOSITORY.parent / "shared" / "golden"))
CASES = sorted(FOLDER.glob("*.npz"))
assert CASES or "GOLDEN_DIR" not in os.environ, f"GOLDEN_DIR: no golden cases in {FOLDER}"

pytestmark = pytest.mark.skipif(not CASES, reason=f"no golden cases in {FOLDER} (set GOLDEN_DIR)")


class Case:
    """One golden file: the network it describes, loaded with its initial state."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as archive:
            self.arrays: dict[str, NDArray[Any]] = dict(archive)
        words = json.loads(str(self.arrays.pop("case")), object_hook=_without_nulls)
        optimizer = OptimizerConfig.model_validate(words["optimizer"])
        self.lr = optimizer.lr
        self.stage = _build(words, optimizer)
        for block in self.stage.blocks:
            found = block.load_state_dict(self.tensors("init", block), strict=False)
            assert not found.missing_keys, f"{self.prefix(block)}: no {found.missing_keys}"
            self.leave_out_unused(block, found.unexpected_keys)

    def prefix(self, block: Block) -> str:
        return "output" if block.spec.is_output else f"block{block.spec.index}"

    def tensors(self, when: str, block: Block) -> dict[str, torch.Tensor]:
        """State of a block at `init` or `final`, by the block's own state keys."""
        start = f"{when}/{self.prefix(block)}/"
        inner = "encoder." if block.spec.is_output else ""
        return {
            inner + key.removeprefix(start): torch.from_numpy(value)
            for key, value in self.arrays.items()
            if key.startswith(start)
        }

    def leave_out_unused(self, block: Block, keys: list[str]) -> None:
        """State that a block has no use for (as `recon` in the first one) must not have learned."""
        for key in keys:
            name = f"{self.prefix(block)}/{key}"
            before, after = (self.arrays.pop(f"{when}/{name}") for when in ("init", "final"))
            np.testing.assert_array_equal(before, after, err_msg=f"{name} learns, but is unknown")

    def close(self, name: str, value: torch.Tensor) -> None:
        expected = torch.from_numpy(self.arrays[name]).double()
        torch.testing.assert_close(
            value.double(), expected, rtol=1e-7, atol=1e-8, msg=lambda text: f"{name}: {text}"
        )


def _without_nulls(tree: dict[str, Any]) -> dict[str, Any]:
    """A key without a value is a key left out: the config's default."""
    return {key: value for key, value in tree.items() if value is not None}


def _build(words: dict[str, Any], optimizer: OptimizerConfig) -> Stage:
    model = ModelConfig.model_validate(words["model"])
    loss = LossConfig.model_validate(words["loss"])
    data = words["data"]
    shape = (data["channels"], data["size"], data["size"])
    config = Config(model=model, loss=loss, data=DataConfig(name="synthetic"))
    specs = build_specs(model, loss, config.nonlinearity, shape, data["classes"])
    return stage_of(
        specs,
        seed=0,
        optimizer=optimizer.name,
        weight_decay=optimizer.weight_decay,
        momentum=optimizer.momentum,
    )


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_training_agrees_with_an_independent_implementation(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    activations: dict[str, torch.Tensor] = {}
    losses: dict[str, list[float]] = {}
    logits: list[torch.Tensor] = []
    forward, local_loss = Block.forward, Block.local_loss

    def watched_forward(block: Block, x: torch.Tensor, **options: Any) -> torch.Tensor:
        h = forward(block, x, **options)
        if block.spec.is_output:
            logits.append(h.detach().clone())
        else:
            activations.setdefault(f"sent/{case.prefix(block)}", h.detach().clone())
        return h

    def watched_loss(block: Block, *given: torch.Tensor, **options: Any) -> Any:
        value = local_loss(block, *given, **options)
        losses.setdefault(f"loss/{case.prefix(block)}", []).append(value.loss.item())
        return value

    monkeypatch.setattr(Block, "forward", watched_forward)
    monkeypatch.setattr(Block, "local_loss", watched_loss)
    inputs = torch.from_numpy(case.arrays["x"]).double()
    labels = torch.from_numpy(case.arrays["y"]).long()
    for step, (x, y) in enumerate(zip(inputs, labels, strict=True), start=1):
        case.stage.train(x, y, batch_id=step, lr=case.lr, send=_nothing_is_sent)

    for name, activation in activations.items():
        case.close(name, activation)
    expected_losses = {key for key in case.arrays if key.startswith("loss/")}
    assert losses.keys() == expected_losses
    for name, values in losses.items():
        case.close(name, torch.tensor(values, dtype=torch.float64))
    case.close("logits", torch.stack(logits))
    for block in case.stage.blocks:
        state = block.state_dict()
        for key in case.tensors("final", block):
            name = f"final/{case.prefix(block)}/{key}"
            case.close(name.replace("/encoder.", "/") if block.spec.is_output else name, state[key])
    case.stage.evaluate(inputs[0], labels[0], send=_nothing_is_sent)
    case.close("eval_logits", logits[-1])


def _nothing_is_sent(x: torch.Tensor) -> None:
    raise AssertionError("the stage with the output block sends nothing")
