"""How fast activations cross from one process to another: python -m benchmarks.links

By size and carrier, beside a plain copy of the same bytes within one process and, over TCP, a plain
socket, all by turns:

    size    0.5 MiB                                        1 MiB  …
    round   1: copy, shared memory, ipc, tcp    2: …
                   └─ so many hops, one after another: their median, and processor time

A hop takes from just before `send` until the other process has the tensors in hand.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING

import click
import numpy as np
import torch

from benchmarks.lib.command_line import device_named, provenance_now, with_usage_errors
from benchmarks.lib.link_ends import CARRIERS, DEVICE_CARRIERS, IMAGES, Hops, linked, synchronize
from benchmarks.lib.plain_socket import plain_socket
from benchmarks.lib.report import Finding, Report
from benchmarks.lib.result_files import RESULTS, make_writable, write_result
from launch.command import NumberRange
from launch.display.format import markdown
from pipeline.learning.build import prepare_process
from pipeline.transport.sockets import socket_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from benchmarks.lib.report import Result

ASKED_SHARE, ASKED_SHARE_MIB = 0.6, 64.0
"""Of a plain copy's speed, through shared memory."""
ASKED_CPU_S, ASKED_CPU_MIB = 1e-3, 0.5
"""Processor time of both ends for one batch and hop of the MLP's size."""

ASKED_STREAM_SHARE = 0.6
"""Of a plain socket's speed, by a sealed stream, at the same size."""

COPY, SHARED, DEVICE = "copy", CARRIERS[0].name, DEVICE_CARRIERS[0].name
SOCKET, STREAM = "plain socket", CARRIERS[-1].name
SIZES_MIB = (0.5, 1.0, 4.0, 16.0, 64.0, 256.0)
_MIB = 1 << 20
_MOST_HOPS, _LEAST_HOPS, _ROUND_MIB = 100, 2, 256
IN_FLIGHT, _STREAM_HOPS = 2, 300
"""While batches follow each other; `runtime.max_in_flight` is 2 by default."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one size and carrier: medians of each round's hops, in seconds, and processor seconds
    of both ends per hop."""

    seconds: list[float]
    cpu_s: list[float]


def hops_of(mib: float) -> int:
    """How many hops of a size make a round."""
    return min(_MOST_HOPS, max(_LEAST_HOPS, int(_ROUND_MIB / mib)))


