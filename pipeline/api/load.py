"""`pipeline.load`: the network of a run's folder as a plain module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.api.asked import network_given
from pipeline.api.caller import settings_kept
from pipeline.api.plain import plain_network
from pipeline.config.sections import build_config
from pipeline.learning.block_file import decode_block
from pipeline.network.from_config import network_specs
from pipeline.system.given import Given, objects_given
from pipeline.trained.run_folder import checkpoint_at, facts_in, open_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from pipeline.rules.rule import LocalRule


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
    with settings_kept(), open_run(run_dir) as folder:
        checkpoint = checkpoint_at(folder, at)
        config = build_config(checkpoint.config, str(checkpoint.path))
        files = checkpoint.read()
        with objects_given(Given(network_given(network), loss)):
            specs = network_specs(config, facts_in(folder, config))
            states = {block: decode_block(data) for block, data in files.items()}
            return plain_network(config, specs, states, depth)
