"""metrics.csv: the numbers of metrics.jsonl as a table, for spreadsheets and data frames.

A row an epoch. What lies in a line below another key has both names, `test_loss`; what is of a
block or a stage begins with its number, `block0_loss`, `stage1_busy`. What is not known is empty.
"""

from __future__ import annotations

import csv
import os
from io import StringIO
from itertools import chain
from typing import TYPE_CHECKING, Any

from pipeline.storage.atomic import replace_in, write_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.run.mirrors import Confusion
    from pipeline.storage.folder import Folder

_LISTS = {"blocks": "block", "stages": "stage", "depths": "block"}
_PARTS = ("train", "test", "validation")
_WORDS = ("name", "device")
"""Of a block or stage: the same in every row, and no numbers."""


class Table:
    """The table in the folder of a run; `mirrors.py` says when it is written."""

    name = "metrics.csv"

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._columns: list[str] = []

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """All rows. Raises OSError where the disk refuses; then the file is as it was."""
        rows = [dict(cells(line)) for line in lines]
        self._columns = list(dict.fromkeys(chain.from_iterable(rows)))
        replace_in(self._folder, self.name, _text(self._columns, rows, header=True))

    def append(self, line: dict[str, Any], confusion: Confusion) -> bool:
        """One more row; False where it has another column, or the file is gone."""
        row = dict(cells(line))
        if not (row.keys() <= set(self._columns) and self._folder.has_file(self.name)):
            return False
        descriptor = self._folder.open_file(self.name, os.O_WRONLY | os.O_APPEND)
        try:
            write_all(descriptor, _text(self._columns, [row]))
        finally:
            os.close(descriptor)
        return True


def cells(line: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Column and value of each number of a line of metrics, and of its time."""
    for key, value in line.items():
        if key in _LISTS:
            one = _LISTS[key]
            for entry in value:
                start = f"{one}{entry[one]}"
                numbers = (name for name in entry if name not in (one, *_WORDS))
                yield from ((f"{start}_{name}", entry[name]) for name in numbers)
        elif key in _PARTS:
            yield from ((f"{key}_{column}", number) for column, number in cells(value or {}))
        elif key != "event":
            yield key, value


def _text(columns: Sequence[str], rows: Iterable[dict[str, Any]], *, header: bool = False) -> bytes:
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
