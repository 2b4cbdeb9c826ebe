"""Networks of a test's own as a user's `model.factory` gives them, on 40 images of 3 × 4 × 4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pipeline.config.sections import Config, build_config
from pipeline.data.facts import data_facts
from pipeline.learning.build import build_stage
from pipeline.network.from_config import network_specs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from pipeline.learning.stage import Stage

CPU = torch.device("cpu")
FACTORY = f"{__name__}:made"
NETWORKS: dict[str, Callable[..., nn.Module]] = {}


def made(network: str, **given: Any) -> nn.Module:
    """The `model.factory` of all tests."""
    return NETWORKS[network](**given)


def config_of(network: str, **sections: Any) -> Config:
    """A config of one of NETWORKS, with keys of `data` and whole sections changed."""
    data = {
        "name": "synthetic", "size": 4, "classes": 5, "train_images": 40, "test_images": 12,
        "batch_size": 8, **sections.pop("data", {}),
    }  # fmt: skip
    model = {"factory": FACTORY, **sections.pop("model", {})}
    model["kwargs"] = {"network": network, **model.get("kwargs", {})}
    tree = {
        "model": model,
        "loss": {"name": "pred"},
        "schedule": {"epochs": 1},
        "data": data,
        **sections,
    }
    return build_config(tree, "test")


def stage_of(config: Config, blocks: range | None = None) -> Stage:
    """Some blocks of its network, by default all."""
    facts = data_facts(config.data)
    blocks = blocks or range(len(network_specs(config, facts)))
    return build_stage(config, facts, blocks, CPU)


def batch(number: int) -> tuple[Tensor, Tensor]:
    """Eight images and labels, others for each number."""
    draws = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8, generator=draws)
    return images, torch.arange(8) % 5
