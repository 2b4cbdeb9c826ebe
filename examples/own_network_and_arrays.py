"""A network and arrays of one's own, trained by two processes without global backprop."""

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import pipeline


class Gated(nn.Module):
    """A block of one's own: features, each let through as far as a gate says."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.features, self.gate = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.features(x).relu() * self.gate(x).sigmoid()


X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0, stratify=y)

run = pipeline.fit(
    [Gated(64, 128), Gated(128, 128), nn.Linear(128, 10)],
    (X_train, y_train),
    test=(X_test, y_test),
    stages=2,  # leave it out to train in this process: the weights are the same, bit for bit
    epochs=15,
    batch_size=32,
    lr=2e-3,
    callbacks=[lambda row: row["test"]["error_pct"] < 3],  # that is enough
)
for depth, scores in enumerate(run.scores_by_depth(X_test), start=1):
    print(f"error at depth {depth}: {100 * (scores.argmax(1) != y_test).mean():.1f} %")
