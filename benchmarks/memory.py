"""How much memory activations take at most, by depth: python -m benchmarks.memory

single         local losses, all blocks in one process: each learns, and frees, before the next
stage          local losses, one stage per hidden layer: the stage that takes the most
global         global backprop by our own step: the group that holds the whole network
checkpointed   global backprop with activation checkpointing (`rivals/checkpointed.py`)

A figure is the peak of what tensors take during the second training step, beyond what was held
before it (weights, optimizer state), which is counted apart: local losses hold their heads, too.
It includes what arrives, and gradients; `activations` leaves out the gradients of weights: local
losses free each block's at once, under global backprop all live until the update. What libraries
take without PyTorch (oneDNN's scratch) is not seen.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import torch

from benchmarks.lib.allocations import MarkingOptimizer, Peaks, measure
from benchmarks.lib.command_line import device_named, provenance_now, with_usage_errors
from benchmarks.lib.report import Finding, Report
from benchmarks.lib.result_files import RESULTS, keep_so_far, make_writable, write_result
from benchmarks.rivals.checkpointed import CheckpointedNetwork, numbers_of_segments
from launch.display.format import markdown
from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.learning.build import build_stage, prepare_process
from pipeline.learning.optimizers import make_optimizer
from pipeline.network.from_config import network_specs
from pipeline.network.specs import stage_units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from benchmarks.lib.report import Result
    from pipeline.config.sections import Config
    from pipeline.learning.optimizers import Optimizer
    from pipeline.network.specs import Shape

WARM_UP_IMAGES = 8
"""In the first step, after which the optimizers hold their state."""
ASKED_GROWTH = 0.05
"""Of single mode's peak, either way, where the MLP's depth is doubled."""
ASKED_SHARE, ASKED_OF = 0.25, "vgg19"
"""Of global backprop's peak, in single mode."""
_SAID = {"global": "global backprop", "checkpointed": "checkpointed"}
_LR = 1e-4


def mlp(layers: int) -> dict[str, Any]:
    """MNIST's network (configs/mnist_mlp.yaml), but of so many hidden layers."""
    return {
        "model": {"name": "mlp", "hidden_layers": layers, "hidden": 1024, "dropout": 0.1},
        "data": {"name": "synthetic", "channels": 1, "size": 28},
    }


def vgg(name: str) -> dict[str, Any]:
    """A VGG as in configs/vgg8b.yaml."""
    return {
        "model": {"name": name, "hidden_layers": 1, "hidden": 1024, "dropout": 0.2},
        "data": {"name": "synthetic", "channels": 3, "size": 32},
    }


NETWORKS: dict[str, dict[str, Any]] = {
    **{f"mlp-{layers}": mlp(layers) for layers in (4, 8, 16, 32)},
    **{name: vgg(name) for name in ("vgg8b", "vgg11b", "vgg19")},
}


def configured(tree: Mapping[str, Any], loss: str, batch_size: int) -> Config:
    """A network that learns from such a loss."""
    data = {**tree["data"], "batch_size": batch_size}
    return build_config({**tree, "data": data, "loss": {"name": loss}}, "a benchmark")


def peaks_of_blocks(config: Config, blocks: Sequence[int], device: torch.device) -> Peaks:
    """Of a stage that holds these blocks; what it sends is gone with the next block's input."""
    facts = data_facts(config.data)
    stage = build_stage(config, facts, blocks, device)
    for block in stage.blocks:
        block.attach(marking_optimizer)
    shape = stage.blocks[0].spec.in_shape
    dtype = torch.bfloat16 if config.runtime.precision == "bf16" else torch.float32

    def step(batch_id: int, images: int) -> None:
        x, labels = arriving(shape, images, device, torch.uint8 if blocks[0] == 0 else dtype)
        stage.train(x, labels, batch_id=batch_id, lr=_LR, send=_to_nobody)

    peaks = second_step(step, config.data.batch_size, device)
    tensors = (tensor for state in stage.state().values() for tensor in state.values())
    return replace(peaks, held=bytes_of(tensors))


