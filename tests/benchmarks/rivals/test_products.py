"""The bound of the hardware."""

from __future__ import annotations

import pytest
import torch

from benchmarks.lib.contenders import Contender, Task
from benchmarks.rivals import products


def test_the_bound_is_what_products_alone_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "products_per_s", lambda side, *given: 1000.0)
    given = Task("mlp", Contender("products", "predsim", "fp32"), "cpu", 1, 2.0)
    lap = products.bound(given, torch.device("cpu"))
    # two passes of each layer, three of each map and classifier
    maps, classifiers = 3 * 1024**2, 3 * 1024 * 10
    layers = 784 * 1024 + 2 * 1024**2 + 1024 * 10
    assert lap["multiply_adds"] == 2 * layers + 3 * (maps + classifiers)
    assert lap["flop_per_s"] == 1000 * 2 * 1024**3
    assert lap["images_per_s"] == pytest.approx(1000 * 1024**3 / lap["multiply_adds"], rel=1e-4)


def test_products_are_timed() -> None:
    small, large = (
        products.products_per_s(side, torch.float32, 0.02, torch.device("cpu")) for side in (8, 512)
    )
    assert small > large > 0
