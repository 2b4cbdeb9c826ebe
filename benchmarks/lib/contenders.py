"""Who is timed, and how each of them is run: processes of its own, one contender at a time.

Ours are runs of `pipeline-launch`, fed as any run, whose epochs are timed by `metrics.jsonl`. The
others are modules of `rivals/`, which are told what to train as JSON and answer with JSON: `plain`
and `onef1b`, whose batches lie ready on the device, and `products`, a bound, which trains nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from launch.command import complaint_in
from launch.plan.checks import network_costs
from pipeline.config.config_file import load_config
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError
from pipeline.network.from_config import network_specs
from pipeline.planning.plan import make_plan
from pipeline.run.metrics import METRICS_FILE

if TYPE_CHECKING:
    from pipeline.config.sections import Config

Way: TypeAlias = Literal["single", "pipeline", "1f1b", "plain", "products"]
Lap: TypeAlias = dict[str, Any]
"""What one measurement gave: `images_per_s` and what it was worked out from, or `failed`."""

LOSSES, PRECISIONS = ("pred", "sim", "predsim"), ("fp32", "bf16")
BATCH = 128
NEVER = 1_000_000_000
"""Steps between checkpoints: as many as a config may say."""
ROOT = Path(__file__).parents[2]
"""Of this clone."""
_CONFIGS = ROOT / "configs"
_RIVALS = {
    "1f1b": "benchmarks.rivals.onef1b",
    "plain": "benchmarks.rivals.plain",
    "products": "benchmarks.rivals.products",
}
_OF_CONTENDERS = frozenset({
    "data.name", "data.batch_size", "data.train_images", "data.test_images", "data.size",
    "data.channels", "loss.name", "model.name", "model.layers", "model.hidden",
    "model.hidden_layers", "model.feat_mult", "model.factory", "model.group", "optimizer.name",
    "optimizer.weight_decay", "runtime.precision", "runtime.compile", "runtime.threads_per_stage",
    "runtime.eval_every_epochs", "runtime.checkpoint_every_steps", "schedule.epochs",
    "schedule.greedy", "loss.similarity_pool", "loss.similarity_channels", "loss.similarity_groups",
    "loss.similarity_batches", "loss.similarity_bf16",
})  # fmt: skip
"""Not to be set: networks are called by their sizes, and rivals train by Adam without weight decay,
whatever a config says."""
_START_UP_S = 900.0
"""For starting, warming up and, of ours, the first epoch."""


@dataclass(frozen=True, slots=True)
class Network:
    """What people call it, its file in configs/, what of that is changed."""

    title: str
    config: str
    changes: tuple[str, ...]


_GREY = ("data.channels=1", "data.size=28")
_COLOUR = ("data.channels=3", "data.size=32")
NETWORKS = {
    "mlp": Network("MLP 3×1024, MNIST's shape", "mnist_mlp", _GREY),
    "vgg8b_quarter": Network(
        "VGG8B × 0.25, CIFAR's shape", "vgg8b", (*_COLOUR, "model.feat_mult=0.25")
    ),
    "cnn3": Network(
        "CNN of 3 layers, CIFAR's shape",
        "vgg8b",
        (*_COLOUR, "model.name=vgg", "model.layers=[16, M, 32, M, 64, M]", "model.hidden_layers=0"),
    ),
    "vgg8b": Network("VGG8B, CIFAR's shape", "vgg8b", _COLOUR),
    "vgg11b": Network("VGG11B, CIFAR's shape", "vgg11b", _COLOUR),
    "vgg11b_3x": Network("VGG11B(3x), CIFAR's shape", "vgg11b_3x", _COLOUR),
}


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to train: `stages` is the number of processes, `micro_batches` of 1F1B alone;
    `compiled`: with `runtime.compile`, ours alone; `cores`: of which one process uses all, so many
    times the threads of others."""

    way: Way
    loss: str
    precision: str
    stages: int = 1
    micro_batches: int = 1
    compiled: bool = False
    cores: int = 1

    @property
    def is_ours(self) -> bool:
        """Whether it is this trainer."""
        return self.way in ("single", "pipeline")

    @property
    def name(self) -> str:
        """A label: `1f1b 2 in 4 glob fp32`, `single pred bf16 compiled`."""
        processes = f" {self.stages}" if self.way in ("pipeline", "1f1b") else ""
        parts = f" in {self.micro_batches}" if self.way == "1f1b" else ""
        ending = " compiled" if self.compiled else ""
        ending += f" on {self.cores} cores" if self.cores > 1 else ""
        return f"{self.way}{processes}{parts} {self.loss} {self.precision}{ending}"


