"""`runtime.tensorboard`: the numbers of metrics.jsonl for TensorBoard; the only file that imports
its package, which is optional.

    tensorboard/events.out.tfevents.<seconds>.<host>.<process>.<number>.run

The x-axis is the epoch. What is written anew goes into a new file, and the old one is removed: who
reads a file goes on at the place where it was, and would not see that it has changed. The first
event of a file says that it begins at epoch 0, so readers forget what they had read before.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from io import BytesIO
from itertools import count
from socket import gethostname
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.run.table import cells
from pipeline.storage.atomic import replace_in, write_all
from pipeline.storage.checkpoint_writer import DATA
from pipeline.storage.line_log import json_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.run.mirrors import Confusion
    from pipeline.storage.folder import Folder

_START, _END = "events.out.tfevents.", ".run"
_SIDE = 256
"""Pixels of the picture of a confusion matrix, about, without its margins."""
_MOST_WRITTEN = 20
"""Classes up to which it says names and counts."""
_LETTER, _LONGEST = 7, 12
"""Pixels of a letter, about; letters of a name."""
_GROUPS = {"lr": "learning", "images_per_s": "speed", "seconds": "speed"}


def check_tensorboard() -> None:
    """Raises ConfigError where its package is missing."""
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "runtime.tensorboard true: needs the package tensorboard: "
            "pip install 'local-loss-pipeline[tensorboard]', or leave the key out"
        )


class EventFiles:
    """The event file in the folder of a run; `mirrors.py` says when it is written.

    Args:
        confusions: the name of confusion.jsonl.
    """

    name = "tensorboard"

    def __init__(self, folder: Folder, confusions: str) -> None:
        self._folder, self._confusions = folder, confusions
        self._numbers, self._file = count(), ""
        self._classes: list[str] = []

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """All events, in a new file. Raises OSError where the disk refuses; the old one stays."""
        tables = {
            line.get("epoch"): line.get("confusion", ())
            for line in json_lines(self._folder, self._confusions)
        }
        self._classes = _class_names(self._folder)
        at = f"{int(time.time())}.{gethostname()}.{os.getpid()}.{next(self._numbers)}"
        told = [(line, tables.get(line["epoch"], ())) for line in lines]
        data = b"".join(_events(line, table, self._classes) for line, table in told)
        with self._folder.child(self.name, make=True) as inside:
            self._file = f"{_START}{at}{_END}"
            replace_in(inside, self._file, _begin() + data)
            for name in inside.names():  # those of others stay
                if name.startswith(_START) and name.endswith(_END) and name != self._file:
                    inside.remove(name)

    def append(self, line: dict[str, Any], confusion: Confusion) -> bool:
        """Those of one more epoch; False where the file is gone."""
        with suppress(FileNotFoundError), self._folder.child(self.name) as inside:
            descriptor = inside.open_file(self._file, os.O_WRONLY | os.O_APPEND)
            try:
                write_all(descriptor, _events(line, confusion, self._classes))
            finally:
                os.close(descriptor)
            return True
        return False


def scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Tag and value of each number of a line of metrics: `test/loss`, `block_loss/00 conv 3→128`,
    `stage_busy/1`, `learning/lr`."""
    names = {entry["block"]: entry.get("name", "") for entry in line["blocks"]}
    for column, value in cells(line):
        start, _, key = column.partition("_")
        if value is None or column in ("epoch", "step", "time"):
            continue
        if column in _GROUPS:
            yield f"{_GROUPS[column]}/{column}", value
        elif start.startswith("block"):
            block = int(start.removeprefix("block"))
            yield f"block_{key}/{block:02d} {names[block]}".rstrip(), value
        elif start.startswith("stage"):
            yield f"stage_{key}/{start.removeprefix('stage')}", value
        elif key:
            yield f"{start}/{key}", value


def _class_names(run: Folder) -> list[str]:
    """Of the run's data, none where they have none."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        return [str(name) for name in json.loads(run.read(DATA))["classes"]]
    return []


def _begin() -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    now = time.time()
    begins = SessionLog(status=SessionLog.START)
    return _records(
        Event(wall_time=now, file_version="brain.Event:2"),
        Event(wall_time=now, step=0, session_log=begins),
    )


def _events(line: dict[str, Any], confusion: Confusion, classes: Sequence[str]) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line)]
    if confusion:
        values.append(Summary.Value(tag="confusion", image=_picture(confusion, classes)))
    told = line.get("time")  # not in lines of early versions
    wall_time = datetime.fromisoformat(told).timestamp() if told else time.time()
    return _records(Event(wall_time=wall_time, step=line["epoch"], summary=Summary(value=values)))


def _picture(confusion: Confusion, classes: Sequence[str]) -> Any:
    """Rows are classes, columns what they were taken for; the darker, the more of the row."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    n = len(confusion)
    shades = [round(255 * (1 - k / max(1, sum(row)))) for row in confusion for k in row]
    image = Image.frombytes("L", (n, n), bytes(shades))
    digits = len(str(max(max(row) for row in confusion)))
    cell = max(4 + _LETTER * digits if n <= _MOST_WRITTEN else 1, _SIDE // n)
    image = image.resize((n * cell, n * cell), Image.Resampling.NEAREST)
    if n <= _MOST_WRITTEN:
        image = _written(image, confusion, classes if len(classes) == n else [], cell)
    png = BytesIO()
    image.save(png, "PNG")
    width, height = image.size
    return Summary.Image(
        height=height, width=width, colorspace=1, encoded_image_string=png.getvalue()
    )


def _written(picture: Any, confusion: Confusion, classes: Sequence[str], cell: int) -> Any:
    """With counts in the cells, names to the left, and the numbers of classes above, in this order;
    in letters that Pillow's own font has."""
    from PIL import Image, ImageDraw

    names = [f"{k} {name[:_LONGEST]}" for k, name in enumerate(classes)]
    names = names or [str(k) for k in range(len(confusion))]
    names = [name.encode("ascii", "replace").decode() for name in names]
    left, top = 8 + _LETTER * max(map(len, names)), 3 * _LETTER
    image = Image.new("L", (left + picture.width, top + picture.height), 255)
    image.paste(picture, (left, top))
    draw = ImageDraw.Draw(image)
    middles = [cell * k + cell // 2 for k in range(len(confusion))]
    for k, (row, y) in enumerate(zip(confusion, middles, strict=True)):
        draw.text((left - 4, top + y), names[k], fill=0, anchor="rm")
        draw.text((left + y, top // 2), str(k), fill=0, anchor="mm")
        for number, x in zip(row, middles, strict=True):
            dark = 2 * number > sum(row)
            if number:
                at = left + x, top + y
                draw.text(at, str(number), fill=255 if dark else 0, anchor="mm")
    draw.rectangle((left, top, image.width - 1, image.height - 1), outline=128)
    return image


def _records(*events: Any) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    data = BytesIO()
    writer = RecordWriter(data)
    for event in events:
        writer.write(event.SerializeToString())
    return data.getvalue()
