"""What is counted of a trained network equals what its scores say, counted plainly."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_score, recall_score

import pipeline
from pipeline.errors import ConfigError
from pipeline.trained.evaluation import evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.api.fitted import FittedRun
    from pipeline.trained.evaluation import Evaluation

N, CLASSES = 1100, 4
"""More examples than go through the network together."""


@pytest.fixture(scope="module")
def data() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    draws = np.random.default_rng(1)
    y = draws.integers(0, CLASSES, N)
    x = draws.normal(size=(N, 6)) + np.eye(6)[y] * 2
    return x.astype(np.float32), y.astype(np.int64)


@pytest.fixture(scope="module")
def run(data: tuple[Any, Any]) -> FittedRun:
    options = {"model.hidden_layers": 2, "model.hidden": 8}
    return pipeline.fit(
        "mlp", data, epochs=4, lr=0.01, batch_size=50, gpus="cpu", quiet=True, options=options
    )


@pytest.fixture
def found(run: FittedRun, data: tuple[Any, Any]) -> Evaluation:
    network = run._trained
    return evaluate(network, network.parts(*data), confusion=True, by_depth=True, exit_at=0.6)


def probabilities(run: FittedRun, data: tuple[Any, Any]) -> list[NDArray[np.float64]]:
    scores = run.scores_by_depth(data[0])
    assert all(each is not None for each in scores)
    shifted = [np.float64(each) - np.max(each, axis=1, keepdims=True) for each in scores]
    return [np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in shifted]


def error(predicted: Any, y: Any) -> float:
    return 100 * float(np.mean(predicted != y))


def test_loss_and_error_are_those_of_the_run(
    run: FittedRun, data: tuple[Any, Any], found: Evaluation
) -> None:
    assert {"loss": found.loss, "error_pct": found.error_pct} == run.evaluate(data)
    assert found.examples == N
    assert found.error_pct == pytest.approx(error(run.predict(data[0]), data[1]))
    assert 0 < found.error_pct < 75


def test_confusions_are_counted(run: FittedRun, data: tuple[Any, Any], found: Evaluation) -> None:
    predicted, y = run.predict(data[0]), data[1]
    assert np.array_equal(found.confusion, confusion_matrix(y, predicted))
    assert found.recall == pytest.approx(recall_score(y, predicted, average=None))
    assert found.precision == pytest.approx(
        precision_score(y, predicted, average=None, zero_division=0)
    )


def test_every_depth_predicts_alone_and_together(
    run: FittedRun, data: tuple[Any, Any], found: Evaluation
) -> None:
    p = probabilities(run, data)
    assert [depth.block for depth in found.depths] == [0, 1, 2]
    for k, depth in enumerate(found.depths):
        assert depth.error_pct == pytest.approx(error(p[k].argmax(axis=1), data[1]))
        mean = np.mean(np.log(p[: k + 1]), axis=0)
        assert depth.ensemble_error_pct == pytest.approx(error(mean.argmax(axis=1), data[1]))


def test_an_example_leaves_at_the_first_block_that_is_sure(
    run: FittedRun, data: tuple[Any, Any], found: Evaluation
) -> None:
    p, y = probabilities(run, data), data[1]
    first = [next((k for k in range(2) if p[k][i].max() >= 0.6), 2) for i in range(N)]
    predicted = np.array([p[k][i].argmax() for i, k in enumerate(first)])
    for k, depth in enumerate(found.depths):
        here = np.array(first) == k
        assert depth.exit_pct == pytest.approx(100 * here.mean())
        assert here.any()
        assert depth.exit_error_pct == pytest.approx(error(predicted[here], y[here]))
    assert found.exits_error_pct == pytest.approx(error(predicted, y))


def test_shares_of_nothing_are_none(run: FittedRun, data: tuple[Any, Any]) -> None:
    network, of_class_2 = run._trained, data[1] == 2
    parts = network.parts(data[0][of_class_2], data[1][of_class_2])
    found = evaluate(network, parts, confusion=True)
    assert found.recall[:2] + found.recall[3:] == [None] * 3
    assert (found.depths, found.exits_error_pct) == ((), None)


def test_numbers_have_a_loss_and_nothing_else(data: tuple[Any, Any]) -> None:
    x = data[0]
    layers = [torch.nn.Linear(*pair) for pair in pairwise((6, 8, 1))]
    given = {"epochs": 1, "batch_size": 50, "gpus": "cpu", "quiet": True}
    run = pipeline.fit(layers, (x, x[:, :1]), loss="glob", **given)
    network = run._trained
    found = evaluate(network, network.parts(x, x[:, :1]), confusion=True, by_depth=True)
    assert found.examples == N
    assert found.loss == run.evaluate((x, x[:, :1]))["loss"]
    assert (found.error_pct, found.confusion, found.depths) == (None, (), ())
    with pytest.raises(ConfigError, match="exits need one class for each example"):
        evaluate(network, network.parts(x, x[:, :1]), by_depth=True, exit_at=0.5)
