"""A terminal for a command that draws on it: what was written, and whether all is as before."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import termios
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LINES, _COLUMNS = 40, 120
_MODE = re.compile(rb"\x1b\[\?([0-9;]+)([hl])")
_ON_AT_FIRST = {7, 25}  # lines wrap, the cursor is shown: ECMA-48's and DEC's private modes
_NAMES = {25: "the cursor is hidden", 1049: "the alternate screen is shown"}


class Terminal:
    """What a person would sit at. `end`: the descriptor that a command gets as its own."""

    def __init__(self, master: int, end: int) -> None:
        self._master, self.end = master, end
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _COLUMNS, 0, 0))
        self._before = termios.tcgetattr(end)
        self._written, self._closed = bytearray(), False
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """All that was written to it."""
        return bytes(self._written).decode(errors="replace")

    def press(self, keys: str) -> None:
        """As a person would type them; `\\x03` is Ctrl-C."""
        os.write(self._master, keys.encode())

    def changes(self) -> list[str]:
        """In what it is not as it was: modes of its own, and of the kernel's line discipline."""
        modes = dict.fromkeys(_ON_AT_FIRST, True)
        for numbers, end in _MODE.findall(bytes(self._written)):
            modes.update((int(number), end == b"h") for number in numbers.split(b";"))
        found = [
            _NAMES.get(mode, f"private mode {mode} is {'on' if on else 'off'}")
            for mode, on in sorted(modes.items())
            if on != (mode in _ON_AT_FIRST)
        ]
        now = termios.tcgetattr(self.end)
        for bit, name in ((termios.ECHO, "echo"), (termios.ICANON, "canonical mode")):
            if (now[3] ^ self._before[3]) & bit:
                found.append(f"{name} is {'on' if now[3] & bit else 'off'}")
        return found or (["its settings are others"] if now != self._before else [])

    def close(self) -> None:
        self._closed = True
        self._thread.join()
        os.close(self._master)
        os.close(self.end)

    def _read(self) -> None:
        while not self._closed:
            if select.select([self._master], [], [], 0.05)[0]:
                self._written += os.read(self._master, 1 << 16)


@contextmanager
def terminal() -> Iterator[Terminal]:
    """One that closes in the end."""
    opened = Terminal(*os.openpty())
    try:
        yield opened
    finally:
        opened.close()
