"""The live view of a run: bars for epoch and run, a table with a row per block, the last test.

What belongs to a stage stands in the row of its first block. A narrow terminal gets fewer columns;
one with few lines gets fewer rows, and how many are left out. Colours are the terminal's own green
and its dim and bold text, legible on dark and light.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import compress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from rich import progress
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from launch.display.format import NOTHING, lr_text, number_text, size_text
from launch.display.plain_view import waiting_text
from launch.display.streams import is_behind
from pipeline.run.events import (
    CheckpointWritten,
    Detail,
    EpochDone,
    Event,
    Note,
    Observer,
    Progress,
    RunStarted,
    StageProgress,
    Waiting,
)
from pipeline.run.metrics import tested

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.console import (
        Console,
        ConsoleOptions,
        JustifyMethod,
        RenderableType,
        RenderResult,
    )

REFRESH_PER_S = 4.0
LAST_LINES_S = 5.0
"""How long the end of a run waits for the lines that are still to be drawn."""
_OTHER_LINES = 9
"""All but the rows of blocks: heading, two bars, rates, two blank lines, the table's header, the
test, and one for the shell's prompt."""
_SPEED_OF_LAST_S = 600.0
"""The time left is estimated from the speed of these last seconds, tests included."""


@contextmanager
def open_live_view(console: Console, clock: Callable[[], float]) -> Iterator[Observer]:
    """An observer that keeps the view on `console` up to date until the end of the `with` block."""
    view = LiveView(console, clock)
    events: SimpleQueue[Event | None] = SimpleQueue()
    with Live(view, console=console, auto_refresh=False) as live:
        # a thread of its own: training does not wait for a picture
        drawing = Thread(target=_draw, args=(events, view, live), name="view", daemon=True)
        drawing.start()
        try:
            yield events.put
        finally:
            events.put(None)
            drawing.join(LAST_LINES_S)


def _draw(events: SimpleQueue[Event | None], view: LiveView, live: Live) -> None:
    # only this thread: rich's own refreshing thread may draw between another's erasing and printing
    every_s, drawn_at = 1 / REFRESH_PER_S, 0.0
    while True:
        with suppress(Empty):
            event = events.get(timeout=every_s)
            if event is None:
                view.end()
                return  # what is drawn last is drawn as `live` ends
            view(event)
        # a terminal that is paused, or slow, gets the next picture when it has taken the last
        if time.monotonic() - drawn_at >= every_s and not is_behind(live.console.file):
            live.refresh()
            drawn_at = time.monotonic()


_COLUMNS: tuple[tuple[str, JustifyMethod, int, int], ...] = (
    ("stage", "right", 0, 0),
    ("device", "left", 0, 48),
    ("block", "left", 0, 0),
    ("loss", "right", 7, 0),
    ("error %", "right", 7, 0),
    ("", "left", 6, 90),
    ("busy", "right", 5, 0),
    ("queue", "right", 0, 62),
    ("batch", "right", 6, 70),
    ("activity", "left", 8, 56),
    ("receives", "right", 0, 78),
)
"""Header, alignment, the width that keeps it still, and the terminal that has room for it."""
_MEANINGS = {
    "loss": "loss, error: in this epoch",
    "busy": "busy: time at work",
    "queue": "queue: batches waiting",
    "batch": "batch: the last",
    "receives": "receives: with a batch",
}
"""Of columns whose header does not say it."""