def activation(mib: float, device: torch.device) -> Tensor:
    """(images, features) of so many MiB."""
    return torch.rand(IMAGES, int(mib * _MIB) // (4 * IMAGES), device=device)


def copier(most_bytes: int, device: torch.device) -> Callable[[Tensor, int], Hops]:
    """Copies within this process and its device, to memory that it has used before."""
    memory, on_cpu = torch.zeros(most_bytes // 4, device=device), device.type == "cpu"

    def copy(x: Tensor, count: int) -> Hops:
        target, laps, cpu_s = memory[: x.numel()].view(x.shape), [], process_time()
        for _ in range(count):
            synchronize(device)
            began = perf_counter()
            if on_cpu:  # as a hop copies
                np.copyto(target.numpy(), x.numpy())
            else:
                target.copy_(x)
            synchronize(device)
            laps.append(perf_counter() - began)
        return Hops(laps, process_time() - cpu_s)

    return copy


def measure_size(
    ways: Mapping[str, Callable[[Tensor, int], Hops]],
    mib: float,
    rounds: int,
    device: torch.device,
) -> dict[str, Measured]:
    """All ways by turns; a round before the first only warms up."""
    x, count = activation(mib, device), hops_of(mib)
    found: dict[str, Measured] = {name: Measured([], []) for name in ways}
    for number in range(rounds + 1):
        for name, cross in ways.items():
            hops = cross(x, count if number else min(count, _LEAST_HOPS))
            if number:
                found[name].seconds.append(median(hops.seconds))
                found[name].cpu_s.append(hops.cpu_s / count)
    return found


def measure_all(
    sizes: Sequence[float], rounds: int, device: torch.device
) -> dict[float, dict[str, Measured]]:
    """Every size, with one other process for each carrier."""
    carriers = DEVICE_CARRIERS if device.type == "cuda" else CARRIERS
    most_bytes = int(max(sizes) * _MIB)
    found: dict[float, dict[str, Measured]] = {}
    with socket_folder() as folder, ExitStack() as open_links:
        ways = {COPY: copier(most_bytes, device)}
        for number, carrier in enumerate(carriers):
            link = linked(carrier, most_bytes, folder / str(number), device)
            ways[carrier.name] = open_links.enter_context(link).cross
        if device.type == "cpu":
            ways[SOCKET] = open_links.enter_context(plain_socket(most_bytes)).cross
        for mib in sizes:
            found[mib] = measure_size(ways, mib, rounds, device)
            print(table({mib: found[mib]}), flush=True)
    return found


def streaming_cpu_s(mib: float, rounds: int, device: torch.device) -> float:
    """Processor seconds of both ends per hop through shared memory while one batch follows the
    other, as in training: the median of the rounds."""
    with socket_folder() as folder:
        room, socket = int(mib * _MIB), folder / "streaming"
        with linked(CARRIERS[0], room, socket, device, slots=IN_FLIGHT) as link:
            x, count = activation(mib, device), _STREAM_HOPS
            link.cross(x, count)  # warms up
            return median(link.cross(x, count).cpu_s / count for _ in range(rounds))


def share_of_copy(found: Mapping[str, Measured]) -> float:
    """How fast the best carrier is, a plain copy being 1: the median of the rounds."""
    pairs = zip(found[COPY].seconds, found[best_of(found)].seconds, strict=True)
    return median(copy / hop for copy, hop in pairs)


def share_of_socket(found: Mapping[str, Measured], way: str = STREAM) -> float:
    """How fast what goes over TCP is, a plain socket being 1: the median of the rounds."""
    pairs = zip(found[SOCKET].seconds, found[way].seconds, strict=True)
    return median(plain / hop for plain, hop in pairs)


def best_of(found: Mapping[str, Measured]) -> str:
    """The carrier without a copy too many."""
    return DEVICE if DEVICE in found else SHARED


def table(found: Mapping[float, Mapping[str, Measured]]) -> str:
    """GB/s, microseconds per hop, processor time of both ends, by size and carrier."""
    names = list(next(iter(found.values())))
    shares = {f"{best_of(next(iter(found.values())))} / copy": share_of_copy}
    if SOCKET in names:
        shares[f"{STREAM} / {SOCKET}"] = share_of_socket
    rows = [
        [
            f"{mib:g}",
            *(_cell(mib, ways[name]) for name in names),
            *(f"{share(ways):.2f}" for share in shares.values()),
        ]
        for mib, ways in found.items()
    ]
    return markdown(["MiB", *names, *shares], rows)


def _cell(mib: float, measured: Measured) -> str:
    hop_us, cpu_us = median(measured.seconds) * 1e6, median(measured.cpu_s) * 1e6
    return f"{mib * _MIB / hop_us / 1e3:.2f} GB/s, {hop_us:.0f} µs, CPU {cpu_us:.0f} µs"


def measured_in(result: Result) -> dict[float, dict[str, Measured]]:
    """By size and carrier, what a kept result holds."""
    return {
        float(mib): {way: Measured(one["seconds"], one["cpu_s"]) for way, one in ways.items()}
        for mib, ways in result["by_mib"].items()
    }


def findings(result: Result) -> list[Finding]:
    """The best carrier beside a plain copy, by size; between processes on the CPU also what a hop
    takes the processor."""
    told, found = [], measured_in(result)
    for mib, ways in found.items():
        best, share = best_of(ways), share_of_copy(ways)
        is_asked = (mib, best) == (ASKED_SHARE_MIB, SHARED)
        told.append(
            Finding(
                f"{mib:g} MiB through {best} / a plain copy's speed",
                f"{share:.2f} ({median(ways[best].seconds) * 1e6:,.0f} µs)",
                f"≥ {ASKED_SHARE:g}" if is_asked else "",
                share >= ASKED_SHARE or not is_asked,
            )
        )
        if SOCKET in ways:
            told += _beside_a_socket(mib, ways)
    if DEVICE in next(iter(found.values())):
        return told
    cpu_s = result["streaming_cpu_s"]
    what = f"{ASKED_CPU_MIB:g} MiB through {SHARED}, {IN_FLIGHT} in flight, processor time of a hop"
    asked = f"≤ {ASKED_CPU_S * 1e3:g} ms"
    return [*told, Finding(what, f"{cpu_s * 1e3:.2f} ms", asked, cpu_s <= ASKED_CPU_S)]


def _beside_a_socket(mib: float, ways: Mapping[str, Measured]) -> list[Finding]:
    """Everything that goes over TCP."""
    told = []
    for way in [carrier.name for carrier in CARRIERS if carrier.tcp]:
        share, is_asked = share_of_socket(ways, way), (mib, way) == (ASKED_SHARE_MIB, STREAM)
        told.append(
            Finding(
                f"{mib:g} MiB by {way} / a plain socket's speed",
                f"{share:.2f} ({median(ways[way].seconds) * 1e6:,.0f} µs)",
                f"≥ {ASKED_STREAM_SHARE:g}" if is_asked else "",
                share >= ASKED_STREAM_SHARE or not is_asked,
            )
        )
    return told


REPORT = Report(
    "Links",
    "A hop of float32 activations of 128 images from one process to another, beside a plain copy: "
    "medians of the rounds, processor time of both ends. A hop contains a copy, so a share above 1 "
    "says that the plain copy was slow: until commit 12772ef it was PyTorch's `copy_`, which takes "
    "1.0 to 1.9 times as long as numpy's, by which a hop copies. What goes over TCP stands beside "
    "a plain socket, which receives into memory that is ready.",
    findings,
    lambda result: table(measured_in(result)),
)


@click.command()
@click.option(
    "--size",
    "sizes",
    multiple=True,
    type=NumberRange(2**-10, 2**14),
    help="MiB; only this one, or these.",
)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--gpu", type=click.IntRange(0), help="Between two processes on this CUDA device.")
@with_usage_errors
def main(sizes: tuple[float, ...], rounds: int, gpu: int | None) -> None:
    """Measure, print and keep benchmarks/results/links-….json; on a GPU links_cuda-….json."""
    device = torch.device(device_named("cpu" if gpu is None else f"cuda:{gpu}"))
    make_writable(RESULTS)
    result = {**provenance_now(), "rounds": rounds}
    prepare_process(device, threads=1)
    result["by_mib"] = {
        f"{mib:g}": {way: asdict(one) for way, one in ways.items()}
        for mib, ways in measure_all(sizes or SIZES_MIB, rounds, device).items()
    }
    result["streaming_cpu_s"] = streaming_cpu_s(ASKED_CPU_MIB, rounds, device)
    REPORT.show(result, write_result("links" if gpu is None else "links_cuda", result))


if __name__ == "__main__":
    main()