def all_blocks(loss: str, tree: Mapping[str, Any], batch_size: int, device: torch.device) -> Peaks:
    """All blocks in one process: with local losses each learns before the next computes, with
    `glob` they learn together from the output's cross-entropy."""
    config = configured(tree, loss, batch_size)
    blocks = range(len(network_specs(config, data_facts(config.data))))
    return peaks_of_blocks(config, blocks, device)


def largest_stage(tree: Mapping[str, Any], batch_size: int, device: torch.device) -> Peaks:
    """The most that any stage takes, where there are as many as there can be."""
    config = configured(tree, "predsim", batch_size)
    units = stage_units(network_specs(config, data_facts(config.data)))
    stages = [[spec.index for spec in unit] for unit in units]
    found = [peaks_of_blocks(config, blocks, device) for blocks in stages]
    return max(found, key=lambda peaks: peaks.total)


def checkpointed(tree: Mapping[str, Any], batch_size: int, device: torch.device) -> Peaks:
    """Global backprop in a plain network that computes most activations twice: the least of several
    numbers of segments."""
    config = configured(tree, "glob", batch_size)
    depth = len(network_specs(config, data_facts(config.data)))
    found = (peaks_of_segments(config, n, device) for n in numbers_of_segments(depth))
    return min(found, key=lambda peaks: peaks.total)


def peaks_of_segments(config: Config, segments: int, device: torch.device) -> Peaks:
    """Of checkpointed global backprop in so many segments."""
    facts, bf16 = data_facts(config.data), config.runtime.precision == "bf16"
    specs = network_specs(config, facts)
    network = CheckpointedNetwork(specs, marking_optimizer, device, segments, bf16=bf16)

    def step(batch_id: int, images: int) -> None:
        x, labels = arriving(facts.shape, images, device, torch.uint8)
        network.train(x, labels, lr=_LR)

    peaks = second_step(step, config.data.batch_size, device)
    return replace(peaks, held=bytes_of(network.state()))


WAYS: dict[str, Callable[[Mapping[str, Any], int, torch.device], Peaks]] = {
    "single": partial(all_blocks, "predsim"),
    "stage": largest_stage,
    "global": partial(all_blocks, "glob"),
    "checkpointed": checkpointed,
}


def marking_optimizer(learned: Mapping[str, Tensor]) -> Optimizer:
    """Adam, whose gradients are marked in the record."""
    return MarkingOptimizer(make_optimizer("adam", learned, weight_decay=0.0, momentum=0.9))