class LiveView:
    """Keeps what is known of a run, and draws it whenever rich asks."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._started: RunStarted | None = None
        self._waiting: Waiting | None = None
        self._step = 0
        self._lr: float | None = None
        self._images_per_s: float | None = None
        self._stages: Mapping[int, StageProgress] = {}
        self._scores: dict[int, tuple[float | None, float | None]] = {}  # loss, error in percent
        self._last: Mapping[str, Any] | None = None  # metrics of the last epoch that was tested
        self._best: Mapping[str, Any] | None = None
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(None, "dim", "green", "green"),
            progress.MofNCompleteColumn(table_column=Column(justify="right")),
            console=console,
            speed_estimate_period=_SPEED_OF_LAST_S,
            get_time=clock,
            expand=True,
        )
        self._epoch, self._run = (self._bars.add_task(what) for what in ("epoch", "run"))
        self._handlers: Mapping[type[Any], Callable[[Any], None]] = {
            RunStarted: self._start,
            Waiting: self._wait,
            Progress: self._progress,
            EpochDone: self._epoch_done,
            CheckpointWritten: lambda event: self._note(f"checkpoint {event.path.name}", "dim"),
            Note: lambda event: self._note(event.text),
            Detail: lambda event: None,  # for the log alone
        }

    def __call__(self, event: Event) -> None:
        """Show what has happened."""
        self._handlers[type(event)](event)

    def end(self) -> None:
        """Leave out what stages were last seen doing: it is no longer true."""
        self._waiting, self._stages = None, {}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw what is known now."""
        started, width = self._started, options.max_width
        if started is None:
            yield _line(waiting_text(self._waiting) if self._waiting else "starting", "dim")
            return
        yield _heading(started, width)
        yield self._bars
        yield self._rates()
        yield ""
        rows, room = list(self._rows(started)), max(2, options.max_height - _OTHER_LINES)
        hidden = len(rows) - room + 1 if len(rows) > room else 0  # the line that says so needs one
        yield _table(rows[: len(rows) - hidden], width)
        if hidden:
            yield _line(f"and {hidden} more blocks", "dim")
        if len(rows) < room:
            yield _line(_legend(width, linked=any(row[-1] for row in rows)), "dim")
        yield ""
        yield self._tests()

    def _start(self, event: RunStarted) -> None:
        self._started = event
        steps = event.steps_per_epoch
        self._bars.reset(self._run, total=event.epochs * steps, completed=event.step)
        self._move_to(min(event.epochs, event.step // max(1, steps) + 1), event.step)

    def _move_to(self, epoch: int, step: int) -> None:
        assert self._started, "a run starts before it trains"
        epochs, steps = self._started.epochs, self._started.steps_per_epoch
        self._bars.update(
            self._epoch,
            description=f"epoch {epoch:>{len(str(epochs))}} of {epochs}",
            total=steps,
            completed=min(steps, max(0, step - (epoch - 1) * steps)),
        )
        self._bars.update(self._run, completed=step)
        self._step = step

    def _wait(self, event: Waiting) -> None:
        self._waiting = event

    def _progress(self, event: Progress) -> None:
        self._waiting, self._lr, self._images_per_s = None, event.lr, event.images_per_s
        self._stages = {stage.stage: stage for stage in event.stages}
        # a pass that has just begun has no loss yet: the last one known stays
        tallies = [tally for stage in event.stages for tally in stage.tallies if tally.images]
        self._scores.update({tally.block: (tally.loss, tally.error_pct) for tally in tallies})
        self._move_to(event.epoch, event.step)

    def _epoch_done(self, event: EpochDone) -> None:
        metrics = event.metrics
        error_pct = _error(metrics)
        if error_pct is not None:
            best, self._last = self._best, metrics
            # in greedy training another block's classifier may be tested: its best is another
            if (
                best is None
                or best.get("learner") != metrics.get("learner")
                or error_pct < (_error(best) or 0.0)
            ):
                self._best = metrics
        for entry in metrics.get("blocks") or []:
            self._scores[entry["block"]] = entry["loss"], entry["error_pct"]
        # steps of the next epoch may have left the last stage before this one was reported
        if metrics["train"] and metrics["step"] >= self._step:
            self._waiting, self._lr = None, metrics["lr"]
            self._images_per_s = metrics["images_per_s"]
            self._move_to(metrics["epoch"], metrics["step"])

    def _note(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style))

    def _rates(self) -> Text:
        if self._waiting:
            return _line(waiting_text(self._waiting))
        run = self._bars.tasks[self._run]
        return _line(
            f"{number_text(self._images_per_s, '.0f', 1e7)} images/s   "
            f"left {_duration(run.time_remaining)}   elapsed {_duration(run.elapsed)}   "
            f"lr {lr_text(self._lr)}"
        )

    def _rows(self, started: RunStarted) -> Iterator[tuple[RenderableType, ...]]:
        """The cells of `_COLUMNS` for each block; those of its stage only for the first of it."""
        for stage, (device, blocks) in enumerate(started.stages):
            nbytes = started.received_bytes[stage] if started.received_bytes else 0
            load = _load(self._stages.get(stage))
            before: tuple[RenderableType, ...] = str(stage), _line(device)
            after: tuple[RenderableType, ...] = *load, size_text(nbytes) if nbytes else ""
            for block, name in blocks:
                loss, error_pct = self._scores.get(block, (None, None))
                loss_text, error_text = number_text(loss, ".4f", 100), number_text(error_pct, ".2f")
                yield *before, _line(name), loss_text, error_text, *after
                before, after = ("",) * len(before), ("",) * len(after)

    def _tests(self) -> Text:
        last, best = self._last, self._best
        if last is None or best is None:
            return _line(f"test error {NOTHING}", "dim")
        last_pct, best_pct = (number_text(_error(one), ".2f") for one in (last, best))
        return (
            _line(f"{tested(last)[0]} error ")
            .append(f"{last_pct} %", "bold")
            .append(f" after epoch {last['epoch']}   best {best_pct} % after epoch {best['epoch']}")
        )


def _error(metrics: Mapping[str, Any]) -> float | None:
    """Of a test, in percent; None where there was none."""
    return tested(metrics)[1].get("error_pct")


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _heading(started: RunStarted, width: int) -> Text:
    path, room = str(started.run_dir), max(8, width - len(started.config_name) - 2)
    # the end of a long path is what tells two runs apart
    shown = path if len(path) <= room else f"…{path[1 - room :]}"
    return _line(started.config_name, "bold").append(f"  {shown}", "not bold dim")


def _load(now: StageProgress | None) -> tuple[RenderableType, ...]:
    """Of a stage: bar and number of its busy share, batches that wait, last batch, activity."""
    if now is None:
        return ("",) * 5
    bar = ProgressBar(1, now.busy, 6, style="dim", complete_style="green", finished_style="green")
    busy, activity = f"{100 * now.busy:.0f} %", _line(now.activity, "dim")
    return bar, busy, str(now.queue), str(now.batch_id), activity


def _legend(width: int, *, linked: bool) -> str:
    """What columns mean that a width has room for, as far as there is room to say it."""
    told = ""
    for header, *_, from_width in _COLUMNS:
        if header in _MEANINGS and from_width <= width and (linked or header != "receives"):
            longer = f"{told}   {_MEANINGS[header]}".lstrip()
            told = longer if len(longer) <= width else told
    return told


def _table(rows: list[tuple[RenderableType, ...]], width: int) -> Table:
    """Without the columns for which the terminal has no room, and without an empty last one."""
    gap = 2 if width >= 100 else 1
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim")
    shown = [from_width <= width for *_, from_width in _COLUMNS]
    shown[-1] = shown[-1] and any(row[-1] for row in rows)
    for header, justify, min_width, _ in compress(_COLUMNS, shown):
        rigid = header != "block"  # names give way where there is too little room
        table.add_column(header, justify=justify, min_width=min_width, no_wrap=rigid)
    for row in rows:
        table.add_row(*compress(row, shown))
    return table


def _duration(seconds: float | None) -> str:
    """As 1:02:03, or 4 days, 1:02:03."""
    if seconds is None or seconds > 1e10:
        return NOTHING
    return str(timedelta(seconds=int(seconds)))
