"""`pipeline.LocalClassifier`: fully connected networks with local losses, as scikit-learn has
estimators."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from pipeline.api.fit import fit
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from pipeline.rules.rule import LocalRule

_NEVER = 10**9
"""Steps between checkpoints: nobody goes on with such a run."""


class LocalClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A multi-layer perceptron of which every hidden layer learns from a loss of its own.

    Legend of shapes: n examples, m features, c classes.

    Args:
        hidden: units of each hidden layer, at least one; a number is one layer.
        loss: as for `pipeline.fit`.
        epochs, batch_size, lr: how it is trained. A batch holds all examples where there are fewer,
            and one or a few more where one alone would be left for the last batch.
        dropout: share of units set to zero in training.
        batch_norm: whether layers are followed by batch normalisation.
        standardise: whether features are brought to mean 0 and deviation 1, as in training.
        stages: worker processes; None: none. The result is the same, bit for bit.
        random_state: decides initial weights, order of examples and dropout.
        options: any keys of a configuration, as `{"optimizer.weight_decay": 1e-4}`.
        verbose: show progress.

    Attributes:
        classes_: (c,) the labels.
        n_features_in_: m.
        history_: as `FittedRun.history`.
        run_: what `pipeline.fit` gave; `run_.model` is the network, which takes standardised
            features.
        mean_, scale_: (m,) of the features in training.
    """

    def __init__(
        self,
        hidden: Sequence[int] | int = (256, 256),
        *,
        loss: str | type[LocalRule] | Mapping[str, Any] = "predsim",
        epochs: int = 50,
        batch_size: int = 64,
        lr: float = 5e-4,
        dropout: float = 0.0,
        batch_norm: bool = True,
        standardise: bool = True,
        stages: int | None = None,
        random_state: Any = None,
        options: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden = hidden
        self.loss = loss
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.standardise = standardise
        self.stages = stages
        self.random_state = random_state
        self.options = options
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike) -> LocalClassifier:
        """Train on X (n, m) and labels y (n,) of any type.

        Raises:
            ValueError: for what scikit-learn refuses, and for a single class.
            ConfigError: for parameters that are not allowed.
        """
        x: NDArray[np.float64]
        x, labels = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(labels)
        self.classes_, targets = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y holds one class, {self.classes_[0]!r}; a classifier needs at least 2 classes"
            )
        self.mean_, self.scale_ = np.zeros(x.shape[1]), np.ones(x.shape[1])
        if self.standardise:
            # rounding leaves a deviation, too, of a feature that is always the same
            differs = x.min(axis=0) < x.max(axis=0)
            self.mean_, self.scale_ = x.mean(axis=0), np.where(differs, x.std(axis=0), 1.0)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.run_ = fit(
            self._network(x.shape[1], seed),
            {"train": (self._scaled(x), targets.astype(np.int64)), "classes": len(self.classes_)},
            loss=self.loss,
            stages=self.stages,
            epochs=self.epochs,
            batch_size=self._batch_size(len(x)),
            lr=self.lr,
            seed=seed,
            gpus="cpu",
            options={"runtime.checkpoint_every_steps": _NEVER, **(self.options or {})},
            quiet=not self.verbose,
        )
        shutil.rmtree(self.run_.path, ignore_errors=True)  # of a run that nobody resumes
        self.history_ = self.run_.history
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """(n, c): the softmax of what the network gives for X (n, m)."""
        check_is_fitted(self)
        x: NDArray[np.float64] = validate_data(self, X, dtype=np.float64, reset=False)
        scores = self.run_.scores_by_depth(self._scaled(x))[-1]
        if scores is None:
            raise ConfigError(f"loss {self.loss}: its last block has no scores to predict by")
        powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """(n,) the most likely label of each example of X (n, m)."""
        likeliest = self.predict_proba(X).argmax(axis=1)
        found: NDArray[Any] = self.classes_[likeliest]
        return found

    def _scaled(self, x: NDArray[np.float64]) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = ((x - self.mean_) / self.scale_).astype(np.float32)
        return scaled

    def _network(self, features: int, seed: int) -> nn.Sequential:
        widths = [int(width) for width in np.atleast_1d(self.hidden)]
        if not widths or min(widths) < 1:
            raise ConfigError(f"hidden {self.hidden!r}: give the units of at least one layer")
        network = nn.Sequential()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for width in widths:
                layer: nn.Module = nn.Linear(features, width)
                if self.batch_norm:
                    layer = nn.Sequential(layer, nn.BatchNorm1d(width))
                network.extend([layer, nn.ReLU()])
                if self.dropout:
                    network.append(nn.Dropout(self.dropout))
                features = width
            output = nn.Linear(features, len(self.classes_))
            nn.init.zeros_(output.weight)  # as the built-in networks begin
            return network.append(output)

    def _batch_size(self, examples: int) -> int:
        size = min(int(self.batch_size), examples)
        while self.batch_norm and size > 1 and examples % size == 1:
            size += 1  # batch normalisation can't train on one example
        return size
