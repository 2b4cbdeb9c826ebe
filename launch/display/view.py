"""What a person sees of a run: a live picture, plain lines, or nothing.

Each view is an observer of `pipeline.run.events`: a table {type of event: what to do with it}.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.live import Live
from rich.text import Text

from launch.display.format import lr_text, number_text
from launch.display.live_view import (
    Picture,
    Score,
    Tested,
    draw,
    waiting_text,
)
from launch.display.streams import is_behind
from pipeline.run.events import (
    CheckpointWritten,
    EpochDone,
    Event,
    Note,
    Observer,
    Progress,
    RunStarted,
    Waiting,
    ignore,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from launch.job import ViewKind

Clock: TypeAlias = Callable[[], float]
Handlers: TypeAlias = Mapping[type[Any], Callable[[Any], None]]

PLAIN_EVERY_S = 10.0
REFRESH_PER_S = 4.0
LAST_LINES_S = 5.0
"""How long the end of a run waits for the lines that are still to be drawn."""


@contextmanager
def open_view(
    kind: ViewKind, console: Console, clock: Clock = time.monotonic
) -> Iterator[Observer]:
    """An observer that shows a run on `console` until the end of the `with` block.

    `auto` is `live` on a terminal that can redraw lines, else `plain`. `clock` gives seconds.
    """
    if kind == "auto":
        kind = "live" if can_redraw(console) else "plain"
    if kind == "quiet":
        yield ignore
    elif kind == "plain":
        yield PlainView(console, clock)
    else:
        view = LiveView(console, clock)
        with Live(view, console=console, auto_refresh=False) as live, _beside(view, live) as put:
            yield put


def can_redraw(console: Console) -> bool:
    """Whether the live picture would look right: bars and arrows need more than ASCII."""
    unicode = console.encoding.lower().startswith("utf")
    return console.is_terminal and not console.is_dumb_terminal and unicode


@contextmanager
def _beside(view: LiveView, live: Live) -> Iterator[Observer]:
    """Draw in a thread of its own: training does not wait for a picture."""
    events: SimpleQueue[Event | None] = SimpleQueue()
    drawing = Thread(target=_draw_on, args=(events, view, live), name="view", daemon=True)
    drawing.start()
    try:
        yield events.put
    finally:
        events.put(None)
        drawing.join(LAST_LINES_S)


def _draw_on(events: SimpleQueue[Event | None], view: LiveView, live: Live) -> None:
    # rich's own refreshing thread may draw between another's erasing and printing
    every_s, drawn_at = 1 / REFRESH_PER_S, 0.0
    while True:
        try:
            event = events.get(timeout=every_s)
        except Empty:
            _refresh(live)
            continue
        if event is None:
            view.end()
            return  # what is drawn last is drawn as `live` ends
        view(event)
        if time.monotonic() - drawn_at >= every_s:
            _refresh(live)
            drawn_at = time.monotonic()


def _refresh(live: Live) -> None:
    """A terminal that is paused, or slow, gets the next picture when it has taken the last."""
    if not is_behind(live.console.file):
        live.refresh()


class LiveView:
    """Keeps the picture up to date and draws it whenever rich asks, from whatever thread."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self.picture = Picture()
        self._console = console
        self._clock = clock
        self._handlers: Handlers = {
            RunStarted: self._started,
            Waiting: self._waiting,
            Progress: self._progress,
            EpochDone: self._epoch,
            CheckpointWritten: self._checkpoint,
            Note: self._note,
        }

    def __call__(self, event: Event) -> None:
        """Take in `event`."""
        self._handlers[type(event)](event)

    def end(self) -> None:
        """Leave out what stages were last seen doing: it is no longer true."""
        self.picture = replace(self.picture, waiting=None, stages={})

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the picture as it is now."""
        yield draw(self.picture, self._clock(), options.max_width, options.max_height)

    def _started(self, event: RunStarted) -> None:
        now = self._clock()
        epoch = min(event.epochs, event.step // max(1, event.steps_per_epoch) + 1)
        self.picture = Picture(
            started=event, since_s=now, at_s=now, epoch=epoch, step=event.step,
            scores=self.picture.scores, last=self.picture.last, best=self.picture.best,
        )  # fmt: skip

    def _waiting(self, event: Waiting) -> None:
        self.picture = replace(self.picture, waiting=event)

    def _progress(self, event: Progress) -> None:
        # a pass that has just begun has no loss yet: the last one known stays
        tallies = [tally for stage in event.stages for tally in stage.tallies if tally.images]
        fresh = {tally.block: Score(tally.loss, tally.error_pct) for tally in tallies}
        self.picture = replace(
            self.picture, waiting=None, at_s=self._clock(), epoch=event.epoch, step=event.step,
            lr=event.lr, images_per_s=event.images_per_s,
            stages={stage.stage: stage for stage in event.stages},
            scores={**self.picture.scores, **fresh},
        )  # fmt: skip

    def _epoch(self, event: EpochDone) -> None:
        metrics = event.metrics
        self._tested(metrics)
        blocks = metrics.get("blocks") or []
        fresh = {entry["block"]: Score(entry["loss"], entry["error_pct"]) for entry in blocks}
        self.picture = replace(self.picture, scores={**self.picture.scores, **fresh})
        # steps of the next epoch may have left the last stage before this one was reported
        if metrics["train"] and metrics["step"] >= self.picture.step:
            self.picture = replace(
                self.picture, waiting=None, at_s=self._clock(), epoch=metrics["epoch"],
                step=metrics["step"], lr=metrics["lr"], images_per_s=metrics["images_per_s"],
            )  # fmt: skip

    def _tested(self, metrics: Mapping[str, Any]) -> None:
        error = (metrics.get("test") or {}).get("error_pct")
        if error is None:
            return
        last, best = Tested(metrics["epoch"], error, metrics.get("learner")), self.picture.best
        if best is None or best.learner != last.learner or error < best.error_pct:
            best = last
        self.picture = replace(self.picture, last=last, best=best)

    def _checkpoint(self, event: CheckpointWritten) -> None:
        self._console.print(Text(f"checkpoint {event.path.name}", style="dim"))

    def _note(self, event: Note) -> None:
        self._console.print(Text(event.text))


class PlainView:
    """Lines that a file or a log keeps well: never wrapped, coloured or drawn over."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._said_at = clock()
        self._run: RunStarted | None = None
        self._handlers: Handlers = {
            RunStarted: self._started,
            Waiting: self._waiting,
            Progress: self._progress,
            EpochDone: self._epoch,
            CheckpointWritten: self._checkpoint,
            Note: self._note,
        }

    def __call__(self, event: Event) -> None:
        """Say what is worth a line about `event`."""
        self._handlers[type(event)](event)

    def _say(self, line: str) -> None:
        encoding = self._console.encoding
        safe = line.encode(encoding, "replace").decode(encoding)  # a name may hold an arrow
        self._console.print(Text(safe), soft_wrap=True)

    def _is_time(self) -> bool:
        now = self._clock()
        if now - self._said_at < PLAIN_EVERY_S:
            return False
        self._said_at = now
        return True

    def _started(self, event: RunStarted) -> None:
        self._run = event
        self._said_at = self._clock()
        self._say(f"{event.config_name}  {event.run_dir}  {_plan_text(event)}")

    def _waiting(self, event: Waiting) -> None:
        if self._is_time():
            self._say(waiting_text(event))

    def _progress(self, event: Progress) -> None:
        if not self._is_time():
            return
        busy = " ".join(f"{100 * stage.busy:.0f}" for stage in event.stages)
        parts = [
            f"epoch {event.epoch}{self._of_epochs()}",
            f"step {event.step}{self._of_steps()}",
            f"lr {lr_text(event.lr)}",
            _rate_text(event.images_per_s),
            f"busy {busy} %" if busy else "",
        ]
        self._say("  ".join(part for part in parts if part))

    def _epoch(self, event: EpochDone) -> None:
        metrics = event.metrics
        parts = [
            f"epoch {metrics['epoch']}{self._of_epochs()}  step {metrics['step']}",
            f"lr {lr_text(metrics['lr'])}",
            _pass_text("train", metrics["train"]),
            _pass_text("test", metrics["test"]),
            _rate_text(metrics["images_per_s"]),
            f"{number_text(metrics['seconds'], '.1f', 1e7)} s",
        ]
        self._say("  ".join(part for part in parts if part))

    def _checkpoint(self, event: CheckpointWritten) -> None:
        self._say(f"checkpoint {event.path.name}")

    def _note(self, event: Note) -> None:
        self._say(event.text)

    def _of_epochs(self) -> str:
        return f"/{self._run.epochs}" if self._run else ""

    def _of_steps(self) -> str:
        return f"/{self._run.epochs * self._run.steps_per_epoch}" if self._run else ""


def _plan_text(event: RunStarted) -> str:
    devices = [device for device, _ in event.stages]
    where = devices[0] if len(set(devices)) == 1 else " ".join(devices)
    stages = "1 stage" if len(devices) == 1 else f"{len(devices)} stages"
    epochs = "1 epoch" if event.epochs == 1 else f"{event.epochs} epochs"
    text = f"{stages} on {where}  {epochs} of {event.steps_per_epoch} steps"
    return f"{text}, going on after step {event.step}" if event.step else text


def _rate_text(images_per_s: float | None) -> str:
    return f"{number_text(images_per_s, '.0f', 1e7)} images/s"


def _pass_text(name: str, values: Mapping[str, Any] | None) -> str:
    """Loss (of training only) and error of a pass, as far as they are known."""
    known = values or {}
    loss, error = known.get("loss") if name == "train" else None, known.get("error_pct")
    parts = []
    if loss is not None:
        parts.append(f"{name} loss {number_text(loss, '.4f', 100)}")
    if error is not None:
        parts.append(f"{name} error {number_text(error, '.2f')} %")
    return "  ".join(parts)