def arriving(
    shape: Shape, images: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """A batch, as it comes in: uint8 images or an activation, and labels."""
    generator, as_images = torch.Generator(device).manual_seed(1), dtype == torch.uint8
    maps = len(shape) > 1 and not as_images
    order = torch.channels_last if maps else torch.contiguous_format
    x = torch.empty(images, *shape, dtype=dtype, device=device, memory_format=order)
    drawn = x.random_(256, generator=generator) if as_images else x.uniform_(generator=generator)
    return drawn, torch.arange(images, device=device).remainder_(10)


def second_step(step: Callable[[int, int], None], batch_size: int, device: torch.device) -> Peaks:
    """Measure a step of a whole batch; one before it, of a few images, is not."""
    step(1, min(WARM_UP_IMAGES, batch_size))
    return measure(partial(step, 2, batch_size), device)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of their memory, which several of them may share."""
    pieces = (tensor.untyped_storage() for tensor in tensors)
    return sum({piece.data_ptr(): piece.nbytes() for piece in pieces}.values())


def _to_nobody(passed: Tensor) -> None:
    """A stage's neighbour copies what it is sent into memory of its own."""


def growths(found: Mapping[str, Mapping[str, Peaks]]) -> dict[str, float]:
    """Of single mode's peak from an MLP to the one that is twice as deep; by that one."""
    depths = {int(name.removeprefix("mlp-")): name for name in found if name.startswith("mlp-")}
    peaks = {depth: found[name]["single"].total for depth, name in depths.items()}
    return {
        depths[2 * depth]: peaks[2 * depth] / peaks[depth] - 1
        for depth in sorted(peaks)
        if 2 * depth in peaks
    }


def peaks_in(result: Result) -> dict[str, dict[str, Peaks]]:
    """By network and way, what a kept result holds."""
    return {
        network: {way: Peaks(**peaks) for way, peaks in ways.items()}
        for network, ways in result["bytes"].items()
    }


def findings(result: Result) -> list[Finding]:
    """Single mode's peak beside global backprop's, and how it grows with the MLP's depth."""
    found = peaks_in(result)
    told = [
        Finding(f"{deeper}, single mode: more than with half the depth", f"{growth:+.1%}",
                f"±{ASKED_GROWTH:.0%}", abs(growth) <= ASKED_GROWTH)
        for deeper, growth in growths(found).items()
    ]  # fmt: skip
    for network, ways in found.items():
        share, asked = _share_of_global(ways), network == ASKED_OF
        what = f"{network}, single mode / global backprop"
        told.append(Finding(what, f"{share:.2f}", f"≤ {ASKED_SHARE:g}" * asked,
                            share <= ASKED_SHARE or not asked))  # fmt: skip
        for rival in ("global", "checkpointed"):
            if (all_of_it := _share_of_all(ways, rival)) is not None:
                said = f"{network}, with weights and optimizer state, single mode / {_SAID[rival]}"
                told.append(Finding(said, f"{all_of_it:.2f}"))
    return told


def _share_of_global(ways: Mapping[str, Peaks]) -> float:
    return ways["single"].total / ways["global"].total


def _share_of_all(ways: Mapping[str, Peaks], rival: str) -> float | None:
    """Of the other way's peak with what is held, in single mode; None where it is not known."""
    own, other = ways["single"], ways[rival]
    if own.held is None or other.held is None:
        return None
    return (own.held + own.total) / (other.held + other.total)


def table(result: Result) -> str:
    """Megabytes at the peak; in brackets without the gradients of weights; what is held."""
    found = peaks_in(result)
    ways = list(next(iter(found.values())))
    rows = [
        [
            network,
            *map(_cell, by_way.values()),
            f"{_share_of_global(by_way):.2f}",
        ]
        for network, by_way in found.items()
    ]
    return markdown(["network", *ways, "single / global"], rows, texts={"network"})


def _cell(peaks: Peaks) -> str:
    text = f"{peaks.total / 1e6:.1f} ({peaks.activations / 1e6:.1f})"
    return text if peaks.held is None else f"{text} + {peaks.held / 1e6:.1f}"


REPORT = Report(
    "Memory",
    "Peak of what tensors take in one training step (of 128 images) beyond weights and optimizer "
    "state, in MB; in brackets without the gradients of weights; after the plus weights, "
    "statistics and the optimizer's state (Adam), heads' too, which are held all the time. The "
    "last column is of the step alone.",
    findings,
    table,
)


@click.command()
@click.option("--network", "names", multiple=True, type=click.Choice(list(NETWORKS)),
              help="Only this one; may be given several times.")  # fmt: skip
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(2))
@click.option("--device", "device_name", default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@with_usage_errors
def main(names: tuple[str, ...], batch_size: int, device_name: str, precision: str) -> None:
    """Measure, print and keep benchmarks/results/memory-….json, on a GPU memory_cuda-….json, in
    bf16 memory_bf16-….json or memory_cuda_bf16-….json."""
    device = torch.device(device_named(device_name))
    make_writable(RESULTS)
    name = "memory" + "_cuda" * (device.type == "cuda") + "_bf16" * (precision == "bf16")
    where = {**provenance_now(), "batch_size": batch_size}
    prepare_process(device, 1)
    found: dict[str, dict[str, Any]] = {}
    for network in names or NETWORKS:
        tree = {**NETWORKS[network], "runtime": {"precision": precision}}
        found[network] = {}
        for way, measured in WAYS.items():
            peaks = measured(tree, batch_size, device)
            found[network][way] = asdict(peaks)
            print(f"{network}, {way}: {peaks.total / 1e6:.1f} MB", flush=True)
        keep_so_far(name, {**where, "bytes": found})
    result = {**where, "bytes": found}
    REPORT.show(result, write_result(name, result))


if __name__ == "__main__":
    main()
