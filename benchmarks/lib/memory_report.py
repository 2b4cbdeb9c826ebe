"""What `benchmarks.memory` found, for people: a table, a picture, and whether it is enough.

The picture needs matplotlib, which is in the extras `figures` and `test`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from benchmarks.lib.figures import panels, save
from benchmarks.lib.machine import machine
from benchmarks.lib.tables import README, markdown, write_section

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.lib.allocations import Peaks

ASKED_GROWTH = 0.05
"""Of single mode's peak, either way, where the MLP's depth is doubled."""
ASKED_SHARE, ASKED_OF = 0.25, "vgg19"
"""Of global backprop's peak, in single mode."""

_BAR = 0.2
_MB = 1e6


def megabytes(nbytes: int) -> str:
    """As people read it."""
    return f"{nbytes / _MB:.1f}"


def growths(found: Mapping[str, Mapping[str, Peaks]]) -> dict[str, float]:
    """Of single mode's peak from one MLP to the next, twice as deep; by the deeper one."""
    mlps = [name for name in found if name.startswith("mlp-")]
    peaks = {name: found[name]["single"].total for name in mlps}
    return {deeper: peaks[deeper] / peaks[name] - 1 for name, deeper in pairwise(mlps)}


def share_of_global(ways: Mapping[str, Peaks]) -> float:
    """Single mode's peak, that of global backprop being 1."""
    return ways["single"].total / ways["global"].total


def verdicts(found: Mapping[str, Mapping[str, Peaks]]) -> list[str]:
    """Whether what was measured is what is asked for."""
    lines = []
    for deeper, growth in growths(found).items():
        met = "yes" if abs(growth) <= ASKED_GROWTH else "NO"
        lines.append(f"{deeper}, single: {growth:+.1%}; asked ±{ASKED_GROWTH:.0%}: {met}")
    if ASKED_OF in found:
        share = share_of_global(found[ASKED_OF])
        met = "yes" if share <= ASKED_SHARE else "NO"
        lines.append(
            f"{ASKED_OF}, single: {share:.2f} of global; asked at most {ASKED_SHARE:g}: {met}"
        )
    return lines


def table(found: Mapping[str, Mapping[str, Peaks]]) -> str:
    """Megabytes at the peak; in brackets without the gradients of weights."""
    ways = list(next(iter(found.values())))
    rows = []
    for network, by_way in found.items():
        cells = [
            f"{megabytes(peaks.total)} ({megabytes(peaks.activations)})"
            for peaks in by_way.values()
        ]
        rows.append([network, *cells, f"{share_of_global(by_way):.2f}"])
    return markdown(["network", *ways, "single / global"], rows, texts={"network"})


def report(found: Mapping[str, Mapping[str, Peaks]], where: Mapping[str, Any], name: str) -> None:
    """Write the table into the section of that name in README.md, with the picture."""
    there = machine(where, "cuda" if "cuda" in name else "cpu")
    source = f"`{where['command']}`, {there}, commit {where['commit']}"
    picture = f"![Peak memory by network and way](figures/{name}.svg)"
    told = "\n".join(f"- {line}" for line in verdicts(found))
    write_section(README, name, f"{table(found)}\n{source}.\n\n{told}\n\n{picture}")


def draw(found: Mapping[str, Mapping[str, Peaks]], name: str) -> Path:
    """Two panels, MLPs and others: a bar for each network and way."""
    mlps = [name for name in found if name.startswith("mlp-")]
    parts = [part for part in (mlps, [name for name in found if name not in mlps]) if part]
    figure, axes = panels(len(parts))
    for panel, names in zip(axes, parts, strict=True):
        _bars(panel, [found[name] for name in names], names)
    axes[0].legend(fontsize="small", loc="upper left")
    return save(figure, name)


def _bars(axes: Axes, found: Sequence[Mapping[str, Peaks]], names: Sequence[str]) -> None:
    """The darker part of a bar is the peak without gradients of weights, where it was found."""
    for place, way in enumerate(found[0]):
        at = [index + (place - 1.5) * _BAR for index in range(len(found))]
        peaks, color = [ways[way] for ways in found], f"C{place}"
        axes.bar(at, [one.total / _MB for one in peaks], _BAR, color=color, alpha=0.4)
        dark = [one.activations if one.activations <= one.total else 0 for one in peaks]
        axes.bar(at, [nbytes / _MB for nbytes in dark], _BAR, color=color, label=way)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("peak, MB; dark: without gradients of weights")
    axes.grid(visible=True, axis="y", linewidth=0.3)
