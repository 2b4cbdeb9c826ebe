"""What rules with auxiliary networks refuse, and what they leave in float32."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from pipeline.rules.auglocal import AugLocal
from pipeline.rules.contrastive import Contrastive
from pipeline.rules.dgl import DGL
from pipeline.rules.infopro import InfoPro
from pipeline.rules.rule import Batch, LocalRule, Place

RULES = [DGL, AugLocal, InfoPro, Contrastive]
MAPS = Place(0, 2, (1, 8, 8), (4, 8, 8), 3, (1, 8, 8))


@pytest.mark.parametrize(
    ("rule", "options", "says"),
    [
        (DGL, {"auxiliary": "cnn-aux"}, "auxiliary: 'cnn-aux'"),
        (DGL, {"hidden": 0}, "hidden: 0"),
        (DGL, {"hidden": True}, "hidden: True"),
        (AugLocal, {"depth": 2.5}, "depth: 2.5"),
        (AugLocal, {"least": 0}, "least: 0"),
        (AugLocal, {"depth": 2, "least": 3}, "depth: 2"),
        (Contrastive, {"temperature": 0}, "temperature: 0"),
        (Contrastive, {"temperature": "low"}, "temperature: 'low'"),
        (Contrastive, {"hidden": -1}, "hidden: -1"),
        (Contrastive, {"projected": 0}, "projected: 0"),
        (InfoPro, {"reconstruction": 1.0}, "reconstruction: 1.0"),
        (InfoPro, {"reconstruction": [1.0, 2.0, 3.0]}, "reconstruction: [1.0, 2.0, 3.0]"),
        (InfoPro, {"task": [1.0, -2.0]}, "task: -2.0"),
        (InfoPro, {"task": [1.0, float("inf")]}, "task: inf"),
        (InfoPro, {"surrogate": "mse"}, "surrogate: 'mse'"),
        (InfoPro, {"hidden": None}, "hidden: None"),
        (InfoPro, {"temperature": -0.1}, "temperature: -0.1"),
    ],
)
def test_wrong_options(rule: type[LocalRule], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)} is not allowed: use "):
        rule(MAPS, **options)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("place", "says"),
    [
        (Place(0, 2, (8,), (8,), 0, (8,)), "one class for each example"),
        (Place(0, 2, (8,), (8,), 3, (8,), (5,)), "one class for each example"),
        (Place(1, 2, (8,), (5, 8), 3, (8,)), r"block 1: .* not \(5, 8\)"),
    ],
)
def test_wrong_places(rule: type[LocalRule], place: Place, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rule(place)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 1, 1), (6,)])
@pytest.mark.parametrize("rule", RULES)
def test_losses_are_float32_under_autocast(rule: type[LocalRule], shape: tuple[int, ...]) -> None:
    """Layers compute in bfloat16, so the loss is near to that without, but not equal."""
    one = rule(Place(0, 2, (1, 8, 8), shape, 3, (1, 8, 8)))
    images, y = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    batch = rule.expand(Batch(images, y), 3, True, torch.Generator())
    h = torch.randn(6, *shape)
    plain, _ = one.loss(h, images, batch, torch.Generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, scores = one.loss(h.bfloat16(), images, batch, torch.Generator())
    assert found.dtype == torch.float32
    assert scores.shape == (6, 3)
    torch.testing.assert_close(found, plain, rtol=0.05, atol=0.05)
