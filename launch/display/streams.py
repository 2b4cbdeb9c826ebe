"""Standard streams that a run outlives: who reads them may go away, pause, or can't show an arrow.

    write ──▶ Backlog: the newest lines ──▶ a thread ──▶ pipe, terminal or file

What a command prints is what it is for, so a write waits for its reader, as everywhere, until
a run begins. From then on (`wait_for_no_reader`) a thread writes: a paused pager, or Ctrl-S on a
terminal, stops neither the run nor the signal that is to end it. (To make the descriptor
non-blocking would do so for the user's shell, too, which shares it.)
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections import deque
from contextlib import suppress
from threading import Condition, Thread
from time import monotonic
from typing import Any, TextIO

MOST_CHARS = 1 << 18
"""Of lines that wait for a reader: hours of those that tell of progress."""
LAST_WORDS_S = 5.0
"""How long a command that trained waits for each of its readers before it ends."""


class Backlog:
    """Lines that wait for a reader. Where they become too many the oldest go, and are counted."""

    def __init__(self, most_chars: int = MOST_CHARS) -> None:
        self._most_chars, self._chars, self._left_out = most_chars, 0, 0
        self._texts: deque[str] = deque()

    def add(self, text: str) -> None:
        """One more, of whole lines mostly."""
        self._texts.append(text)
        self._chars += len(text)
        while self._chars > self._most_chars and len(self._texts) > 1:
            oldest = self._texts.popleft()
            self._chars -= len(oldest)
            self._left_out += oldest.count("\n")

    def take(self) -> str:
        """All that waits, with a word in the place of what is gone."""
        gap = f"[{self._left_out} lines left out: this output was not read for a while]\n"
        text = (gap if self._left_out else "") + "".join(self._texts)
        self._texts.clear()
        self._chars = self._left_out = 0
        return text


class Outlet(io.TextIOBase):
    """A stream that never fails: what a closed terminal, or a pipe whose reader has left, does not
    take is dropped. Lines are written when they are complete, or flushed.

    `lost` says why nothing is written any more; it is None while all is well.
    """

    def __init__(self, descriptor: int, encoding: str) -> None:
        self.lost: OSError | None = None
        self._descriptor, self._encoding = descriptor, encoding
        self._begun = ""
        self._backlog: Backlog | None = None
        self._writes = False
        self._changed = Condition()
        self._patience_s = LAST_WORDS_S

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As of every stream."""
        return self._encoding

    @property
    def errors(self) -> str:  # type: ignore[override]
        """A character that the encoding does not have becomes a question mark."""
        return "replace"

    @property
    def buffer(self) -> io.RawIOBase:
        """As of standard streams, for users' own modules that write bytes."""
        return _Bytes(self)

    def writable(self) -> bool:
        """As every stream."""
        return True

    def fileno(self) -> int:
        """As every stream."""
        return self._descriptor

    def isatty(self) -> bool:
        """As every stream."""
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """As every stream."""
        with self._changed:
            lines, end, self._begun = (self._begun + text).rpartition("\n")
            self._hand_over(lines + end)
        return len(text)

    def flush(self) -> None:
        """As every stream, but that it does not wait for the reader once nobody does."""
        if not self._begun:  # at the end of Python the thread may be gone, and hold the lock
            return
        with self._changed:
            text, self._begun = self._begun, ""
            self._hand_over(text)

    def reconfigure(self, **options: object) -> None:
        """As of standard streams, for users' own modules that ask; nothing changes."""

    def wait_for_no_reader(self) -> None:
        """From now on a thread writes."""
        with self._changed:
            self._backlog = self._backlog or Backlog()

    @property
    def is_behind(self) -> bool:
        """Whether the reader has not taken all of it yet."""
        return self._writes

    def settle(self) -> bool:
        """Wait until the reader has taken all, `LAST_WORDS_S` in all at most; whether it has."""
        self.flush()
        began = monotonic()
        with self._changed:
            settled = self._changed.wait_for(lambda: not self._writes, self._patience_s)
        self._patience_s = max(0.0, self._patience_s - (monotonic() - began))
        return settled

    def end(self) -> None:
        """As `settle`. What is written after that, by whatever goes on to the end of Python, waits
        for the reader again, or is dropped where that takes nothing: no thread would write it."""
        with self._changed:  # throughout: a line of another thread would start the writer again
            if not self.settle():
                self.lost = self.lost or TimeoutError("nobody reads it")
            self._backlog = None if self.lost is None else self._backlog

    def _hand_over(self, text: str) -> None:
        if not text or self.lost:
            return
        if self._backlog is None:
            self._put(text)
            return
        self._backlog.add(text)
        if not self._writes:
            # a daemon: the end of the command does not wait for a reader that takes nothing
            thread = Thread(target=self._write_on, name="output", daemon=True)
            with suppress(RuntimeError):  # none can be started now: perhaps at the next line
                self._writes = True
                thread.start()
                return
            self._writes = False

    def _write_on(self) -> None:
        while text := self._next():
            self._put(text)

    def _next(self) -> str:
        with self._changed:
            assert self._backlog, "a thread writes what waits"
            text = "" if self.lost else self._backlog.take()
            self._writes = bool(text)
            self._changed.notify_all()
            return text

    def _put(self, text: str) -> None:
        data = memoryview(text.encode(self._encoding, self.errors))
        try:
            while data:
                data = data[self._take_some(data) :]
        except OSError as error:
            self.lost = error

    def _take_some(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # another program has left the descriptor so
            room = select.poll()
            room.register(self._descriptor, select.POLLOUT)
            room.poll()
            return 0


class _Bytes(io.RawIOBase):
    """Bytes for an outlet, in the order of its text."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def writable(self) -> bool:
        """As every stream."""
        return True

    def write(self, data: Any) -> int:
        """As every stream; what is no text in the outlet's encoding is replaced."""
        found = memoryview(data).tobytes()
        self._outlet.write(found.decode(self._outlet.encoding, "replace"))
        return len(found)

    def flush(self) -> None:
        """As every stream."""
        self._outlet.flush()


def tolerate_streams() -> None:
    """Make stdout and stderr outlets. Block names hold arrows: a stream that can't show one gets a
    question mark instead. Where the shell has closed one (`>&-`), it leads to /dev/null."""
    _open_closed()
    sys.stdout, sys.stderr = _outlet(sys.stdout, 1), _outlet(sys.stderr, 2)


def wait_for_no_reader() -> None:
    """From now on the run goes on whatever the readers of stdout and stderr do."""
    for outlet in _outlets():
        outlet.wait_for_no_reader()


def settle_output() -> None:
    """What is written next, to whichever stream, comes after what was written before: readers get
    a moment to take that."""
    for outlet in _outlets():
        outlet.settle()


def is_behind(stream: object) -> bool:
    """Whether a reader has not taken yet what was written to `stream`."""
    return isinstance(stream, Outlet) and stream.is_behind


def lost_output(stream: object) -> str:
    """Why nothing is written to `stream` any more; empty while all is well."""
    lost = stream.lost if isinstance(stream, Outlet) else None
    return "" if lost is None else f"the output can't be written: {lost.strerror or lost}"


def end_output() -> None:
    """Give readers a moment for the last words; say on stderr that stdout could not be written,
    but where its reader wanted no more."""
    settle_output()
    if isinstance(sys.stdout, Outlet) and not isinstance(sys.stdout.lost, BrokenPipeError | None):
        print(lost_output(sys.stdout), file=sys.stderr)
    for outlet in _outlets():
        outlet.end()


def _outlets() -> list[Outlet]:
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, Outlet)]


def _open_closed() -> None:
    """The number of a closed standard stream would be the next file's, and what any library
    prints, here or in a worker, would go into that."""
    for number, flags in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):  # a root folder without /dev
                os.set_inheritable(os.open(os.devnull, flags), True)  # the least number is free


def _outlet(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:  # it was closed
        return Outlet(number, "utf-8")  # type: ignore[return-value]
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # a test's, or an outlet already
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # it has none, or is closed
        return stream
    with suppress(OSError):
        stream.flush()
    return Outlet(descriptor, stream.encoding)  # type: ignore[return-value]
