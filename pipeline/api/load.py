"""`pipeline.load`: the network of a run's folder as a plain module."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.api.arguments import as_argument
from pipeline.api.asked import network_given
from pipeline.api.caller import settings_kept
from pipeline.api.plain import plain_network
from pipeline.errors import worded
from pipeline.run.metrics import epoch_lines_in
from pipeline.system.given import Given, objects_given
from pipeline.trained.network import fitting, trained_in
from pipeline.trained.run_folder import checkpoint_at, open_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.network.specs import BlockSpec
    from pipeline.rules.rule import LocalRule
    from pipeline.storage.checkpoint import RunState
    from pipeline.storage.folder import Folder


def load(
    run_dir: str | Path,
    *,
    at: str | int = "last",
    depth: int | None = None,
    network: nn.Module | Sequence[nn.Module] | None = None,
    loss: type[LocalRule] | None = None,
) -> nn.Module:
    """The trained network in a run's folder as a plain module: without heads, in evaluation mode,
    on the CPU. It takes what the first block took: normalised examples.

    Args:
        at: "last", the newest checkpoint; "best", that of the lowest tested error; or the step of
            one.
        depth: of how many blocks, from the first; None: all.
        network: of a run of `pipeline.fit` that was given an object, the same.
        loss: of a run that was given a class, the same.

    Raises:
        ConfigError: where there is no such run or checkpoint, or an object is missing.
        CheckpointError: where it is damaged.
    """
    with worded(as_argument):
        given = Given(network_given(network), loss)
        return loaded(run_dir, at=at, depth=depth, given=given).module


@dataclass(frozen=True, slots=True)
class Loaded:
    """A plain trained module, and where it is from.

    `specs`: of all blocks of the network; `state`: the checkpoint's, without its files; `test`: the
    line of `metrics.jsonl` at its step, empty where there is none.
    """

    module: nn.Module
    config: Config
    specs: Sequence[BlockSpec]
    facts: DataFacts
    state: RunState
    test: Mapping[str, Any]
    path: Path


def loaded(run_dir: str | Path, *, at: str | int, depth: int | None, given: Given | None) -> Loaded:
    """As `load`, with all that is known of it. `given`: None in a command, which looks for a user's
    modules in the current folder, too."""
    with settings_kept(), open_run(run_dir) as folder:
        checkpoint = checkpoint_at(folder, at)
        with objects_given(given) if given else nullcontext():
            trained = trained_in(folder, checkpoint, given, instead="pipeline.export")
            with fitting(folder, checkpoint):
                module = plain_network(trained.config, trained.specs, trained.states(), depth)
        line = _line_of(folder, checkpoint.state.position.step)
        known = trained.config, trained.specs, trained.facts
        return Loaded(module, *known, checkpoint.state, line, folder.path.absolute())


def _line_of(run: Folder, step: int) -> dict[str, Any]:
    with suppress(OSError):
        return next((line for line in epoch_lines_in(run) if line.get("step") == step), {})
    return {}
