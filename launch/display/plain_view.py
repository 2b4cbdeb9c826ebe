"""Plain lines about a run, for a file, a pipe or a log: never wrapped, coloured or drawn over."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.text import Text

from launch.display.format import counted, lr_text, number_text
from launch.run_directory import LOG
from pipeline.run.events import (
    CheckpointWritten,
    Detail,
    EpochDone,
    Event,
    Note,
    Observer,
    Progress,
    RunStarted,
    Waiting,
)
from pipeline.run.metrics import tested
from pipeline.storage.line_log import LineLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.console import Console

    from pipeline.storage.folder import Folder

PLAIN_EVERY_S = 10.0


class PlainView:
    """An observer that hands over lines: of progress at most one every ten seconds.

    Args:
        write: takes a line without its end.
        clock: gives seconds.
    """

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._said_at = clock()
        self._of_epochs = self._of_steps = ""
        self._handlers: Mapping[type[Any], Callable[[Any], None]] = {
            RunStarted: self._started,
            Waiting: self._waiting,
            Progress: self._progress,
            EpochDone: self._epoch,
            CheckpointWritten: lambda event: write(f"checkpoint {event.path.name}"),
            Note: lambda event: write(event.text),
            Detail: lambda event: write(event.text),
        }

    def __call__(self, event: Event) -> None:
        """Write what is worth a line about `event`."""
        self._handlers[type(event)](event)

    def reading(self, what: str, done: int, total: int) -> None:
        """Write with how many examples something is done."""
        if self._is_time():
            self._write(f"{what}: {done} of {total}")

    def _is_time(self) -> bool:
        now = self._clock()
        if now - self._said_at < PLAIN_EVERY_S:
            return False
        self._said_at = now
        return True

    def _started(self, event: RunStarted) -> None:
        self._said_at = self._clock()
        self._of_epochs = f"/{event.epochs}"
        self._of_steps = f"/{event.epochs * event.steps_per_epoch}"
        devices = [device for device, _ in event.stages]
        where = devices[0] if len(set(devices)) == 1 else " ".join(devices)
        stages = counted(len(devices), "stages")
        epochs = counted(event.epochs, "epochs")
        resumed = f", going on after step {event.step}" if event.step else ""
        self._write(
            f"{event.config_name}  {event.run_dir}  {stages} on {where}  "
            f"{epochs} of {event.steps_per_epoch} steps{resumed}"
        )

    def _waiting(self, event: Waiting) -> None:
        if self._is_time():
            self._write(waiting_text(event))

    def _progress(self, event: Progress) -> None:
        if not self._is_time():
            return
        busy = " ".join(f"{100 * stage.busy:.0f}" for stage in event.stages)
        parts = [
            f"epoch {event.epoch}{self._of_epochs}",
            f"step {event.step}{self._of_steps}",
            f"lr {lr_text(event.lr)}",
            _rate_text(event.images_per_s),
            f"busy {busy} %" if busy else "",
        ]
        self._write("  ".join(part for part in parts if part))

    def _epoch(self, event: EpochDone) -> None:
        metrics, self._said_at = event.metrics, self._clock()  # it says how far training is
        parts = [
            f"epoch {metrics['epoch']}{self._of_epochs}  step {metrics['step']}",
            f"lr {lr_text(metrics['lr'])}",
            _pass_text("train", metrics["train"]),
            _pass_text(*tested(metrics)),
            _rate_text(metrics["images_per_s"]),
            f"{number_text(metrics['seconds'], '.1f', 1e7)} s",
        ]
        self._write("  ".join(part for part in parts if part))


def lines_on(console: Console) -> Callable[[str], None]:
    """Writes lines on a console; one that can't show a character gets a question mark."""
    encoding = console.encoding
    return lambda line: console.print(Text(_encodable(line, encoding)), soft_wrap=True)


@contextmanager
def open_log(folder: Folder, show: Observer) -> Iterator[Observer]:
    """An observer that appends lines to `run.log`, each with its date and time; a resumed run goes
    on in the same file.

    A disk that refuses lines does not end the run: they are kept, and `show` gets a note of it.
    """
    lines = LineLog(folder, LOG, lambda text: show(Note(text)))

    def write(text: str) -> None:
        for line in Text(_encodable(text, "utf-8")).plain.split("\n"):  # `Text`: no control codes
            lines.append(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}")

    try:
        yield PlainView(write)
    finally:
        lines.flush()


def waiting_text(waiting: Waiting) -> str:
    """What start-up waits for, the first three by name."""
    named = ", ".join(waiting.missing[:3])
    more = f" and {len(waiting.missing) - 3} more" if len(waiting.missing) > 3 else ""
    return f"waiting for {named}{more} ({waiting.seconds:.0f} s)"


def _encodable(line: str, encoding: str) -> str:
    return line.encode(encoding, "replace").decode(encoding)


def _rate_text(images_per_s: float | None) -> str:
    return f"{number_text(images_per_s, '.0f', 1e7)} images/s"


def _pass_text(name: str, values: Mapping[str, Any] | None) -> str:
    """Loss (of a test, only where there is no error) and error of a pass, as far as they are
    known."""
    known = values or {}
    loss, error = known.get("loss"), known.get("error_pct")
    if name != "train" and error is not None:
        loss = None
    parts = []
    if loss is not None:
        parts.append(f"{name} loss {number_text(loss, '.4f', 100)}")
    if error is not None:
        parts.append(f"{name} error {number_text(error, '.2f')} %")
    return "  ".join(parts)
