"""`pipeline.LocalClassifier`, mostly by scikit-learn's own checks of estimators."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

import pipeline
from pipeline import LocalClassifier

QUICK: dict[str, Any] = {"hidden": (16,), "epochs": 5, "batch_size": 32, "lr": 0.05}
"""Enough to get right what scikit-learn's checks draw."""


@parametrize_with_checks([LocalClassifier(**QUICK, random_state=0)])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    """All of them apply; scikit-learn skips two where pandas, or SCIPY_ARRAY_API, is not there."""
    check(estimator)


def test_a_number_of_hidden_units_is_one_layer() -> None:
    x, y = np.eye(6, dtype=np.float32).repeat(4, 0), np.arange(6).repeat(4)
    one, *others = (
        LocalClassifier(**{**QUICK, "hidden": hidden}, random_state=0).fit(x, y)
        for hidden in (8, (8,), np.int64(8))
    )
    for same in others:
        np.testing.assert_array_equal(one.predict_proba(x), same.predict_proba(x))


def test_settings_are_searched_and_the_best_one_predicts() -> None:
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    search = GridSearchCV(
        LocalClassifier(**QUICK, random_state=1), {"hidden": [(4,), (16, 8)], "lr": [0.01]}, cv=2
    )
    search.fit(X, names)
    best = search.best_estimator_
    assert search.score(X, names) > 0.9
    np.testing.assert_array_equal(best.classes_, ["setosa", "versicolor", "virginica"])
    assert [row["epoch"] for row in best.history_] == list(range(1, 6))
    again = pickle.loads(pickle.dumps(best))
    np.testing.assert_array_equal(again.predict_proba(X), best.predict_proba(X))


def test_a_seed_decides_all_and_the_callers_generators_stay() -> None:
    X, y = load_iris(return_X_y=True)
    estimator = LocalClassifier(**QUICK, dropout=0.3, random_state=4)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    one = estimator.fit(X, y).predict_proba(X)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    np.testing.assert_array_equal(clone(estimator).fit(X, y).predict_proba(X), one)
    other = clone(estimator).set_params(random_state=5).fit(X, y)
    assert (other.predict_proba(X) != one).any()


@pytest.mark.parametrize("examples", [2, 3, 17, 33])
def test_few_examples_or_one_left_for_the_last_batch_are_no_obstacle(examples: int) -> None:
    X, y = load_iris(return_X_y=True)
    some = np.linspace(0, 149, examples).astype(int)
    estimator = LocalClassifier(**{**QUICK, "epochs": 2}, random_state=0).fit(X[some], y[some])
    assert estimator.predict(X).shape == (150,)


def test_losses_are_those_of_fit_and_no_folder_is_left() -> None:
    X, y = load_iris(return_X_y=True)
    quick = {**QUICK, "epochs": 2, "random_state": 0}
    scores = {
        str(loss): LocalClassifier(**quick, loss=loss, batch_norm=False).fit(X, y)
        for loss in ("sim", {"name": "pred"}, {"rule": "ForwardForward"})
    }
    probabilities = [each.predict_proba(X) for each in scores.values()]
    assert not any(each.run_.path.exists() for each in scores.values())
    assert all(np.allclose(each.sum(axis=1), 1.0) for each in probabilities)
    assert len({each.tobytes() for each in probabilities}) == 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"hidden": ()}, r"hidden \(\): give the units of at least one layer"),
        ({"loss": "pres"}, "loss.name: 'pres' is not allowed"),
        ({"epochs": 0}, "epochs: 0"),
    ],
)
def test_parameters_are_checked_when_it_learns(wrong: dict[str, Any], says: str) -> None:
    X, y = load_iris(return_X_y=True)
    with pytest.raises(pipeline.ConfigError, match=says):
        LocalClassifier(**{**QUICK, **wrong}).fit(X, y)


def test_a_feature_that_is_always_the_same_is_not_blown_up_by_its_rounding() -> None:
    X = np.random.default_rng(0).normal(size=(60, 3))
    X[:, 1] = 0.1
    assert X[:, 1].std() > 0
    estimator = LocalClassifier(**{**QUICK, "epochs": 1}, random_state=0).fit(X, X[:, 0] > 0)
    assert estimator.scale_[1] == 1.0
