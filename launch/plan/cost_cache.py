"""Measured costs of a network, kept in a file that a person can read and edit.

One file for each network, batch size, precision, threads and kind of device, in
`~/.cache/local-loss-pipeline/` (or below `XDG_CACHE_HOME`).
"""

from __future__ import annotations

import json
import os
from datetime import date
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from launch.machine.gpus import gpu_names
from launch.machine.provenance import processor
from pipeline.config.sections import config_tree
from pipeline.config.yaml_file import load_tree
from pipeline.config.yaml_text import dump_tree
from pipeline.errors import ConfigError
from pipeline.planning.plan_files import load_costs
from pipeline.planning.prediction import BlockTimes, Links, Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.network.specs import BlockSpec
    from pipeline.planning.cost import BlockCost

_FOLDER = "local-loss-pipeline"
_INDIFFERENT = frozenset(
    {"accept", "download", "mean", "normalise", "on_bad_image", "random_crop", "resize", "std",
     "test_images", "test_limit", "train_images", "train_limit", "validation", "white"}
)  # fmt: skip
"""Keys of `data` that no block's time depends on."""


def cost_file(config: Config, specs: Sequence[BlockSpec], device: str) -> Path | None:
    """Where the costs of this network on this kind of device are kept; None where nothing says
    which folder that would be, as for a user without a home (a container's, a service's)."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        cache = Path(named) if named else Path.home() / ".cache"
    except RuntimeError:  # HOME is not set, and the user is not known by name
        return None
    key = json.dumps([_key(config), repr(specs), device_kind(device)])
    digest = sha256(key.encode()).hexdigest()[:12]
    return cache / _FOLDER / f"{config.model.name}-{config.loss.name}-{digest}.yaml"


def device_kind(device: str) -> str:
    """What a device calls itself: devices of one kind take the same time."""
    if device == "cpu":
        return processor()
    names, number = gpu_names(), int(device.partition(":")[2])
    return names[number] if number < len(names) else device


def known_timing(
    config: Config,
    specs: Sequence[BlockSpec],
    costs: tuple[BlockCost, ...],
    devices: Sequence[str],
) -> tuple[Timing, Path] | None:
    """What was measured earlier, where all devices are of one kind; and where it is kept.

    Raises:
        ConfigError: where the file was spoilt.
    """
    path = cost_file(config, specs, devices[0])
    # the folder may be another user's, as where a container has this one's HOME
    if (
        path is None
        or not os.access(path, os.R_OK)
        or not path.is_file()
        or len({device_kind(device) for device in devices}) > 1
    ):
        return None
    kept = load_costs(path, specs, config.data.batch_size)
    on_cpu, speed = devices[0] == "cpu", kept.copied_per_s
    timing = Timing(
        tuple(BlockTimes(b.block, b.forward_s, b.learn_s) for b in kept.blocks),
        costs,
        config.data.batch_size,
        # a CPU sends with the thread that trains, a CUDA device beside what it computes
        Links(copied_per_s=speed) if on_cpu else Links(sent_per_s=speed),
        _capacity(config, devices[0]),
        kept.feed_s,
        kept.crowded_speed if on_cpu else 1.0,
    )
    return timing, path


def measure(
    config: Config,
    facts: DataFacts,
    specs: Sequence[BlockSpec],
    devices: Sequence[str],
    told: Callable[[str], None],
) -> Path:
    """Measure every block on the first device, and keep it for all of its kind.

    Raises:
        ConfigError: where devices are of several kinds, there is no data set, or it can't be kept.
    """
    from pipeline.profiling.blocks import copied_per_s, feed_s, measure_blocks  # torch

    path = _place_for(cost_file(config, specs, devices[0]))
    kinds = {device_kind(device): device for device in devices}
    if len(kinds) > 1:
        named = ", ".join(f"{device} is {kind}" for kind, device in kinds.items())
        raise ConfigError(
            f"--measure: devices of one kind are measured, by the first of them, but {named}; "
            "name devices of one kind with --gpus"
        )
    told("the feed")  # first: it needs the data set
    fed_s = feed_s(config)
    times = measure_blocks(config, facts, devices[0], told)
    threads = config.runtime.threads_per_stage
    tree = {
        "network": f"{config.model.name}, {config.loss.name}, {config.runtime.precision}",
        "device": f"{devices[0]}: {device_kind(devices[0])}, {threads} threads",
        "batch_size": config.data.batch_size,
        "measured": f"{date.today().isoformat()}, torch {version('torch')}",
        "copied_per_s": float(f"{copied_per_s(devices):.3g}"),
        "feed_s": _rounded(fed_s),
        "crowded_speed": 1.0,
        "blocks": [
            {
                "block": block.block,
                "name": specs[block.block].name,
                "forward_s": _rounded(block.forward_s),
                "learn_s": _rounded(block.learn_s),
            }
            for block in times
        ],
    }
    _keep(path, tree)
    return path


def keep_crowded_speed(config: Config, specs: Sequence[BlockSpec], speed: float) -> None:
    """Add to what was measured on this CPU, for later predictions, what a trial run has shown.

    Raises:
        ConfigError: where it can't be kept.
    """
    path = _place_for(cost_file(config, specs, "cpu"))
    _keep(path, {**load_tree(path), "crowded_speed": _rounded(speed)})


def _place_for(path: Path | None) -> Path:
    """Found out before anything is measured."""
    if path is None:
        raise ConfigError(
            "--measure: what is measured can't be kept: this user has no home folder; let "
            "XDG_CACHE_HOME name a folder that can be written to"
        )
    _guarded(path, lambda: path.parent.mkdir(parents=True, exist_ok=True))
    return path


def _keep(path: Path, tree: dict[str, object]) -> None:
    _guarded(path, lambda: path.write_text(dump_tree(tree), encoding="utf-8"))


def _guarded(path: Path, work: Callable[[], object]) -> None:
    try:
        work()
    except OSError as error:
        raise ConfigError(
            f"--measure: what is measured can't be kept in {path}: {error.strerror}; let "
            "XDG_CACHE_HOME name a folder that can be written to"
        ) from None


def _capacity(config: Config, device: str) -> float:
    """Stages that a device runs at once."""
    if device != "cpu":
        return 1.0
    return max(1.0, len(os.sched_getaffinity(0)) / config.runtime.threads_per_stage)


def _key(config: Config) -> list[object]:
    """Everything of a config that times depend on, but for what `specs` say of the network."""
    tree = config_tree(config)
    decisive = ("precision", "compile", "cuda_graphs", "threads_per_stage", "on_nonfinite")
    runtime = {key: tree["runtime"][key] for key in decisive}
    data = {key: value for key, value in tree["data"].items() if key not in _INDIFFERENT}
    more = ["clipped"] * ("clip_norm" in tree["optimizer"])
    if config.saves_memory:
        more.append(f"{config.runtime.recompute} {config.optimizer.accumulate}")
    if config.runtime.wire_dtype == "bf16":
        more.append("rounded")
    # which blocks are frozen the specs say; what they begin with does not matter
    model = {k: value for k, value in tree["model"].items() if k not in ("init_from", "freeze")}
    return [model, tree["loss"], tree["optimizer"]["name"], data, runtime, *more]


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")
