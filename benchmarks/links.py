"""How fast activations cross from one process to another: python -m benchmarks.links

By size and carrier, beside a plain copy of the same bytes within one process, all by turns:

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
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch

from benchmarks.lib.figures import draw_links
from benchmarks.lib.link_ends import CARRIERS, DEVICE_CARRIERS, IMAGES, Hops, linked, settle
from benchmarks.lib.machine import (
    check_can_be_kept,
    device_named,
    machine,
    read_result,
    told_in_a_line,
    write_result,
)
from benchmarks.lib.tables import README, markdown, no_table, write_section
from launch.machine.provenance import provenance
from pipeline.learning.build import prepare_process
from pipeline.transport.sockets import socket_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from benchmarks.lib.machine import Extent

ASKED_SHARE, ASKED_SHARE_MIB = 0.6, 64.0
"""Of a plain copy's speed, through shared memory."""
ASKED_CPU_S, ASKED_CPU_MIB = 1e-3, 0.5
"""Processor time of both ends for one batch and hop of the MLP's size."""

CPU_NAME = "links"
COPY, SHARED, DEVICE = "copy", CARRIERS[0].name, DEVICE_CARRIERS[0].name
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

    def tree(self, nbytes: int) -> dict[str, Any]:
        """Plain JSON values."""
        rate = round(nbytes / median(self.seconds))
        return {"us": round(median(self.seconds) * 1e6, 1), "bytes_per_s": rate, **asdict(self)}


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
            settle(device)
            began = perf_counter()
            if on_cpu:  # as a hop copies
                np.copyto(target.numpy(), x.numpy())
            else:
                target.copy_(x)
            settle(device)
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


def best_of(found: Mapping[str, Measured]) -> str:
    """The carrier without a copy too many."""
    return DEVICE if DEVICE in found else SHARED


def table(found: Mapping[float, Mapping[str, Measured]]) -> str:
    """GB/s, microseconds per hop, processor time of both ends, by size and carrier."""
    names = list(next(iter(found.values())))
    rows = [
        [f"{mib:g}", *(_cell(mib, ways[name]) for name in names), f"{share_of_copy(ways):.2f}"]
        for mib, ways in found.items()
    ]
    best = best_of(next(iter(found.values())))
    return markdown(["MiB", *names, f"{best} / copy"], rows)


def _cell(mib: float, measured: Measured) -> str:
    tree, cpu_us = measured.tree(int(mib * _MIB)), median(measured.cpu_s) * 1e6
    return f"{tree['bytes_per_s'] / 1e9:.2f} GB/s, {tree['us']:.0f} µs, CPU {cpu_us:.0f} µs"


def verdicts(found: Mapping[float, Mapping[str, Measured]], streaming_s: float) -> list[str]:
    """Whether what was measured is what is asked for."""
    lines = []
    if ways := found.get(ASKED_SHARE_MIB):
        share = share_of_copy(ways)
        met = "yes" if share >= ASKED_SHARE else "NO"
        lines.append(f"{ASKED_SHARE_MIB:g} MiB, {SHARED}: {share:.2f} of a plain copy's speed, "
                     f"asked {ASKED_SHARE:g}: {met}")  # fmt: skip
    met = "yes" if streaming_s <= ASKED_CPU_S else "NO"
    lines.append(f"{ASKED_CPU_MIB:g} MiB, {SHARED}, {IN_FLIGHT} in flight: {streaming_s * 1e3:.2f} "
                 f"ms of processor time per batch and hop, asked {ASKED_CPU_S * 1e3:g} ms: "
                 f"{met}")  # fmt: skip
    return lines


def measure(
    sizes: Sequence[float], rounds: int, gpu: int | None, more_words: str = ""
) -> dict[str, Any]:
    """Everything, as it is kept."""
    device = torch.device(device_named("cpu" if gpu is None else f"cuda:{gpu}"))
    words = "".join(f" --size {mib:g}" for mib in sizes) + f" --rounds {rounds}"
    words += ("" if gpu is None else f" --gpu {gpu}") + more_words
    where = provenance(f"python -m benchmarks.links{words}")
    prepare_process(device, threads=1)
    found = measure_all(sizes or SIZES_MIB, rounds, device)
    tree = {
        f"{mib:g}": {way: one.tree(int(mib * _MIB)) for way, one in ways.items()}
        for mib, ways in found.items()
    }
    return {
        **where,
        "rounds": rounds,
        "best_to_copy": {f"{mib:g}": round(share_of_copy(w), 3) for mib, w in found.items()},
        "streaming_cpu_s": streaming_cpu_s(ASKED_CPU_MIB, rounds, device),
        "by_mib": tree,
    }


def extent_of(sizes: Iterable[float], rounds: int) -> Extent:
    """How often each size is measured."""
    return {f"{mib:g} MiB": rounds for mib in sizes}


def report(result: Mapping[str, Any], name: str, *, table_too: bool = True) -> None:
    """Print whether it is enough, and write the table into README.md, with the picture."""
    found = {
        float(mib): {way: Measured(one["seconds"], one["cpu_s"]) for way, one in ways.items()}
        for mib, ways in result["by_mib"].items()
    }
    on_cpu = DEVICE not in next(iter(found.values()))
    told = verdicts(found, result["streaming_cpu_s"]) if on_cpu else []
    print("\n".join(told))
    if not table_too:
        return
    where = machine(result, "cpu" if on_cpu else "cuda")
    source = f"`{result['command']}`, {where}, commit {result['commit']}"
    items = "\n".join(f"- {line}" for line in told)
    picture = f"![GB/s by size and carrier](figures/{draw_links(result['by_mib'], name).name})"
    parts = [part for part in (f"{table(found)}\n{source}.", items, picture) if part]
    write_section(README, name, "\n\n".join(parts))


@click.command()
@click.option(
    "--size",
    "sizes",
    multiple=True,
    type=click.FloatRange(2**-10, 2**14),
    help="MiB; only this one, or these.",
)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--gpu", type=click.IntRange(0), help="Between two processes on this CUDA device.")
@click.option("--name", help="Of the file, the section and the figure.")
@click.option("--report", "only_report", is_flag=True, help="Write the table again from the file.")
@no_table
@told_in_a_line
def main(
    sizes: tuple[float, ...], rounds: int, gpu: int | None, name: str | None, only_report: bool,
    no_table: bool,
) -> None:  # fmt: skip
    """Measure, print and keep benchmarks/results/links.json; on a GPU links_cuda.json."""
    kept = name or (CPU_NAME if gpu is None else "links_cuda")
    if not only_report:
        extent = extent_of(sizes or SIZES_MIB, rounds)
        check_can_be_kept(kept, "links", extent, _extent_of_kept, table=not no_table)
        words = f" --name {name}" if name else ""
        print(f"kept in {write_result(kept, measure(sizes, rounds, gpu, words))}")
    report(read_result(kept, "links"), kept, table_too=not no_table)


def _extent_of_kept(result: Mapping[str, Any]) -> Extent:
    return extent_of(map(float, result["by_mib"]), result["rounds"])


if __name__ == "__main__":
    main()
