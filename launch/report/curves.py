"""Learning curves: error and loss over epochs, of the network and of each of its blocks, as in
figures 2 and 3 of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from launch.display.format import number_text
from launch.drawing import Sheet, along, css, errors_axis, ink, whole_numbers
from launch.report.pieces import Card, Figure, Key, Section, Table, Words
from launch.report.room import evenly
from pipeline.run.metrics import tested

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from launch.drawing import Axes
    from launch.report.pieces import Piece
    from launch.report.room import Room
    from launch.report.run import Run

_PANEL = (4.6, 2.7)
"""Inches."""
_FEW_EPOCHS = 30
"""With fewer each is marked: a single one would draw no line."""
_MOST_KEYS, _KEYS_OF_MANY = 8, 5
_LEAD = (
    "Error is the share of wrong answers, in percent; an epoch is one pass over the training set. "
    "Scales are logarithmic where they can be. Each block of the network learns from a loss of its "
    "own, and most answer by a classifier of their own, so each has a curve."
)
_LOOK_FOR = (
    "curves that still fall at the end (train longer), a test error that rises while the training "
    "error falls (overfitting), and deeper blocks that are no better than those before them (depth "
    "that brings nothing)."
)
_PARTS = {
    "loss": "Loss of each block",
    "cross_entropy": "Cross-entropy of each block's classifier",
    "similarity": "Similarity loss of each block",
}
"""Keys of a block in a line of metrics, and what they are called; older runs have the first."""
_IN_TESTS = "Error of each block in tests, %"
_NO_ERRORS = "No block has an error in training: by this loss none of them answers by itself."

Line: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a picture; None is a gap."""

    label: str
    color: str
    points: tuple[tuple[int, float | None], ...]
    dashed: bool = False

    @property
    def values(self) -> list[float]:
        """Those that there are."""
        return [value for _, value in self.points if value is not None]


def section(runs: Sequence[Run], room: Room) -> Section:
    """Of all runs together where there are several, and of each."""
    cards = [_together(runs, room.points)] if len(runs) > 1 else []
    for run in runs:
        lines = _thinned(run.files.lines, room.points)
        cards.append(Card(run.name, tuple(_of_run(run, lines, room, alone=len(runs) == 1))))
    return Section("curves", "Learning curves", _LEAD, _LOOK_FOR, cards)


