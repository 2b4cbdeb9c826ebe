"""`pipeline.fit` with worker processes, called by a script as people write them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.datasets import load_iris
from torch import nn

import pipeline
from pipeline import LocalClassifier

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.processes

PARTS = """\
import torch
from torch import nn


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.by * x
"""
SCRIPT = """\
import hashlib, json, os, signal
from pathlib import Path
import numpy as np
import psutil
import torch
from torch import nn
import pipeline
from parts import Scale

with open("imported.txt", "a") as file:
    file.write("once\\n")
POWER = 2


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(64, 16), Scale()

    def forward(self, x):
        return self.scale(torch.relu(self.linear(x.flatten(1)))) ** POWER


def digests(run):
    return {block: hashlib.sha256(data).hexdigest() for block, data in run._trained.files.items()}


def kill_a_worker(row):
    if row["epoch"] == 2 and not log.exists():
        servers = psutil.Process().children()
        worker = max((child for one in servers for child in one.children()), key=lambda p: p.pid)
        worker.send_signal(signal.SIGKILL)
        log.write_text(str(worker.pid))


torch.manual_seed(1)
net = nn.Sequential(Own(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
shared = {"epochs": 6, "batch_size": 32, "gpus": "cpu", "quiet": True}
draws = np.random.default_rng(1)
data = draws.normal(size=(200, 64)).astype(np.float32), draws.integers(0, 10, 200)
log = Path("killed.txt")
def four(row):
    return row["epoch"] == 4


single = pipeline.fit(net, data, **shared, callbacks=[four])
pair = pipeline.fit(net, data, **shared, stages=2, run_dir="run", callbacks=[kill_a_worker, four])
print(json.dumps([digests(single), digests(pair), len(pair.history)]))
"""


def test_two_workers_equal_one_process_and_import_nothing_of_the_script(tmp_path: Path) -> None:
    """The network's class is the script's own, which has no `__main__` guard, and uses a module
    beside it. A worker is killed, and another gets the same objects. Both runs end with the epoch
    that a callback wants to be the last."""
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    single, pair, epochs = json.loads(done.stdout)
    assert single == pair
    assert epochs == 4
    assert (tmp_path / "imported.txt").read_text() == "once\n"
    assert (tmp_path / "killed.txt").read_text()
    assert "(restart 1 of 3" in (tmp_path / "run" / "run.log").read_text()
    assert done.stderr == ""


def test_an_estimator_with_workers_predicts_the_same() -> None:
    X, y = load_iris(return_X_y=True)
    estimator = LocalClassifier((8, 8), epochs=3, batch_size=16, dropout=0.2, random_state=0)
    alone = estimator.fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(estimator.set_params(stages=2).fit(X, y).predict_proba(X), alone)


def test_workers_that_share_batches_equal_one_process_that_does() -> None:
    X, y = load_iris(return_X_y=True)
    shared: dict[str, Any] = {"epochs": 2, "batch_size": 32, "gpus": "cpu", "quiet": True}
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    one = pipeline.fit(net, (X, y), **shared, options={"parallel.members": 2})
    two = pipeline.fit(net, (X, y), **shared, data_parallel=2)
    alone = pipeline.fit(net, (X, y), **shared)
    scores = [run.scores_by_depth(X)[-1] for run in (one, two, alone)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert (scores[0] != scores[2]).any()
    with pytest.raises(pipeline.ConfigError, match=r"stages 2: parallel.members 2: every process"):
        pipeline.fit(net, (X, y), **shared, stages=2, data_parallel=2)
