"""Pictures of what was measured, from the kept JSON alone: the same numbers, the same file.

They need matplotlib, which is optional: pip install '.[figures]'
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lib.contenders import NETWORKS
from launch.paper.plotting import COLORS, save_svg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = Path(__file__).parents[1] / "figures"
_WIDTH, _HEIGHT = 5.0, 4.0  # inches, of a panel


def panels(count: int, height: float = _HEIGHT) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def save(figure: Figure, name: str) -> Path:
    """As figures/NAME.svg."""
    return save_svg(figure, FIGURES / f"{name}.svg")


def draw_scaling(networks: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> Path:
    """Images/s over stages, for each set of devices: measured, with all rounds, and predicted."""
    figure, axes = panels(len(networks))
    for panel, (network, rows) in zip(axes, networks.items(), strict=True):
        sets = list(dict.fromkeys(row["gpus"] for row in rows))
        for number, gpus in enumerate(sets):
            named = "" if len(sets) == 1 else f" on GPUs {gpus}"
            own = [row for row in rows if row["gpus"] == gpus]
            _measured_and_predicted(panel, own, f"C{number}", named)
        stages = sorted({row["stages"] for row in rows})
        panel.set(title=network, xlabel="stages", ylabel="images/s", xticks=stages)
        panel.set_ylim(bottom=0)
        panel.legend()
    return save(figure, name)


def _measured_and_predicted(
    panel: Axes, rows: Sequence[Mapping[str, Any]], color: str, named: str
) -> None:
    stages = [row["stages"] for row in rows]
    for row in rows:
        rounds = [one["measured"] for one in row["rounds"]]
        panel.plot([row["stages"]] * len(rounds), rounds, ".", color=color, alpha=0.4)
    for kind, line, fill in (("measured", "-o", color), ("predicted", "--s", "white")):
        speeds = [row[kind] for row in rows]
        label = f"{kind}{named}"
        panel.plot(stages, speeds, line, color=color, markerfacecolor=fill, label=label)


def draw_throughput(networks: Sequence[Mapping[str, Any]], name: str) -> Path:
    """A bar for each contender, as long as its median images/s; a panel for each network."""
    most = max(len(tree["contenders"]) for tree in networks)
    figure, axes = panels(len(networks), height=1.0 + 0.24 * most)
    for panel, tree in zip(axes, networks, strict=True):
        rows = [row for row in tree["contenders"] if row["images_per_s"]]
        labels = [_label(row) for row in rows]
        speeds = [row["images_per_s"] for row in rows]
        panel.barh(labels, speeds, color=[COLORS[row["loss"]] for row in rows])
        panel.invert_yaxis()
        panel.set(title=NETWORKS[tree["network"]].title, xlabel="images/s")
        panel.grid(visible=True, axis="x", linewidth=0.3)
    return save(figure, name)


def draw_links(by_mib: Mapping[str, Mapping[str, Mapping[str, float]]], name: str) -> Path:
    """GB/s over the size of a tensor, for each carrier."""
    figure, (panel,) = panels(1)
    sizes = list(map(float, by_mib))
    for way in next(iter(by_mib.values())):
        rates = [ways[way]["bytes_per_s"] / 1e9 for ways in by_mib.values()]
        panel.plot(sizes, rates, "-o", label=way)
    panel.set(xscale="log", yscale="log", xlabel="MiB", ylabel="GB/s")
    panel.set_xticks(sizes, [f"{mib:g}" for mib in sizes])
    panel.grid(visible=True, linewidth=0.3)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)  # beneath the curves
    return save(figure, name)


def draw_steptime(steps: Sequence[Mapping[str, Any]], kinds: Sequence[str], name: str) -> Path:
    """A bar of milliseconds by kind of work for each way to train; a panel for each network."""
    networks = list(dict.fromkeys(step["network"] for step in steps))
    figure, axes = panels(len(networks))
    for panel, network in zip(axes, networks, strict=True):
        rows = [step for step in steps if step["network"] == network]
        labels, left = [f"{row['loss']}, {row['way']}" for row in rows], [0.0] * len(rows)
        for kind in kinds:
            widths = [row["kinds_ms"][kind] for row in rows]
            panel.barh(labels, widths, left=left, label=kind)
            left = [sum(pair) for pair in zip(left, widths, strict=True)]
        panel.invert_yaxis()
        panel.set(title=NETWORKS[network].title, xlabel="ms per batch of 128")
        panel.grid(visible=True, axis="x", linewidth=0.3)
    axes[-1].legend(fontsize="small")
    return save(figure, name)


def _label(row: Mapping[str, Any]) -> str:
    parts = f", {row['stages']} stages" if row["stages"] > 1 else ""
    parts += f" in {row['micro_batches']}" if row["way"] == "1f1b" else ""
    ending = ", compiled" if row.get("compiled") else ""  # older results don't say
    ending += f", {row['cores']} cores" if row.get("cores", 1) > 1 else ""
    return f"{row['way']}{parts}, {row['loss']} {row['precision']}{ending}"
