"""`pipeline.load`: the network of a run's folder as a plain module."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.api.asked import network_given
from pipeline.api.caller import settings_kept
from pipeline.api.plain import plain_network
from pipeline.config.sections import build_config
from pipeline.data.facts import DataFacts, data_facts
from pipeline.errors import CheckpointError, ConfigError
from pipeline.learning.block_file import decode_block
from pipeline.network.from_config import network_specs
from pipeline.storage.checkpoint import checkpoint_in, complete_names, step_of
from pipeline.storage.checkpoint_writer import checkpoints_of
from pipeline.storage.folder import Folder
from pipeline.system.given import Given, objects_given

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from pipeline.config.sections import Config
    from pipeline.rules.rule import LocalRule
    from pipeline.storage.checkpoint import Checkpoint


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
        at: "last", the newest checkpoint, or the step of one.
        depth: of how many blocks, from the first; None: all.
        network: of a run of `pipeline.fit` that was given an object, the same.
        loss: of a run that was given a class, the same.

    Raises:
        ConfigError: where there is no such run or checkpoint, or an object is missing.
        CheckpointError: where it is damaged.
    """
    with settings_kept(), Folder.open(_folder(run_dir)) as folder:
        checkpoint = _checkpoint(folder, at)
        config = build_config(checkpoint.config, str(checkpoint.path))
        files = checkpoint.read()
        with objects_given(Given(network_given(network), loss)):
            specs = network_specs(config, _facts(folder, config))
            states = {block: decode_block(data) for block, data in files.items()}
            return plain_network(config, specs, states, depth)


def _folder(run_dir: str | Path) -> Path:
    path = Path(run_dir).expanduser()
    if not path.is_dir():
        raise ConfigError(f"run_dir {path}: there is no such folder")
    return path


def _checkpoint(folder: Folder, at: str | int) -> Checkpoint:
    try:
        checkpoints = checkpoints_of(folder)
    except (OSError, CheckpointError):
        raise ConfigError(f"run_dir {folder.path}: holds no checkpoints of a run") from None
    names = {step_of(name): name for name in complete_names(checkpoints)}
    if not names:
        raise ConfigError(f"run_dir {folder.path}: holds no complete checkpoint")
    step = max(names) if at == "last" else at
    if step not in names:
        there = ", ".join(map(str, sorted(names)))
        raise ConfigError(f"at {at!r}: there are checkpoints of steps {there}: use one, or 'last'")
    return checkpoint_in(checkpoints, names[int(step)])


def _facts(folder: Folder, config: Config) -> DataFacts:
    """Of the run's data, as it has noted them; early versions did not, and knew only data sets of
    which facts are known."""
    from launch.run_directory import DATA

    with suppress(OSError, ValueError, KeyError, TypeError):
        facts: dict[str, Any] = json.loads(folder.read(DATA))["facts"]
        lists = {key: tuple(value) for key, value in facts.items() if isinstance(value, list)}
        return DataFacts(**{**facts, **lists})
    return data_facts(config.data)
