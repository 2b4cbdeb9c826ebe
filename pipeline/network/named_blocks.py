"""Blocks that a configuration names by index: which are frozen; whether those named are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.network.specs import in_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.network.specs import BlockSpec


def check_there(key: str, indices: Iterable[int], specs: Sequence[BlockSpec]) -> None:
    """Raises ConfigError for the first block that `key` names and the network has not."""
    last = len(specs) - 1
    missing = [index for index in sorted(indices) if index > last]
    if missing:
        output = f" ({last} is the output layer)" if specs[-1].is_output else ""
        raise ConfigError(
            f"{key}: there is no block {missing[0]}; the network has blocks 0 to {last}{output}"
        )


def with_frozen(specs: Sequence[BlockSpec], freeze: Iterable[int]) -> tuple[BlockSpec, ...]:
    """The blocks of a network, those of `model.freeze` in their frozen form.

    Raises:
        ConfigError: for a block that is not there, the last one, or a part of a group.
    """
    frozen = set(freeze)
    check_there("model.freeze", frozen, specs)
    last = specs[-1]
    if last.index in frozen:
        what = "the output layer" if last.is_output else "what the network predicts by"
        raise ConfigError(
            f"model.freeze: block {last.index} is {what}, and has to learn: freeze blocks before it"
        )
    for group in in_runs(specs, lambda spec: spec.same_group):
        indices = [spec.index for spec in group]
        if 0 < len(frozen & {*indices}) < len(indices):
            raise ConfigError(
                f"model.freeze: blocks {indices[0]} to {indices[-1]} learn together (model.group): "
                "freeze all of them, or none"
            )
    return tuple(spec.as_frozen if spec.index in frozen else spec for spec in specs)
