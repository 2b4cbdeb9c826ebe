"""How busy each stage is, what bounds the speed, and the memory of each stage."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from launch.display.format import number_text, size_text
from launch.drawing import Sheet, css, ink
from launch.report.pieces import Card, Figure, Key, Section, Table, Words
from launch.report.room import evenly

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from launch.report.pieces import Piece
    from launch.report.run import Run

_WIDTH, _ROW, _LEAST = 4.6, 0.26, 1.0
"""Inches: of a picture, of a bar in it, of the lowest picture."""
_BINDS = 0.8
"""Busy for so much of the time, a stage is what the others wait for."""
_MIB = 1 << 20
_SPEED = (
    "A stage is busy while it does not wait for a neighbour. It passes a batch on before it learns "
    "from it, and nothing comes back, so a pipeline is as fast as its slowest stage: that one is "
    "busy nearly all of the time, and the others wait for it."
)
_BUSY = (
    "one stage much busier than the others (divide it, or give it a faster device), or none that "
    "is busy (then reading the data, or a machine with fewer free cores than stages, is the bound)."
)
_MEMORY = (
    "The most memory that each stage's process had, beside what was estimated before the run for "
    "weights, gradients, optimizer and held activations alone. On a CPU it is that of the whole "
    "process, Python and PyTorch included; on a GPU what tensors took."
)
_FULLEST = "the stage that needs most: it says how small a device may be."


@dataclass(frozen=True, slots=True)
class Bars:
    """A value for each stage."""

    label: str
    color: str
    values: Sequence[float]


def speed_section(runs: Sequence[Run], rows: int) -> Section:
    """By run, of so many stages at most."""
    cards = [Card(run.name, tuple(_speed(run, rows))) for run in runs]
    return Section("speed", "Busy stages and the bound on speed", _SPEED, _BUSY, cards)


def memory_section(runs: Sequence[Run], rows: int) -> Section:
    """By run, of so many stages at most."""
    cards = [Card(run.name, tuple(_memory(run, rows))) for run in runs]
    return Section("memory", "Memory by stage", _MEMORY, _FULLEST, cards)


def median_speed(run: Run) -> float | None:
    """Examples per second of a typical epoch."""
    found = [line["images_per_s"] for line in run.files.lines if line.get("images_per_s")]
    return median(found) if found else None


def _reports(run: Run) -> list[list[dict[str, Any]]]:
    """Of each stage what it said of every epoch, of those with as many stages as the last."""
    reports = [line.get("stages") or [] for line in run.files.lines]
    reports = [each for each in reports if len(each) == len(reports[-1])]
    return [list(of_stage) for of_stage in zip(*reports, strict=True)]


def _speed(run: Run, most: int) -> Iterable[Piece]:
    reports = _reports(run)
    if not reports:
        yield Words("No epoch has come to its end in this run: how busy stages were is not known.")
        return
    busy = [100 * median(epoch["busy"] for epoch in stage) for stage in reports]
    shares = _shares(run, len(busy))
    title = "Busy, % of the time (median of the epochs)"
    shown = evenly(range(len(busy)), most)
    bars = Bars("busy", ink("run-0"), [busy[k] for k in shown])
    yield _figure(title, [bars], f"{run.number}-busy", list(map(str, shown)), most=100.0)
    yield Words(" ".join((_bound(run, busy), *_bound_of_plan(shares))))
    headings = ("stage", "blocks", "device", "busy, %", *(["multiply-adds, %"] if shares else []))
    rows = []
    for k in shown:
        work = [f"{shares[k]:.1f}"] if shares else []
        device = str(reports[k][-1].get("device", ""))
        rows.append((str(k), run.blocks_of(k), device, f"{busy[k]:.1f}", *work))
    yield Table(headings, tuple(rows), words=3)
    yield from _left_out(len(busy), shown)


def _left_out(stages: int, shown: Sequence[int]) -> Iterable[Words]:
    if len(shown) < stages:
        yield Words(f"Of {stages} stages {len(shown)} are shown.")


def _bound(run: Run, busy: Sequence[float]) -> str:
    speed = median_speed(run)
    at = "" if speed is None else f", at {number_text(speed, ',.0f', 1e9)} examples/s"
    slowest = max(range(len(busy)), key=lambda k: busy[k])
    name = f"stage {slowest} ({run.blocks_of(slowest)})"
    if run.files.single:
        others = f"; {name} took most of its time" if len(busy) > 1 else ""
        return f"One process trained all stages in turn{at}{others}."
    if len(busy) == 1:
        return f"There is one stage{at}: nothing waits for it."
    if busy[slowest] >= 100 * _BINDS:
        return f"Busiest is {name}, {busy[slowest]:.0f} % of the time: it bounds the run{at}."
    return (
        f"No stage is busy for more than {busy[slowest]:.0f} % of the time{at}: what bounds the "
        "run lies outside of the stages, as reading data, tests, or other work on the machine."
    )


def _bound_of_plan(shares: Sequence[float]) -> list[str]:
    if len(shares) < 2:
        return []
    most = max(range(len(shares)), key=lambda k: shares[k])
    return [
        f"By multiply-adds stage {most} has {shares[most]:.0f} % of the work: with an equal device "
        f"for each stage this plan is at most {100 / shares[most]:.2f} times as fast as one device."
    ]


def _shares(run: Run, stages: int) -> list[float]:
    """Of all multiply-adds of training, in percent, by stage; none where they are not known."""
    macs = [cost.train_macs for cost in run.stage_costs]
    if len(macs) != stages or not sum(macs):
        return []
    return [100 * each / sum(macs) for each in macs]


def _memory(run: Run, most: int) -> Iterable[Piece]:
    reports = _reports(run)
    if not reports:
        yield Words("No epoch has come to its end in this run: its memory is not known.")
        return
    measured = [max(epoch["peak_memory_bytes"] for epoch in stage) for stage in reports]
    estimated = run.estimated_bytes
    names = list(map(str, range(len(measured))))
    if run.files.single:
        measured, names = measured[:1], ["all"]
    known = len(estimated) == len(measured)
    shown = evenly(range(len(measured)), most)
    bars = [Bars("measured", ink("run-0"), [measured[k] / _MIB for k in shown])]
    if known:
        values = [estimated[k] / _MIB for k in shown]
        bars.append(Bars("estimated, of training alone", ink("run-1"), values))
    yield _figure("Memory, MiB", bars, f"{run.number}-memory", [names[k] for k in shown])
    if run.files.single:
        yield Words("One process trained all stages: its memory is that of all of them.")
    rows = [
        (names[k], *(size_text(each[k]) for each in (measured, *([estimated] if known else []))))
        for k in shown
    ]
    yield Table(("stage", "measured", *(["estimated"] if known else [])), tuple(rows))
    yield from _left_out(len(measured), shown)


def _figure(
    title: str,
    series: Sequence[Bars],
    salt: str,
    names: Sequence[str],
    *,
    most: float | None = None,
) -> Figure:
    """A row for each stage, by its name, with its bar of each series. `most`: where the scale ends;
    None: by the values."""
    n = len(names)
    sheet = Sheet((_WIDTH, max(_LEAST, _ROW * n * len(series) + 0.5)))
    axes, height = sheet.axes, 0.8 / len(series)
    for place, bars in enumerate(series):
        rows = [k - 0.4 + height * (place + 0.5) for k in range(n)]
        axes.barh(rows, list(bars.values), height=0.86 * height, color=bars.color, linewidth=0)
        for row, value in zip(rows, bars.values, strict=True):
            beside: Any = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(number_text(value, ".0f"), (value, row), **beside)
    axes.set_yticks(range(n), [f"stage {name}" if name.isdigit() else name for name in names])
    axes.set_ylim(n - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    values = [value for bars in series for value in bars.values]
    axes.set_xlim(0, 1.12 * (most or max(1e-9, *values)))
    said = "; ".join(
        f"{bars.label}: {', '.join(number_text(value, '.1f') for value in bars.values)}"
        for bars in series
    )
    keys = tuple(Key(css(bars.color), bars.label, "box") for bars in series)
    title_said = f"{title}, by stage: {said}"
    return Figure(title, sheet.svg(salt), title_said, keys if len(keys) > 1 else ())
