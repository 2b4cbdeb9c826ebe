"""A fuzz of configs: whatever is trained, and however, the same bytes come out.

    python tests/fuzz/configs.py --seed 1 --examples 300        # from the root of a clone

Each config that hypothesis draws is small and valid. It is trained in single mode, in several
stages, resumed in another number of stages from each kind of snapshot, and with a worker lost:
SHA-256 of every block's file must be equal. In threads, over links in memory
(`support/run_in_threads.py`); what processes add is for `tests/chaos`.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import click
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where a script finds `support`
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # rather packages than tests of them
from support.own_data import FACTORY
from support.run_in_threads import Fate, Job, train_pipelined

from pipeline.run.events import CheckpointWritten
from pipeline.single import SingleTrainer
from pipeline.worker import worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import DrawFn

    from pipeline.run.events import Event
    from pipeline.storage.checkpoint import RunState

BLOCKWISE: list[dict[str, Any]] = [
    {"bio": True, "name": "pred"},
    {"bio": True, "name": "predsim", "beta": 0.01},
    {"name": "pred", "classifier": "fixed", "feedback": "sign"},
    {"name": "predsim", "classifier": "fixed", "feedback": "random"},
    {"name": "pred", "unsupervised": "sim", "alpha": 0.3},
    {"name": "predsim", "unsupervised": "recon", "alpha": 0.3},
    {"name": "predsim", "pred_hidden": 8},
]
"""Losses with more than a head, for networks of blocks that learn one by one."""


@dataclass(frozen=True)
class Drawn:
    """Sections of a config, and how it is divided, resumed and disturbed.

    `stages`: first, and when it is resumed. `lost`: a stage, and at which of its acts.
    """

    sections: dict[str, dict[str, Any]]
    runtime: dict[str, Any]
    stages: tuple[int, int]
    lost: tuple[int, int]
    resumed_from: int = field(default=0)


@st.composite
def networks(draw: DrawFn) -> tuple[dict[str, Any], int]:
    """A model, and into how many stages it can be divided."""
    model: dict[str, Any] = {"dropout": draw(st.sampled_from([0.0, 0.2]))}
    kind = draw(st.sampled_from(["mlp", "mlp", "vgg", "vgg", "vgg", "wrn-10-2"]))
    if kind == "wrn-10-2":
        preactivation = draw(st.booleans())
        return {**model, "name": kind, "feat_mult": 0.2, "preactivation": preactivation}, 4
    if kind == "mlp":
        hidden_layers = draw(st.integers(1, 4))
        model |= {"hidden_layers": hidden_layers, "hidden": draw(st.integers(4, 16))}
    else:
        layers = draw(st.sampled_from([[4], [4, "M", 6], [3, 5, "M", 4], [4, "A", 4]]))
        hidden_layers = draw(st.integers(0, 1)) + sum(layer not in ("M", "A") for layer in layers)
        convolutions = sum(layer not in ("M", "A") for layer in layers)
        model |= {"layers": layers, "hidden_layers": hidden_layers - convolutions, "hidden": 8}
    names = ["relu", "leaky_relu"]
    model |= {"name": kind, "nonlinearity": draw(st.sampled_from(names))}
    group = draw(st.sampled_from([1, 1, 2, "all"]))
    return {**model, "group": group}, {1: hidden_layers, 2: (hidden_layers + 1) // 2, "all": 1}[
        group
    ]


@st.composite
def configs(draw: DrawFn) -> Drawn:
    """A small run: one or two epochs of a few steps."""
    model, most_stages = draw(networks())
    greedy = draw(st.sampled_from([False, False, False, True]))
    plain = [{"name": name} for name in ("pred", "sim", "predsim")]
    plain.append({"name": "sim", "similarity_pool": 2, "similarity_channels": 0.5})
    plain.append({"name": "predsim", "similarity_batches": 0.5, "similarity_bf16": True})
    blockwise = model.get("group") == 1 and not greedy
    epochs = 1 if greedy else draw(st.integers(1, 2))
    batch_size = draw(st.sampled_from([4, 8]))
    images = 2 * batch_size + draw(st.integers(2, batch_size))
    made = {
        "name": "synthetic",
        "size": 6,
        "channels": draw(st.integers(1, 3)),
        "classes": draw(st.integers(2, 5)),
        "train_images": images,
        "test_images": 9,
    }
    own = {
        "factory": FACTORY,
        "kwargs": {"data": "shifted", "n": images},
        "normalise": draw(st.sampled_from(["known", "measured"])),
    }
    name = draw(st.sampled_from(["adam", "amsgrad", "adamw", "sgd"]))
    optimizer = {
        "name": name,
        "lr": 1e-3,
        "nesterov": name == "sgd" and draw(st.booleans()),
        "clip_norm": draw(st.sampled_from([None, 0.1])),
        "blocks": draw(st.sampled_from([{}, {0: {"lr": 0.01}, 1: {"weight_decay": 0.1}}])),
    }
    loss = draw(st.sampled_from(plain + BLOCKWISE if blockwise else plain))
    classifies = loss["name"] != "sim" and not loss.get("bio")
    sections = {
        "model": model,
        "loss": {
            **loss,
            "dim_in_decoder": 32,
            "label_smoothing": draw(st.sampled_from([0.0, 0.1])) if classifies else 0.0,
        },
        "optimizer": {**optimizer, "weight_decay": draw(st.sampled_from([0.0, 1e-3]))},
        "schedule": {
            "epochs": epochs,
            "greedy": greedy,
            "decay": draw(st.sampled_from(["milestones", "cosine"])),
            "warmup_epochs": draw(st.integers(0, epochs - 1)),
        },
        "data": {
            **draw(st.sampled_from([made, own])),
            "batch_size": batch_size,
            "crop_padding": draw(st.integers(0, 2)),
            "flip": draw(st.booleans()),
            "cutout": draw(st.sampled_from([0, 2])),
        },
    }
    runtime = {
        "seed": draw(st.integers(0, 99)),
        "precision": draw(st.sampled_from(["fp32", "fp32", "bf16"])),
        "wire_dtype": draw(st.sampled_from(["as_computed", "as_computed", "bf16"])),
        "checkpoint_every_steps": draw(st.integers(0, 2)),
        "eval_every_epochs": draw(st.integers(0, 1)),
    }
    stages = draw(st.integers(1, most_stages)), draw(st.integers(1, most_stages))
    lost = draw(st.integers(0, stages[0] - 1)), draw(st.integers(1, 25))
    return Drawn(sections, runtime, stages, lost, draw(st.integers(0, 5)))


def check(drawn: Drawn, folder: Callable[[], Path]) -> None:
    """Train it in every way.

    Raises:
        AssertionError: where other bytes came out.
    """

    def job(stages: int, start: RunState | None = None) -> Job:
        return Job(folder(), stages, start, **drawn.sections, **drawn.runtime)

    single, kept = job(drawn.stages[0]), list[Any]()

    def keep(event: Event) -> None:
        if isinstance(event, CheckpointWritten):
            kept.append(single.store.newest)

    single.listeners.append(keep)
    SingleTrainer(single.run).run()
    right = digests(single)
    last = max(right)
    pipelined = job(drawn.stages[0])
    train_pipelined(pipelined)
    assert digests(pipelined) == right, "in stages"
    start = kept[drawn.resumed_from % len(kept)]
    if start.position.step < last:
        resumed = job(drawn.stages[1], start)
        train_pipelined(resumed)
        assert digests(resumed)[last] == right[last], f"resumed from step {start.position.step}"
    disturbed = job(drawn.stages[0])
    train_pipelined(disturbed, {drawn.lost[0]: Fate(drawn.lost[1])})
    assert digests(disturbed)[last] == right[last], "with a worker lost"


def digests(job: Job) -> dict[int, list[str]]:
    """SHA-256 of every block's file, by step."""
    return {
        step: [sha256(files[block]).hexdigest() for block in sorted(files)]
        for step, files in job.store.files.items()
    }


@contextmanager
def folders() -> Iterator[Callable[[], Path]]:
    """New folders, which are gone in the end; and threads make stages one by one: they share
    torch's generator, which processes don't."""
    lock, build = Lock(), worker.build_stage

    def locked(*given: Any, **named: Any) -> Any:
        with lock:
            return build(*given, **named)

    with (
        tempfile.TemporaryDirectory() as base,
        patch("pipeline.worker.worker.build_stage", locked),
    ):
        yield lambda: Path(tempfile.mkdtemp(dir=base))


@click.command()
@click.option("--seed", "first", default=1, show_default=True, help="Of hypothesis.")
@click.option("--examples", default=300, show_default=True, help="How many configs to draw.")
def main(first: int, examples: int) -> None:
    """Draw configs and train each in every way; the smallest that differs is shown."""
    passed = 0

    @seed(first)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(configs())
    def run(drawn: Drawn) -> None:
        nonlocal passed
        with folders() as folder:
            check(drawn, folder)
        passed += 1
        if passed % 10 == 0:
            print(f"seed {first}: {passed} passed", flush=True)

    run()
    print(f"seed {first}: {passed} configs, all equal")


if __name__ == "__main__":
    main()
