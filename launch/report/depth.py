"""What each block gets wrong by itself, all up to it together, and with early exits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.display.format import counted, number_text
from launch.drawing import Sheet, css, errors_axis, ink, whole_numbers
from launch.report.pieces import Card, Figure, Key, Section, Table, Words
from launch.report.room import evenly

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from launch.drawing import Axes
    from launch.report.pieces import Piece
    from launch.report.run import Run
    from pipeline.trained.evaluation import Depth, Evaluation

_PANEL = (4.6, 2.7)


def section(runs: Sequence[Run], exit_at: float, rows: int) -> Section:
    """By run, and their blocks beside each other where several runs have some; so many rows of a
    table at most."""
    answering = [run for run in runs if _depths(run)]
    cards = [Card("", (_together(answering, rows),))] if len(answering) > 1 else []
    cards += [Card(run.name, tuple(_of_run(run, exit_at, rows))) for run in runs]
    lead = (
        "Every block that has a classifier of its own can answer: block 0 has seen one layer, the "
        "last all of them. Together: by the mean of the log-probabilities of all blocks so far. "
        "Exits: an example leaves at the first block that gives its most likely class a "
        f"probability of at least {exit_at:g}, and the blocks after it are spared."
    )
    look_for = (
        "the depth from which the error falls no more, and whether all blocks together beat the "
        "last one."
    )
    return Section("depth", "Error by depth", lead, look_for, cards)


def _depths(run: Run) -> tuple[Depth, ...]:
    found = run.looks.evaluation
    return () if isinstance(found, str) else found.depths


def _together(runs: Sequence[Run], most: int) -> Figure:
    sheet = Sheet(_PANEL)
    keys, said = [], []
    for run in runs:
        depths, color = evenly(_depths(run), most), ink(f"run-{run.number}")
        errors = [depth.error_pct for depth in depths]
        _line(sheet.axes, depths, errors, color)
        keys.append(Key(css(color), run.name))
        said.append(f"{run.name} {', '.join(f'{error:.2f}' for error in errors)}")
    return _figure("Error of each block alone, %", sheet, "; ".join(said), keys, "all-depths")


def _of_run(run: Run, exit_at: float, rows: int) -> Iterable[Piece]:
    found = run.looks.evaluation
    if isinstance(found, str):
        yield Words(found)
        return
    if not found.depths:
        yield Words(
            "No block answers by itself here: by this loss, or for targets that are numbers, there "
            "is no error by depth."
        )
        return
    sheet = Sheet(_PANEL)
    alone, together = ink("run-0"), ink("run-1")
    depths = evenly(found.depths, rows)
    _line(sheet.axes, depths, [depth.error_pct for depth in depths], alone)
    ensembles = [depth.ensemble_error_pct for depth in depths]
    _line(sheet.axes, depths, ensembles, together, dashed=True)
    said = ", ".join(f"block {depth.block} {depth.error_pct:.2f}" for depth in depths)
    keys = [
        Key(css(alone), "the block alone"),
        Key(css(together), "all up to it together", "dashed"),
    ]
    yield _figure("Test error by block, %", sheet, said, keys, f"{run.number}-depths")
    yield Words(_sentence(run, found, exit_at))
    yield _table(run, depths, exits=found.exits_error_pct is not None)
    if len(depths) < len(found.depths):
        yield Words(f"Of {len(found.depths)} blocks {len(depths)} are shown.")


def _line(
    axes: Axes,
    depths: Sequence[Depth],
    errors: Sequence[float],
    color: str,
    *,
    dashed: bool = False,
) -> None:
    axes.plot(
        [depth.block for depth in depths],
        [error or float("nan") for error in errors],
        color=color,
        linewidth=1.4,
        linestyle=(0, (4, 2)) if dashed else "solid",
        marker="o",
        markersize=4,
        markeredgewidth=0,
    )


def _figure(title: str, sheet: Sheet, said: str, keys: Sequence[Key], salt: str) -> Figure:
    errors_axis(sheet.axes)
    whole_numbers(sheet.axes)
    sheet.axes.set_xlabel("block")
    return Figure(title, sheet.svg(salt), f"{title}: {said}", tuple(keys))


def _sentence(run: Run, found: Evaluation, exit_at: float) -> str:
    last = found.depths[-1]
    best = min(found.depths, key=lambda depth: depth.error_pct)
    said = (
        f"Of {counted(found.examples, 'examples')} the last block, {run.block_name(last.block)}, "
        f"gets {last.error_pct:.2f} % wrong, all blocks together {last.ensemble_error_pct:.2f} %."
    )
    if best.error_pct < last.error_pct:
        said += f" Best by itself is block {run.block_name(best.block)}: {best.error_pct:.2f} %."
    if found.exits_error_pct is None:
        return said
    early = sum(depth.exit_pct or 0.0 for depth in found.depths[:-1])
    return (
        f"{said} With exits at {exit_at:g}, {early:.1f} % leave before the last block, and "
        f"{found.exits_error_pct:.2f} % of all answers are wrong."
    )


def _table(run: Run, depths: Sequence[Depth], *, exits: bool) -> Table:
    headings = ["block", "error, %", "together, %"]
    headings += ["leave here, %", "wrong of these, %"] if exits else []
    rows = []
    for depth in depths:
        cells = [run.block_name(depth.block)]
        cells += [f"{depth.error_pct:.2f}", f"{depth.ensemble_error_pct:.2f}"]
        if exits:
            cells += [number_text(depth.exit_pct, ".1f"), number_text(depth.exit_error_pct, ".2f")]
        rows.append(tuple(cells))
    return Table(tuple(headings), tuple(rows))
