"""Similarities of a trained network are those of its blocks' activations, reckoned plainly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import pipeline
from pipeline.kernels.nonlinearity import activate
from pipeline.trained.similarity import similarities

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.trained.network import TrainedNetwork


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> TrainedNetwork:
    draws = np.random.default_rng(1)
    y = np.arange(60) % 3
    x = draws.normal(size=(60, 5)).astype(np.float32) + y[:, None]
    run = pipeline.fit(
        "mlp", (x, y), epochs=1, batch_size=20, gpus="cpu", quiet=True,
        options={"model.hidden_layers": 2, "model.hidden": 8},
    )  # fmt: skip
    return run._trained


def alike(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit @ unit.T


def test_they_are_cosines_of_the_activations(network: TrainedNetwork) -> None:
    draws = np.random.default_rng(2)
    x = torch.from_numpy(draws.normal(size=(9, 5)).astype(np.float32))
    y = torch.arange(9) // 3
    found = similarities(network, x, y)
    assert found.of_x is not None
    assert found.of_x.numpy() == pytest.approx(alike(x.double().numpy()), abs=1e-5)
    assert found.of_y.numpy() == pytest.approx(alike(np.eye(3)[y.numpy()]), abs=1e-6)
    assert [each.block for each in found.blocks] == [0, 1, 2]
    given = x  # these data have no mean to normalise by
    for block, each in zip(network.stage.blocks[:2], found.blocks, strict=False):
        with torch.no_grad():
            h = given = activate(block.bn.eval()(block.encoder(given)), block.spec.nonlinearity)
            mapped = h @ block.sim.weight.T
        assert each.of_h.numpy() == pytest.approx(alike(h.double().numpy()), abs=1e-4)
        assert each.of_map is not None
        assert each.of_map.numpy() == pytest.approx(alike(mapped.double().numpy()), abs=1e-4)
    assert found.blocks[2].of_map is None


def test_means_leave_an_example_itself_out(network: TrainedNetwork) -> None:
    y = torch.tensor([0, 0, 1, 1])
    found = similarities(network, torch.randn(4, 5), y)
    matrix = torch.tensor(
        [[9, 0.5, 0, 0.1], [0.5, 9, 0.2, 0.1], [0, 0.2, 9, 0.3], [0.1, 0.1, 0.3, 9]]
    )
    assert found.within_and_between(matrix) == pytest.approx((0.4, 0.1))
    assert found.mismatch(found.of_y) == 0


def test_it_leaves_the_network_as_it_was(network: TrainedNetwork) -> None:
    x = torch.randn(6, 5)
    before = network.scores(x)
    similarities(network, x, torch.arange(6) % 3)
    assert all(torch.equal(a, b) for a, b in zip(before, network.scores(x), strict=True))
    assert not any(block._forward_hooks for block in network.stage.blocks)