def _thinned(lines: Sequence[Line], most: int) -> list[Line]:
    """Every so many lines, up to the last."""
    return list(lines[::-1][:: max(1, -(-len(lines) // most))][::-1])


def _together(runs: Sequence[Run], most: int) -> Card:
    trained, in_tests = [], []
    for run in runs:
        lines, color = _thinned(run.files.lines, most), ink(f"run-{run.number}")
        trained.append(_curve(run.name, color, lines, _trained, "error_pct"))
        in_tests.append(_curve(run.name, color, lines, _tested, "error_pct"))
    shown = [
        # as many keys as runs: each has a colour of its own, and no order
        _picture("Training error, %", trained, "all-train", len(runs)),
        _picture("Error in tests, %", in_tests, "all-test", len(runs)),
    ]
    found = tuple(each for each in shown if each)
    return Card("", found or (Words("No run has an error to draw."),))


def _of_run(run: Run, lines: Sequence[Line], room: Room, *, alone: bool) -> Iterable[Piece]:
    if not lines:
        yield Words("No epoch has come to its end in this run: there is nothing to draw yet.")
        return
    errors = any(_number(_trained(line), "error_pct") is not None for line in lines)
    key, unit = ("error_pct", "error, %") if errors else ("loss", "loss")
    found: list[Figure | None] = []
    if alone or not errors:
        train = _curve("training", ink("run-0"), lines, _trained, key, dashed=True)
        test = _curve(tested(lines[-1])[0], ink("run-1"), lines, _tested, key)
        found.append(_picture(f"Network: {unit}", [train, test], f"{run.number}-network"))
    drawn = partial(_by_block, run, lines, evenly(range(run.n_blocks), room.curves))
    by_block = drawn("error_pct", "Training error of each block, %")
    found.append(by_block)
    found.append(drawn("error_pct", _IN_TESTS, _depth))
    found += [drawn(name, title) for name, title in _PARTS.items()]
    yield from (picture for picture in found if picture)
    if not by_block:
        yield Words(_NO_ERRORS)
    elif run.n_blocks > room.curves:
        yield Words(f"Of {run.n_blocks} blocks {room.curves} are drawn.")
    yield _last_epoch(run, room.rows)


def _by_block(
    run: Run,
    lines: Sequence[Line],
    blocks: Sequence[int],
    name: str,
    title: str,
    part: Callable[..., Any] | None = None,
) -> Figure | None:
    last, part = max(1, run.n_blocks - 1), part or _block
    curves = [
        _curve(run.block_name(k), along(k / last), lines, partial(part, number=k), name)
        for k in blocks
    ]
    return _picture(title, curves, f"{run.number}-{title}")


def _curve(
    label: str,
    color: str,
    lines: Sequence[Line],
    part: Callable[[Line], Any],
    key: str,
    *,
    dashed: bool = False,
) -> Curve:
    """Of what a part of each line has by `key`."""
    points = tuple((line["epoch"], _number(part(line), key)) for line in lines)
    return Curve(label, color, points, dashed)


def _trained(line: Line) -> Any:
    return line.get("train")


def _tested(line: Line) -> Any:
    return tested(line)[1]


def _block(line: Line, number: int) -> Any:
    return next((each for each in line.get("blocks") or () if each.get("block") == number), None)


def _depth(line: Line, number: int) -> Any:
    """Of a test, under `runtime.eval_depths`; the network's own error is its last block's."""
    depths = _tested(line).get("depths") or ()
    return next((each for each in depths if each.get("block") == number), None)


def _number(part: Any, key: str) -> float | None:
    found = part.get(key) if isinstance(part, dict) else None
    return float(found) if isinstance(found, int | float) else None


def _picture(
    title: str, curves: Sequence[Curve], salt: str, most_keys: int = _MOST_KEYS
) -> Figure | None:
    """None where there is nothing to draw. Of more curves than keys only some are named."""
    curves = [curve for curve in curves if curve.values]
    if not curves:
        return None
    sheet = Sheet(_PANEL)
    axes = sheet.axes
    values = [value for curve in curves for value in curve.values]
    scaled = min(values) >= 0 and max(values) > 0
    for curve in curves:
        _draw(axes, curve, gaps=scaled)
    if scaled:
        errors_axis(axes)
    whole_numbers(axes)
    axes.set_xlabel("epoch")
    last = "; ".join(f"{curve.label} {curve.values[-1]:.4g}" for curve in curves)
    keys = tuple(
        Key(css(curve.color), curve.label, "dashed" if curve.dashed else "line")
        for curve in (curves if len(curves) <= most_keys else evenly(curves, _KEYS_OF_MANY))
    )
    return Figure(title, sheet.svg(salt), f"{title}, by epoch; in the end: {last}", keys)


def _draw(axes: Axes, curve: Curve, *, gaps: bool) -> None:
    """`gaps`: a zero, which has no logarithm, is one, too."""
    epochs, values = zip(*curve.points, strict=True)
    axes.plot(
        epochs,
        [float("nan") if value is None or (gaps and value == 0) else value for value in values],
        color=curve.color,
        linewidth=1.4,
        linestyle=(0, (4, 2)) if curve.dashed else "solid",
        marker="o" if len(curve.points) < _FEW_EPOCHS else "",
        markersize=3,
        markeredgewidth=0,
    )


def _last_epoch(run: Run, most: int) -> Table:
    line = run.files.lines[-1]
    blocks = evenly(line.get("blocks") or (), most)
    names = [name for name in _PARTS if any(_number(each, name) is not None for each in blocks)]
    rows = []
    for each in blocks:
        numbers = (number_text(_number(each, name), ".4g") for name in names)
        error = number_text(_number(each, "error_pct"), ".2f")
        rows.append((run.block_name(each["block"]), error, *numbers))
    headings = ("block", "training error, %", *(name.replace("_", "-") for name in names))
    return Table(headings, tuple(rows), folded=f"Numbers of the last epoch, {line['epoch']}")
