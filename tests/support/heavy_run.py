"""A run with much to show in a report, made up: it would take hours to train."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from launch.report.looks import Looks, Wrong
from launch.report.material import Material
from launch.report.run import Run
from pipeline.planning.plan import Plan, StagePlan
from pipeline.trained.evaluation import Depth, Evaluation
from pipeline.trained.similarity import Similar, Similarities

CLASSES = 20
"""Of which all confusions are still shown."""


def heavy_run(number: int = 0, blocks: int = 60, epochs: int = 300) -> Run:
    """Each of its blocks is a stage, with a curve in every picture; its images are noise."""
    draws = np.random.default_rng(number)
    return Run(number, _material(f"run {number}", blocks, epochs, draws), _looks(blocks, draws))


def _material(name: str, blocks: int, epochs: int, draws: np.random.Generator) -> Material:
    values = 0.1 + 80 * draws.random((epochs, blocks))
    stages = [
        {"device": f"cuda:{k}", "busy": 0.5 + 0.4 * k / blocks, "peak_memory_bytes": k << 24}
        for k in range(blocks)
    ]
    kinds = ("input", "compute", "send", "learn")
    trace = [
        {"ph": "X", "pid": k, "tid": 0, "ts": 1e3 * (b + k) + 200 * part, "dur": 190.0,
         "cat": kind, "args": {"batch": b}}
        for k in range(blocks) for b in range(50) for part, kind in enumerate(kinds)
    ]  # fmt: skip
    return Material(
        name=name,
        path=Path("/runs") / name,
        step=1,
        lines=[_line(epoch, row, stages) for epoch, row in enumerate(values.tolist(), 1)],
        plan=Plan(tuple(StagePlan(k, (k,), f"cuda:{k}") for k in range(blocks))),
        costs=(),
        single=False,
        config="key: value\n" * 20_000,
        data={"name": "noise"},
        starts=[],
        trace=trace,
        batch_size=128,
        loss="predsim",
    )


def _line(epoch: int, values: list[float], stages: list[dict[str, Any]]) -> dict[str, Any]:
    parts = {"error_pct": 1.0, "loss": 2.0}
    return {
        "epoch": epoch,
        "images_per_s": 1000.0,
        "train": parts,
        "test": {**parts, "depths": [{"block": k, "error_pct": v} for k, v in enumerate(values)]},
        "blocks": [
            {"block": k, "loss": v, "error_pct": v, "cross_entropy": v, "similarity": v}
            for k, v in enumerate(values)
        ],
        "stages": stages,
    }


def _looks(blocks: int, draws: np.random.Generator) -> Looks:
    def noise(*shape: int) -> torch.Tensor:
        return torch.from_numpy(draws.uniform(-1, 1, shape))

    images = draws.integers(0, 256, (24, 3, 64, 64), dtype=np.uint8)
    layer = nn.Conv2d(3, 64, 11)
    facts = SimpleNamespace(shape=(3, 64, 64), classes=CLASSES, dtype="uint8")
    stage = SimpleNamespace(blocks=[SimpleNamespace(encoder=layer)])
    specs = [SimpleNamespace(name="conv 1024→1024")] * blocks
    trained: Any = SimpleNamespace(
        classes=tuple(f"a class of a long name, {k}" for k in range(CLASSES)),
        network=SimpleNamespace(facts=facts, stage=stage, specs=specs),
    )
    y = torch.arange(100) // 10
    found = [Similar(k, noise(100, 100), noise(100, 100)) for k in range(blocks)]
    return Looks(
        trained,
        Evaluation(
            10_000,
            1.0,
            50.0,
            tuple(map(tuple, draws.integers(0, 900, (CLASSES, CLASSES)).tolist())),
            tuple(Depth(k, 60.0 - k / 4, 50.0, 1.0, 10.0) for k in range(blocks)),
            40.0,
        ),
        tuple(Wrong(image, 0, 1, 0.9, 0.1) for image in images),
        Similarities(y, noise(100, 100), noise(100, 100), tuple(found)),
        "noise",
    )
