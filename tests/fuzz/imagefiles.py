"""Image files with damage, and the rules that hold whatever is in them.

A file is read, or refused by an error of one line that names it; nothing else comes out of the
reader, no file takes more memory or time than the largest image that is allowed.
"""

from __future__ import annotations

import io
import struct
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.data.image_reading import DeepPixelsError, ImageError, ImageReader, View

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMATS = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "jpeg": ("L", "RGB", "CMYK"),
    "bmp": ("1", "L", "P", "RGB"),
    "ppm": ("1", "L", "RGB", "I;16"),
    "tiff": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "webp": ("RGB", "RGBA"),
    "gif": ("L", "P"),
}
COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_ccitt")
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LONGEST_COMPLAINT = 600
_SIZES = (0, 1, 2, 3, 255, 256, 0x7FFF, 0xFFFF, 30_000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_READERS = (
    View(8, 256, 3, None),
    View(8, 8, 1, 65535),
    View(8, 32, 3, 1.0),
    View(8, 256, 1, 4095),
)


def sources(seed: int = 0) -> list[bytes]:
    """A small sound file for each format, mode and way of compression."""
    found = []
    for kind, modes in FORMATS.items():
        for mode in modes:
            ways = COMPRESSIONS if kind == "tiff" else ("",)
            for way in ways:
                extra = {"compression": way} if way else {}
                data = io.BytesIO()
                try:
                    _picture(mode, seed).save(data, kind, **extra)
                except (OSError, RuntimeError, ValueError):
                    continue  # a way that this mode has not
                found.append(data.getvalue())
    return found


def _picture(mode: str, seed: int) -> Image.Image:
    draws = np.random.default_rng(seed)
    if mode == "F":
        return Image.fromarray(draws.random((13, 17), dtype=np.float32))
    if mode in ("I", "I;16"):
        kind = np.int32 if mode == "I" else np.uint16
        return Image.fromarray(draws.integers(0, 4096, (13, 17)).astype(kind))
    return Image.fromarray(draws.integers(0, 256, (13, 17, 3), dtype=np.uint8)).convert(mode)


def damaged(data: bytes, draws: Random) -> bytes:
    """Another file: bytes flipped, numbers made extreme, parts cut out, doubled or swapped."""
    changed = bytearray(data)
    for _ in range(draws.choice((1, 1, 1, 2, 5, 20))):
        if changed:
            draws.choice((_flip, _flip, _resize, _resize, _cut, _cut_out, _double, _zero))(
                changed, draws
            )
    return bytes(changed)


def _place(changed: bytearray, draws: Random) -> int:
    """Headers are where most goes wrong."""
    reach = len(changed) if draws.random() < 0.5 else min(len(changed), 80)
    return draws.randrange(reach)


def _flip(changed: bytearray, draws: Random) -> None:
    changed[_place(changed, draws)] ^= 1 << draws.randrange(8)


def _resize(changed: bytearray, draws: Random) -> None:
    place, size = _place(changed, draws), draws.choice(_SIZES)
    form = draws.choice((">I", "<I", ">H", "<H"))
    number = struct.pack(form, size & (0xFFFF if form[1] == "H" else 0xFFFF_FFFF))
    changed[place : place + len(number)] = number


def _cut(changed: bytearray, draws: Random) -> None:
    del changed[draws.randrange(len(changed)) :]


def _cut_out(changed: bytearray, draws: Random) -> None:
    place = _place(changed, draws)
    del changed[place : place + draws.randrange(1, 64)]


def _double(changed: bytearray, draws: Random) -> None:
    place = _place(changed, draws)
    part = changed[place : place + draws.randrange(1, 64)]
    changed[place:place] = part * draws.choice((1, 1, 50))


def _zero(changed: bytearray, draws: Random) -> None:
    place = _place(changed, draws)
    end = min(len(changed), place + draws.randrange(1, 32))
    changed[place:end] = bytes(end - place)


def files(seed: int, number: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of `number` damaged files."""
    sound = sources()
    for index in range(number):
        draws = Random(f"{seed} {index}")
        data = damaged(draws.choice(sound), draws)
        if draws.random() < 0.05:
            data += damaged(draws.choice(sound), draws)
        yield f"{index}{draws.choice(SUFFIXES)}", data


def readers() -> list[ImageReader]:
    """For colour and grey, with and without a value of white."""
    return [ImageReader(wanted) for wanted in _READERS]


def is_read_or_refused(path: Path, reader: ImageReader) -> bool:
    """Whether it was read. Raises whatever breaks a rule."""
    try:
        reader.look(str(path), whole=True)
        image = reader.decode(str(path))
    except (ImageError, DeepPixelsError) as error:
        text = str(error)
        assert text.startswith(f"{path}: "), text
        assert "\n" not in text, text
        assert len(text) <= LONGEST_COMPLAINT + len(str(path)), text
        text.encode()
        return False
    assert image.mode in ("L", "RGB"), image.mode
    return True
