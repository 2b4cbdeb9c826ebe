"""Files that say what metrics.jsonl says in another form: a table, event files of TensorBoard.

    metrics.jsonl ── each new line ──▶ mirror
                  ── all of it ──────▶ mirror    where a run begins or goes back, or after a refusal

So none has an epoch twice, nor one that a run has taken back, and nothing waits in memory for a
disk that refuses: what a mirror lacks is in metrics.jsonl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pipeline.storage.atomic import reason
from pipeline.storage.line_log import json_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.storage.folder import Folder

    Confusion = Sequence[Sequence[int]]


class Form(Protocol):
    """How a mirror is written. Both methods raise OSError where the disk refuses."""

    @property
    def name(self) -> str:
        """Of what it writes, in the run's folder."""

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """All lines, in place of what was there."""

    def append(self, line: dict[str, Any], confusion: Confusion) -> bool:
        """One more; False where all of them have to be written."""


class Mirror:
    """One of them, in the folder of a run.

    Args:
        source: the name of metrics.jsonl.
        lags: whether the disk refuses that file; then a mirror, which is not to be ahead, waits.
        tell: takes a line for the person who watches, where the disk refuses.
    """

    def __init__(
        self,
        folder: Folder,
        source: str,
        form: Form,
        lags: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self._folder, self._source, self._form = folder, source, form
        self._lags, self._tell = lags, tell
        self._whole = False
        """Whether it says all that its source says."""
        self._refusal = ""

    def add(self, line: dict[str, Any], confusion: Confusion) -> None:
        """The newest line of its source."""
        self._attempt(lambda: self._whole and self._form.append(line, confusion))

    def complete(self, *, anew: bool = False) -> None:
        """Write all of it, unless it is whole; `anew`: the source has lost lines."""
        self._attempt(lambda: self._whole and not anew)

    def _attempt(self, is_done: Callable[[], bool]) -> None:
        if self._lags():
            self._whole = False
            return
        try:
            if not is_done():
                if lines := json_lines(self._folder, self._source):
                    self._form.write(lines)
                self._whole = bool(lines)
        except OSError as error:
            self._whole, before = False, self._refusal
            path = self._folder.path / self._form.name
            self._refusal = f"{path}: can't be written: {reason(error, self._folder)}"
            if self._refusal != before:
                self._tell(f"{self._refusal}; it is written from {self._source} when that works")
        else:
            self._refusal = ""