@dataclass(frozen=True, slots=True)
class Task:
    """What a contender is to train, on what, for how long. `threads`: of each process."""

    network: str
    contender: Contender
    gpus: str | None
    threads: int
    seconds: float
    changes: tuple[str, ...] = ()

    def config(self) -> Config:
        """The configuration that our trainer gets."""
        return load_config(_CONFIGS / f"{NETWORKS[self.network].config}.yaml", self.overrides)

    @property
    def overrides(self) -> tuple[str, ...]:
        """What is changed in the network's config: `--set` each."""
        return (
            "data.name=synthetic", f"data.batch_size={BATCH}", f"data.test_images={BATCH}",
            f"loss.name={self.contender.loss}", f"runtime.precision={self.contender.precision}",
            f"runtime.threads_per_stage={self.threads * self.contender.cores}",
            "runtime.eval_every_epochs=0", f"runtime.checkpoint_every_steps={NEVER}",
            f"runtime.compile={self.contender.compiled}",
            *NETWORKS[self.network].changes, *self.changes,
        )  # fmt: skip

    def check(self) -> None:
        """Whether it can be trained.

        Raises:
            ConfigError: where it can't, or would not be what it is called.
        """
        for change in self.changes:
            key = change.partition("=")[0]
            if key in _OF_CONTENDERS:
                raise ConfigError(
                    f"--set {change}: {key} is what contenders are called by, or have in common; "
                    "change it with the options of this command, if at all"
                )
        config = self.config()
        facts = data_facts(config.data)
        specs = network_specs(config, facts)
        stages = self.contender.stages if self.contender.way == "pipeline" else 1
        make_plan(specs, network_costs(config, specs), stages=stages, devices=["cpu"])

    def text(self) -> str:
        """As JSON, for a rival."""
        return json.dumps(asdict(self))


def task_of(text: str) -> Task:
    """The task that `Task.text` wrote as JSON."""
    tree = json.loads(text)
    tree["changes"] = tuple(tree["changes"])
    return Task(**{**tree, "contender": Contender(**tree["contender"])})


def trained(task: Task, steps: int, epochs: int, disk: Path) -> Lap:
    """A run of ours of so many epochs; those after the first are timed."""
    with TemporaryDirectory(prefix="throughput-", dir=disk.absolute()) as name:
        words = [] if task.gpus is None else ["--gpus", task.gpus]
        stages = str(task.contender.stages)
        words += ["--single"] if task.contender.way == "single" else ["--stages", stages]
        sizes = (f"data.train_images={steps * BATCH}", f"schedule.epochs={epochs}")
        for override in (*task.overrides, *sizes):
            words += ["--set", override]
        config = str(_CONFIGS / f"{NETWORKS[task.network].config}.yaml")
        run = [*words, "--view", "quiet", "--run-dir", name, config]
        answer = finished(["launch.cli", *run], task.seconds)
        return answer if isinstance(answer, dict) else timed_epochs(Path(name), steps * BATCH)


def timed_epochs(folder: Path, images: int) -> Lap:
    """What the metrics of a run say of its epochs but the first, of so many images each."""
    lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    timed = [json.loads(line) for line in lines][1:]
    seconds = sum(epoch["seconds"] for epoch in timed)
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    return {
        "images_per_s": round(len(timed) * images / seconds, 1),
        "seconds": round(seconds, 3),
        "epochs_images_per_s": [epoch["images_per_s"] for epoch in timed],
        "busy": [stage["busy"] for stage in timed[-1]["stages"]],
        "stages": plan["stages"],
    }


def raced(task: Task) -> Lap:
    """What a rival says that it gave."""
    answer = finished([_RIVALS[task.contender.way], task.text()], task.seconds)
    return answer if isinstance(answer, dict) else dict(json.loads(answer))


def finished(words: list[str], seconds: float) -> str | Lap:
    """What a module prints in the end, or why it failed."""
    timeout_s = 10 * seconds + _START_UP_S
    try:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            capture_output=True, text=True, check=False, timeout=timeout_s,
            cwd=ROOT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {timeout_s:g} s"}
    if done.returncode:
        return {"failed": complaint_in(done.stderr, done.returncode)}
    return done.stdout
