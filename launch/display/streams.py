"""Standard streams that stop no run: their reader may leave, pause, or not know an arrow.

    write ──▶ Backlog: the newest lines ──▶ a thread ──▶ pipe, terminal or file

Until a run begins a write waits for its reader, as in any program: what is printed then is what the
command is for. From then on (`wait_for_no_reader`) a thread writes: a paused pager, or Ctrl-S on a
terminal, stops neither the run nor the signal that is to end it. (A non-blocking descriptor would
do as well, but the user's shell shares it.)
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
"""Of lines that wait for a reader: hours of progress lines."""
LAST_WORDS_S = 5.0
"""How long a command that trained waits for each of its readers before it ends."""


class Backlog:
    """Lines that wait for a reader. Where they become too many the oldest go, and are counted."""

    def __init__(self, most_chars: int = MOST_CHARS) -> None:
        self._most_chars, self._chars, self._left_out = most_chars, 0, 0
        self._texts: deque[str] = deque()

    def add(self, text: str) -> None:
        """Add a text, usually of whole lines."""
        self._texts.append(text)
        self._chars += len(text)
        while self._chars > self._most_chars and len(self._texts) > 1:
            oldest = self._texts.popleft()
            self._chars -= len(oldest)
            self._left_out += oldest.count("\n")

    def take(self) -> str:
        """Empty it; says how many lines were left out."""
        gap = f"[{self._left_out} lines left out: this output was not read for a while]\n"
        text = (gap if self._left_out else "") + "".join(self._texts)
        self._texts.clear()
        self._chars = self._left_out = 0
        return text


class OutputStream(io.TextIOBase):
    """A text stream that never fails: what a closed terminal, or a pipe without a reader, does not
    take is dropped. Lines are written when they are complete, or flushed.

    `lost`: why nothing is written any more; None while all is well.
    """

    def __init__(self, descriptor: int, encoding: str) -> None:
        self.lost: OSError | None = None
        self._descriptor, self._encoding = descriptor, encoding
        self._begun = ""  # a line without its end
        self._backlog: Backlog | None = None  # None: writes wait for the reader
        self._writing = False
        self._changed = Condition()
        self._reader_wait_s = LAST_WORDS_S

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    @property
    def errors(self) -> str:  # type: ignore[override]
        """A character that the encoding does not have becomes a question mark."""
        return "replace"

    @property
    def buffer(self) -> io.RawIOBase:
        """For users' own modules that write bytes to a standard stream."""
        return _Bytes(self)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        with self._changed:
            lines, end, self._begun = (self._begun + text).rpartition("\n")
            self._hand_over(lines + end)
        return len(text)

    def flush(self) -> None:
        """Write a line that has no end yet; once a thread writes, this does not wait for it."""
        if not self._begun:  # at the end of Python the thread may be gone, and hold the lock
            return
        with self._changed:
            text, self._begun = self._begun, ""
            self._hand_over(text)

    def reconfigure(self, **options: object) -> None:
        """Changes nothing; for users' own modules that ask a standard stream for it."""

    def wait_for_no_reader(self) -> None:
        """From now on a thread writes."""
        with self._changed:
            self._backlog = self._backlog or Backlog()

    @property
    def is_behind(self) -> bool:
        """Whether the reader has not taken all of it yet."""
        return self._writing

    def settle(self) -> bool:
        """Wait until the reader has taken all, `LAST_WORDS_S` in all at most; whether it has."""
        self.flush()
        began = monotonic()
        with self._changed:
            settled = self._changed.wait_for(lambda: not self._writing, self._reader_wait_s)
        self._reader_wait_s = max(0.0, self._reader_wait_s - (monotonic() - began))
        return settled

    def end(self) -> None:
        """As `settle`; what other threads write later waits for the reader again, or is dropped
        where it takes nothing: while Python ends, no thread would write it."""
        with self._changed:  # throughout: a line of another thread would start the writer again
            if not self.settle():
                self.lost = self.lost or TimeoutError("nobody reads it")
            self._backlog = None if self.lost is None else self._backlog

    def _hand_over(self, text: str) -> None:
        if not text or self.lost:
            return
        if self._backlog is None:
            self._write_out(text)
            return
        self._backlog.add(text)
        if not self._writing:
            # a daemon: the end of the command does not wait for a reader that takes nothing
            thread = Thread(target=self._write_backlog, name="output", daemon=True)
            with suppress(RuntimeError):  # none can be started now: perhaps at the next line
                self._writing = True
                thread.start()
                return
            self._writing = False

    def _write_backlog(self) -> None:
        while True:
            with self._changed:
                assert self._backlog, "a thread writes what waits"
                text = "" if self.lost else self._backlog.take()
                self._writing = bool(text)
                self._changed.notify_all()
            if not text:  # the next line starts another thread
                return
            self._write_out(text)

    def _write_out(self, text: str) -> None:
        data = memoryview(text.encode(self._encoding, self.errors))
        try:
            while data:
                try:
                    data = data[os.write(self._descriptor, data) :]
                except BlockingIOError:  # another program has made the descriptor non-blocking
                    room = select.poll()
                    room.register(self._descriptor, select.POLLOUT)
                    room.poll()
        except OSError as error:
            self.lost = error


class _Bytes(io.RawIOBase):
    """Bytes for a text stream, in the order of its text; what can't be decoded is replaced."""

    def __init__(self, stream: OutputStream) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        taken = memoryview(data).tobytes()
        self._stream.write(taken.decode(self._stream.encoding, "replace"))
        return len(taken)

    def flush(self) -> None:
        self._stream.flush()


def tolerate_streams() -> None:
    """Make stdout and stderr streams that never fail. Where the shell has closed one (`>&-`), it
    leads to /dev/null: its number would be the next file's, and what any library prints, here or
    in a worker, would go into that."""
    for number, flags in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):  # a root folder without /dev
                os.set_inheritable(os.open(os.devnull, flags), True)  # the least number is free
    sys.stdout, sys.stderr = _replaced(sys.stdout, 1), _replaced(sys.stderr, 2)


def _replaced(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:  # it was closed
        return OutputStream(number, "utf-8")  # type: ignore[return-value]
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # a test's, or replaced already
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # it has none, or is closed
        return stream
    with suppress(OSError):
        stream.flush()
    return OutputStream(descriptor, stream.encoding)  # type: ignore[return-value]


def wait_for_no_reader() -> None:
    """From now on the run goes on whatever the readers of stdout and stderr do."""
    for stream in _output_streams():
        stream.wait_for_no_reader()


def settle_output() -> None:
    """Give readers a moment to take all: what is written next, to either stream, comes after it."""
    for stream in _output_streams():
        stream.settle()


def is_behind(stream: object) -> bool:
    """Whether a reader has not yet taken what was written to `stream`."""
    return isinstance(stream, OutputStream) and stream.is_behind


def lost_output(stream: object) -> str:
    """Why nothing is written to `stream` any more; empty while all is well."""
    lost = stream.lost if isinstance(stream, OutputStream) else None
    return "" if lost is None else f"the output can't be written: {lost.strerror or lost}"


def end_output() -> None:
    """Give readers a moment for the last words; say on stderr that stdout could not be written,
    except where its reader wanted no more."""
    settle_output()
    out = sys.stdout
    if isinstance(out, OutputStream) and not isinstance(out.lost, BrokenPipeError | None):
        print(lost_output(out), file=sys.stderr)
    for stream in _output_streams():
        stream.end()


def _output_streams() -> list[OutputStream]:
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, OutputStream)]
