"""The picture of a run that goes on: what is known (`Picture`) and how it is drawn (`draw`).

Pure: it neither writes to a terminal nor asks a clock. The size of the terminal decides the form:

    one table     a row per block, the cells of its stage in the stage's first row
    two tables    stages, then blocks, where a stage holds more than a few blocks
    packed        as one table, but narrow and in columns side by side, where rows don't fit

Colours are the terminal's own green and its dim and bold text, legible on dark and light.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, count
from typing import TYPE_CHECKING, Literal, NamedTuple

from rich.console import Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from launch.display.format import NOTHING, duration_text, lr_text, number_text, size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from pipeline.run.events import RunStarted, StageProgress, Waiting

FEW_BLOCKS = 3
OTHER_LINES = 8
"""Heading, two bars, rates, test, two blank lines, and one for the shell's prompt."""
PACKED_WIDTH = 39  # two side by side, and their gap, are the usual 80


class Score(NamedTuple):
    """Loss and error in percent of a block; None where not known or not predicted."""

    loss: float | None = None
    error_pct: float | None = None


class Tested(NamedTuple):
    """The test error in percent after `epoch`."""

    epoch: int
    error_pct: float
    learner: int | None = None
    """In greedy training the block whose classifier was tested."""


@dataclass(frozen=True, slots=True)
class Picture:
    """All that the live view shows; replaced as a whole, so that it may be drawn at any time.

    `since_s` and `at_s` are readings of one clock: at the start and at the last progress.
    """

    started: RunStarted | None = None
    waiting: Waiting | None = None
    since_s: float = 0.0
    at_s: float = 0.0
    epoch: int = 0
    step: int = 0
    lr: float | None = None
    images_per_s: float | None = None
    stages: Mapping[int, StageProgress] = field(default_factory=dict)
    scores: Mapping[int, Score] = field(default_factory=dict)
    last: Tested | None = None
    best: Tested | None = None


class Row(NamedTuple):
    """A line of a table; `stage` is None where the line above already says it."""

    stage: int | None = None
    device: str = ""
    block: str = ""
    score: Score = Score()
    progress: StageProgress | None = None
    received_bytes: int = 0
    """That cross the link to the stage with each batch."""


class Column(NamedTuple):
    """A column; `min_width` keeps it still, `from_width` is the terminal that has room for it."""

    header: str
    justify: Literal["left", "right"]
    cell: Callable[[Row], RenderableType]
    min_width: int = 0
    from_width: int = 0


