"""Learning curves as in the paper's figure 2, one picture per network: error over epochs by loss.

They need matplotlib, which is optional: pip install 'local-loss-pipeline[figures]'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.drawing import HOW_TO_GET_IT, can_draw, errors_axis, new_figure, write_svg
from launch.paper.configs import epochs_text
from launch.paper.results import best_record
from launch.paper.table import all_cells, entries_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from launch.drawing import Axes
    from launch.paper.results import Record
    from launch.paper.table import Entry, Table

FIGURES = "figures"
COLORS = {"glob": "tab:gray", "pred": "tab:blue", "sim": "tab:orange", "predsim": "tab:red"}
"""Of a curve, by `loss.name`."""
_INCHES = (10.0, 4.0)
_GLOB_AND_LOCAL = "tab:purple"
_FEW_EPOCHS = 30
"""With fewer each is marked: a single one would draw no line."""


def draw_figures(
    tables: Iterable[Table],
    records: Sequence[Record],
    folder: Path,
    say: Callable[[str], None],
    only: set[str] | None = None,
) -> list[Path]:
    """Draw each network that has results into `folder`; says which files were written.

    Args:
        say: takes a line that says so where matplotlib is missing: nothing is drawn then.
        only: names of the pictures to draw; None: all.
    """
    curves: dict[str, list[tuple[Entry, Record]]] = {}
    for entry in entries_of(all_cells(tables)):
        record = best_record(entry, records)
        if record and (only is None or entry.figure in only):
            curves.setdefault(entry.figure, []).append((entry, record))
    if not curves:
        return []
    if not can_draw():
        say(f"no learning curves are drawn: they need {HOW_TO_GET_IT}")
        return []
    return [_draw(folder / f"{name}.svg", found) for name, found in curves.items()]


def _draw(path: Path, curves: Sequence[tuple[Entry, Record]]) -> Path:
    """Two panels with a common scale: training errors, test errors."""
    figure = new_figure(_INCHES)
    train, test = figure.subplots(1, 2, sharey=True)
    for entry, record in curves:
        epochs = epochs_text(record.epochs, entry.epochs)
        shorter = "" if record.epochs == entry.epochs else f", {epochs} epochs"
        _curve(train, entry, record.train, f"{entry.loss}{shorter}")
        _curve(test, entry, record.test, f"{entry.loss} {record.error_pct:.2f} %")
    _name_axes(train, "training error, %")
    _name_axes(test, "test error, %")
    figure.suptitle(curves[0][0].title.rpartition(", ")[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_svg(figure, path)
    return path


def _curve(axes: Axes, entry: Entry, errors: Sequence[float | None], label: str) -> None:
    """A curve over epochs; an error of 0 or an epoch without a test is a gap (logarithms)."""
    values = [error or float("nan") for error in errors]
    color = COLORS.get(entry.loss.removesuffix("-bio"), _GLOB_AND_LOCAL)
    marker = "." if len(values) < _FEW_EPOCHS else ""
    axes.plot(
        range(1, len(values) + 1), values, color=color, linewidth=1.0, marker=marker, label=label
    )


def _name_axes(axes: Axes, errors: str) -> None:
    errors_axis(axes)
    axes.set_xlabel("epoch")
    axes.set_ylabel(errors)
    axes.grid(visible=True, linewidth=0.3)
    axes.legend(fontsize="small")
