"""Small configs whose blocks are retrained alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.config.sections import Config, build_config
from pipeline.data.facts import data_facts
from pipeline.network.from_config import network_specs

if TYPE_CHECKING:
    from pipeline.network.specs import BlockSpec


def config_with(
    *, loss: dict[str, Any], model: dict[str, Any] | None = None, **sections: Any
) -> Config:
    """Of an MLP of two hidden layers, unless `model` names another, on images of 3 × 8 × 8."""
    data = {
        "name": "synthetic", "size": 8, "classes": 5, "train_images": 36, "test_images": 12,
        "batch_size": 8, **sections.pop("data", {}),
    }  # fmt: skip
    of_mlp = {"name": "mlp", "hidden_layers": 2, "hidden": 16}
    given = model or {}
    tree = {
        "model": given if "name" in given or "factory" in given else {**of_mlp, **given},
        "loss": loss,
        "schedule": {"epochs": 2},
        "data": data,
        **sections,
    }
    return build_config(tree, "test")


def specs_of(config: Config) -> tuple[BlockSpec, ...]:
    return tuple(network_specs(config, data_facts(config.data)))