@dataclass(frozen=True, slots=True)
class Bar:
    """`share` of 1 as a line, as wide as there is room where `width` is None."""

    share: float
    width: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Thick for what is done, thin for the rest: told apart without colours too."""
        width = min(self.width or options.max_width, options.max_width)
        done = round(width * min(1.0, max(0.0, self.share)))
        yield Text.assemble(("━" * done, "green"), ("─" * (width - done), "dim"))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """For the table that holds it."""
        return Measurement(self.width or 4, self.width or options.max_width)


def waiting_text(waiting: Waiting) -> str:
    """For whom start-up waits, the first three by name."""
    named = ", ".join(waiting.missing[:3])
    more = f" and {len(waiting.missing) - 3} more" if len(waiting.missing) > 3 else ""
    return f"waiting for {named}{more} ({waiting.seconds:.0f} s)"


def seconds_left(picture: Picture) -> float | None:
    """How long the rest takes at the mean speed so far (tests included), None before a step."""
    started = picture.started
    if started is None or picture.step <= started.step:
        return None
    per_step = (picture.at_s - picture.since_s) / (picture.step - started.step)
    return max(0, started.epochs * started.steps_per_epoch - picture.step) * per_step


def draw(picture: Picture, now_s: float, width: int, height: int) -> RenderableType:
    """The whole picture, at most `width` wide and, if `height` allows 9 lines, `height` high."""
    if picture.started is None:
        return _line(waiting_text(picture.waiting) if picture.waiting else "starting", "dim")
    return Group(
        _heading(picture.started, width),
        _bars(picture.started, picture),
        _rates(picture, now_s),
        "",
        *_tables(_rows(picture, picture.started), width, max(2, height - OTHER_LINES)),
        "",
        _tests(picture),
    )


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _heading(started: RunStarted, width: int) -> Table:
    room = max(8, width - len(started.config_name) - 2)
    path = str(started.run_dir)
    # the end of a long path is what tells two runs apart
    shown = path if len(path) <= room else "…" + path[len(path) - room + 1 :]
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, justify="right", ratio=1)
    grid.add_row(Text(started.config_name, style="bold"), Text(shown, style="dim"))
    return grid


def _bars(started: RunStarted, picture: Picture) -> Table:
    per_epoch, total = started.steps_per_epoch, started.epochs * started.steps_per_epoch
    in_epoch = min(per_epoch, max(0, picture.step - (picture.epoch - 1) * per_epoch))
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    epoch = f"epoch {_padded(picture.epoch, started.epochs, ' of ')}"
    grid.add_row(epoch, Bar(in_epoch / max(1, per_epoch)), _padded(in_epoch, per_epoch))
    grid.add_row("run", Bar(picture.step / max(1, total)), _padded(picture.step, total))
    return grid


def _padded(done: int, total: int, sign: str = "/") -> str:
    return f"{done:>{len(str(total))}}{sign}{total}"


def _rates(picture: Picture, now_s: float) -> Text:
    if picture.waiting:
        return _line(waiting_text(picture.waiting))
    parts = [
        f"elapsed {duration_text(now_s - picture.since_s)}",
        f"left {duration_text(seconds_left(picture))}",
        f"lr {lr_text(picture.lr)}",
        f"{number_text(picture.images_per_s, '.0f', 1e7)} images/s",
    ]
    return _line("   ".join(parts))


def _tests(picture: Picture) -> Text:
    if picture.last is None or picture.best is None:
        return _line(f"test error {NOTHING}", "dim")
    last, best = picture.last, picture.best
    text = _line("test error ").append(f"{number_text(last.error_pct, '.2f')} %", "bold")
    text.append(f" after epoch {last.epoch}   best {number_text(best.error_pct, '.2f')} %")
    return text.append(f" after epoch {best.epoch}")


def _rows(picture: Picture, started: RunStarted) -> list[list[Row]]:
    """Per stage a row per block; only the first of a stage says what belongs to the stage."""
    found, block = [], count()  # blocks are counted through all stages
    received = started.received_bytes or (0,) * len(started.stages)
    for stage, (device, names) in enumerate(started.stages):
        rows = [Row(block=name, score=picture.scores.get(next(block), Score())) for name in names]
        first = (rows or [Row()])[0]._replace(stage=stage, device=device)
        progress, nbytes = picture.stages.get(stage), received[stage]
        found.append([first._replace(progress=progress, received_bytes=nbytes), *rows[1:]])
    return found


def _tables(stages: list[list[Row]], width: int, height: int) -> list[RenderableType]:
    rows = list(chain(*stages))
    linked = any(row.received_bytes for row in rows)
    if max(map(len, stages), default=0) > FEW_BLOCKS and len(rows) + len(stages) + 3 <= height:
        heads = [stage[0]._replace(block=f"{len(stage)}") for stage in stages]
        columns = LINKED_STAGES if linked else STAGES
        return [_table(columns, heads, width), "", _table(BLOCKS, rows, width)]
    if len(rows) + 1 <= height:
        return [_table(LINKED if linked else MERGED, rows, width)]
    return _packed(LINKED_PACKED if linked else PACKED, rows, width, height)


def _packed(
    columns: tuple[Column, ...], rows: list[Row], width: int, height: int
) -> list[RenderableType]:
    side_by_side = max(1, (width + 2) // (PACKED_WIDTH + 2))
    lines = height - 1
    if len(rows) > side_by_side * lines:
        lines = max(1, lines - 1)  # for the line that says how many are not shown
    lines = min(lines, -(-len(rows) // side_by_side))
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    tables = []
    for first in range(0, min(len(rows), side_by_side * lines), lines):
        grid.add_column(ratio=1)
        tables.append(_table(columns, rows[first : first + lines], width // side_by_side - 1))
    grid.add_row(*tables)
    hidden = len(rows) - side_by_side * lines
    return [grid, _line(f"and {hidden} more blocks", "dim")] if hidden > 0 else [grid]


def _table(columns: tuple[Column, ...], rows: list[Row], width: int) -> Table:
    gap = 2 if width >= 100 else 1
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim")
    shown = [column for column in columns if column.from_width <= width]
    for column in shown:
        rigid = column.cell is not BLOCK.cell  # names give way where there is too little room
        table.add_column(
            column.header, justify=column.justify, min_width=column.min_width, no_wrap=rigid
        )
    for row in rows:
        table.add_row(*(column.cell(row) for column in shown))
    return table


def _received(row: Row) -> str:
    return size_text(row.received_bytes) if row.received_bytes else ""


def _received_in_short(row: Row) -> str:
    return _received(row).replace(" ", "").removesuffix("iB")


def _of_stage(cell: Callable[[StageProgress], RenderableType]) -> Callable[[Row], RenderableType]:
    return lambda row: cell(row.progress) if row.progress else ""


STAGE = Column("stage", "right", lambda row: "" if row.stage is None else f"{row.stage}")
DEVICE = Column("device", "left", lambda row: _line(row.device))
BLOCK = Column("block", "left", lambda row: _line(row.block))
SCORES = (
    Column("loss", "right", lambda row: number_text(row.score.loss, ".4f", 100), 7),
    Column("error %", "right", lambda row: number_text(row.score.error_pct, ".2f"), 7),
)
BAR = Column("", "left", _of_stage(lambda now: Bar(now.busy, 6)), 6, from_width=70)
LOAD = (
    Column("busy", "right", _of_stage(lambda now: f"{100 * now.busy:.0f} %"), 5),
    Column("queue", "right", _of_stage(lambda now: f"{now.queue}"), 5, from_width=50),
    Column("batch", "right", _of_stage(lambda now: f"{now.batch_id}"), 6, from_width=60),
    Column("phase", "left", _of_stage(lambda now: _line(now.phase, "dim")), 8, from_width=78),
)
RECEIVED = Column("receives", "right", _received, 8, from_width=72)
MERGED = (STAGE, DEVICE, BLOCK, *SCORES, BAR, *LOAD)
LINKED = (STAGE, DEVICE, BLOCK, *SCORES, BAR._replace(from_width=90), *LOAD, RECEIVED)
STAGES = (STAGE, DEVICE, BLOCK._replace(header="blocks", justify="right"), BAR, *LOAD)
LINKED_STAGES = (*STAGES, RECEIVED)
BLOCKS = (BLOCK, *SCORES)
PACKED = (
    STAGE._replace(header=""),
    DEVICE._replace(from_width=32),
    BLOCK,
    SCORES[0]._replace(min_width=6),
    SCORES[1]._replace(header="err %", min_width=5),
    Column("busy", "right", _of_stage(lambda now: f"{100 * now.busy:.0f}%"), 4),
)
GETS = Column("gets", "right", _received_in_short, 5, from_width=36)
LINKED_PACKED = (PACKED[0], DEVICE._replace(from_width=46), *PACKED[2:], GETS)
"""`LINKED…`: with what crosses the link to each stage, where stages are processes."""
