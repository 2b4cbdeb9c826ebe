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

from launch.gpus import gpu_names
from launch.provenance import processor
from pipeline.config import config_tree
from pipeline.configfile import dump_tree
from pipeline.handwritten import load_costs
from pipeline.timing import BlockTimes, Links, Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.config import Config
    from pipeline.cost import BlockCost
    from pipeline.datasets import DataFacts
    from pipeline.specs import BlockSpec

_FOLDER = "local-loss-pipeline"


def cost_file(config: Config, device: str) -> Path:
    """Where the costs of this network on this kind of device are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = sha256(json.dumps([_key(config), device_kind(device)]).encode()).hexdigest()[:12]
    return cache / _FOLDER / f"{config.model.name}-{config.loss.name}-{digest}.yaml"


def device_kind(device: str) -> str:
    """What a device calls itself: devices of one kind take the same time."""
    if device == "cpu":
        return processor()
    names, number = gpu_names(), int(device.partition(":")[2])
    return names[number] if number < len(names) else device


def known_timing(
    config: Config, costs: tuple[BlockCost, ...], devices: Sequence[str]
) -> tuple[Timing, Path] | None:
    """What was measured earlier, where all devices are of one kind; and where it is kept.

    Raises:
        ConfigError: where the file was spoilt.
    """
    path = cost_file(config, devices[0])
    if not path.is_file() or len({device_kind(device) for device in devices}) > 1:
        return None
    kept = load_costs(path, len(costs))
    times = tuple(BlockTimes(b.block, b.forward_s, b.learn_s) for b in kept.blocks)
    links = Links(copied_per_s=kept.copied_per_s)
    capacity = _capacity(config, devices[0])
    timing = Timing(
        times, costs, config.data.batch_size, links, capacity, kept.feed_s, kept.crowded_speed
    )
    return timing, path


def measure(
    config: Config,
    facts: DataFacts,
    specs: Sequence[BlockSpec],
    device: str,
    told: Callable[[str], None],
) -> Path:
    """Measure every block on the device, and keep it."""
    from pipeline.measure import copied_per_s, feed_s, measure_blocks  # torch

    times = measure_blocks(config, facts, device, told)
    told("the feed")
    rows = [
        {
            "block": block.block,
            "name": specs[block.block].name,
            "forward_s": _rounded(block.forward_s),
            "learn_s": _rounded(block.learn_s),
        }
        for block in times
    ]
    tree = {
        "network": f"{config.model.name}, {config.loss.name}, {config.runtime.precision}",
        "device": f"{device}: {device_kind(device)}, {config.runtime.threads_per_stage} threads",
        "batch_size": config.data.batch_size,
        "measured": f"{date.today().isoformat()}, torch {version('torch')}",
        "copied_per_s": float(f"{copied_per_s():.3g}"),
        "feed_s": _rounded(feed_s(config)),
        "crowded_speed": _crowded(config, facts, times, device, told),
        "blocks": rows,
    }
    path = cost_file(config, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_tree(tree), encoding="utf-8")
    return path


def _crowded(
    config: Config,
    facts: DataFacts,
    times: Sequence[BlockTimes],
    device: str,
    told: Callable[[str], None],
) -> float:
    """How fast a stage is while as many work as the CPU has room for, or the network has blocks
    for; on a GPU they take turns anyway."""
    from pipeline.crowd import crowded_speed  # torch

    others = min(len(times), int(_capacity(config, device))) - 1
    if device != "cpu" or others < 1:
        return 1.0
    told(f"how {others + 1} stages at once slow each other down")
    costliest = max(times, key=lambda block: block.total_s)
    return _rounded(crowded_speed(config, facts, costliest.block, others))


def _capacity(config: Config, device: str) -> float:
    """Stages that a device runs at once."""
    if device != "cpu":
        return 1.0
    return len(os.sched_getaffinity(0)) / config.runtime.threads_per_stage


def _key(config: Config) -> list[object]:
    """Everything of a config that a block's time depends on."""
    tree = config_tree(config)
    decisive = ("precision", "compile", "cuda_graphs", "threads_per_stage")
    runtime = {key: tree["runtime"][key] for key in decisive}
    data = {key: tree["data"].get(key) for key in ("name", "batch_size", "size", "channels")}
    return [tree["model"], tree["loss"], tree["optimizer"]["name"], data, runtime]


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")
