"""What all our pictures share: the colours of the losses, and how a picture becomes a file.

Drawing needs matplotlib, which is optional: pip install '.[figures]'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

COLORS = {"glob": "tab:gray", "pred": "tab:blue", "sim": "tab:orange", "predsim": "tab:red"}
"""Of a curve or bar, by `loss.name`."""


def save_svg(figure: Figure, path: Path) -> Path:
    """Byte for byte the same for the same numbers; its text stays text."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "local-loss-pipeline", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    return path
