"""Standard streams that a run outlives: who reads them may go away, or can't show an arrow."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO


class Outlet(io.TextIOWrapper):
    """A stream that never fails: what a closed terminal, or a pipe whose reader has left, does not
    take is dropped.

    `lost` says why nothing is written any more; it is None while all is well.
    """

    lost: OSError | None = None

    def write(self, text: str) -> int:
        """As every stream."""
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """As every stream."""
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        # what is held back is written once more at the end of Python, whose exit status would
        # be another if that failed
        self.lost = self.lost or error
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


def tolerate_streams() -> None:
    """Make stdout and stderr outlets. Block names hold arrows: a stream that can't show one gets a
    question mark instead."""
    sys.stdout, sys.stderr = _outlet(sys.stdout), _outlet(sys.stderr)


def lost_output(stream: object) -> str:
    """Why nothing is written to `stream` any more; empty while all is well."""
    lost = stream.lost if isinstance(stream, Outlet) else None
    return "" if lost is None else f"the output can't be written: {lost.strerror or lost}"


def tell_lost_output() -> None:
    """Say on stderr that stdout could not be written; not where its reader wanted no more."""
    if isinstance(sys.stdout, Outlet):
        sys.stdout.flush()
        if not isinstance(sys.stdout.lost, BrokenPipeError | None):
            print(lost_output(sys.stdout), file=sys.stderr)


def _outlet(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, Outlet):
        return stream  # nobody's, or a test's
    with suppress(OSError):
        stream.flush()
    return Outlet(
        stream.buffer,
        stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
