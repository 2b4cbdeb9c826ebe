"""Image files in, pixels of 8 bits out, cut to one size; or an error that names the file.

The only file that imports Pillow. A file may hold anything: it is opened only where it is a regular
one, read only as a format of images, and decoded only up to a size.

Pixels of 8 bits are as torchvision's loader has them: the first frame, transparency dropped,
EXIF orientation not applied. Deeper grey ones become round(255 * pixel / white); which value is
white, a file doesn't say, so it must be given. Of 16-bit colour Pillow gives the upper 8 bits.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import SET, ConfigError, RunError
from pipeline.system.plain_file import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.random import Generator
    from numpy.typing import NDArray

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is looked for in a file, whatever its name: others of Pillow's start programs (EPS)."""
MOST_PIXELS = 178_956_970
"""Of an image, and of what it is scaled to: Pillow's own bound, half a gigabyte of RGB."""
_LARGE_PIXELS = 1 << 24
"""Above, images are decoded one at a time: threads must not take a gigabyte each."""
_DEEP_MODES = ("I", "F")
_SAMPLE_BYTES = 4096
_END_MARKS = {"PNG": b"\0\0\0\0IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
_REFUSALS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, Image.DecompressionBombError,
    LookupError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError, ValueError,
    struct.error, zlib.error,
)  # fmt: skip
"""What Pillow raises for damaged files: each was seen, none is promised."""
_CROP_AREA, _CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_CROP_TRIES = 10  # as torchvision's RandomResizedCrop


class ImageError(RunError):
    """A file that can't be decoded as an image: `path`, `why`."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: can't be decoded as an image: {why}")
        self.path, self.why = path, why


class DeepPixelsError(RunError):
    """An image of more than 8 bits, and no `data.white` that says which value is white."""

    def __init__(self, path: str, mode: str) -> None:
        self.mode = mode
        self.said = (
            f"{path}: pixels of mode {mode} have more than 8 bits: give the value that is white (",
            SET,
            " data.white=65535 for all of 16 bits, 4095 for 12, 1.0 for floats from 0 to 1)",
        )
        """As the parts of a ConfigError."""
        super().__init__(str(ConfigError(*self.said)))


@dataclass(frozen=True, slots=True)
class FileSample:
    """Of a file: its size, and a digest of its beginning, middle and end."""

    nbytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class View:
    """How images are read, and what is shown of them: `size` × `size` pixels.

    `shorter`: pixels of the shorter side when the middle is cut out. `channels`: 3 for RGB, 1 for
    grey. `white`: the value that is white in images deeper than 8 bits. `random`: whether training
    looks at random parts instead of the middle.
    """

    size: int
    shorter: int
    channels: int = 3
    white: float | None = None
    random: bool = True


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Of an image file: its size in pixels, and whether pixels are grey, or have more than 8
    bits."""

    width: int
    height: int
    is_grey: bool
    is_deep: bool


def header_of(path: str) -> ImageHeader:
    """What an image file says of itself; nothing is decoded.

    Raises:
        ImageError: where it is no image that can be read.
    """
    with _naming(path), open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
        is_grey = Image.getmodebase(image.mode) == "L"
        return ImageHeader(image.width, image.height, is_grey, _is_deep(image))


class ImageReader:
    """Looks at image files, and decodes them, from any number of threads."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._one_at_a_time = Lock()
        # what is only odd in a file is no news; warnings would be shown among a run's own lines
        for kind in (UserWarning, Image.DecompressionBombWarning):
            warnings.filterwarnings("ignore", category=kind, module=r"PIL\.")

    def look(self, path: str, *, whole: bool = False) -> FileSample:
        """Check what can be known cheaply: the header, the size, that the end is there.

        Files without a mark at their end are decoded, and all are if `whole`.

        Raises:
            ImageError: where it can't be decoded.
            DeepPixelsError: where the value of white is missing.
        """
        with _naming(path), open_regular(path) as file:
            sample = _sample(file)
            with Image.open(file, formats=FORMATS) as image:
                self._check(image, path)
                known_whole = _ends_as_it_should(file, image.format or "", sample.nbytes)
                if whole or not known_whole or _is_deep(image):
                    self._decoded(image, path)
        return sample

    def decode(self, path: str) -> Image.Image:
        """An image of mode RGB or L.

        Raises:
            ImageError: where it can't be decoded.
            DeepPixelsError: where the value of white is missing.
        """
        with (
            _naming(path),
            open_regular(path) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            self._check(image, path)
            return self._decoded(image, path)

    def _check(self, image: Image.Image, path: str) -> None:
        wide, high = image.size
        scaled = wide * high * max(1.0, self.view.shorter / max(1, min(image.size))) ** 2
        if scaled > MOST_PIXELS:
            raise ImageError(
                path,
                f"{wide} × {high} pixels, scaled to a shorter side of {self.view.shorter}, are "
                f"more than {MOST_PIXELS:,}",
            )
        raw = _raw_mode(image)
        if _is_deep(image) and self.view.white is None:
            raise DeepPixelsError(path, image.mode)
        if not _is_deep(image) and ";16" in raw and self.view.white not in (None, 65535):
            raise ImageError(
                path,
                f"pixels of mode {raw} are read as the upper 8 of 16 bits, which is no scale from "
                f"0 to data.white {self.view.white:g}",
            )

    def _decoded(self, image: Image.Image, path: str) -> Image.Image:
        large = image.width * image.height > _LARGE_PIXELS
        with self._one_at_a_time if large else nullcontext():
            image.load()
            plain = self._of_8_bits(image, path) if _is_deep(image) else image
            return plain.convert("RGB" if self.view.channels == 3 else "L")

    def _of_8_bits(self, image: Image.Image, path: str) -> Image.Image:
        white = self.view.white
        assert white, "checked before"
        pixels = np.asarray(image).astype(np.float64)
        darkest, brightest = float(pixels.min()), float(pixels.max())
        # values that are cut off would be lost without a word; so would be those that are no
        # numbers, which compare with nothing
        if not (darkest >= 0 and brightest <= white * (1 + 1e-6)):
            raise ImageError(
                path,
                f"pixels of mode {image.mode} from {darkest:g} to {brightest:g} are not between 0 "
                f"and data.white {white:g}",
            )
        np.rint(np.multiply(pixels, 255 / white, out=pixels), out=pixels)
        return Image.fromarray(np.minimum(pixels, 255, out=pixels).astype(np.uint8))


@contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except _REFUSALS as error:
        raise ImageError(path, _why(error)) from error


def _why(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is of no format that is read ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MOST_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _sample(file: BinaryIO) -> FileSample:
    nbytes = file.seek(0, 2)
    if not nbytes:
        raise ValueError("it is empty")
    digest = blake2b(str(nbytes).encode(), digest_size=8)
    places = (0, nbytes // 2, nbytes - _SAMPLE_BYTES) if nbytes > 4 * _SAMPLE_BYTES else (0,)
    for place in places:
        file.seek(place)
        digest.update(file.read(_SAMPLE_BYTES if len(places) > 1 else nbytes))
    file.seek(0)
    return FileSample(nbytes, digest.hexdigest())


def _ends_as_it_should(file: BinaryIO, kind: str, nbytes: int) -> bool:
    """Whether the file says of itself that nothing is cut off; where it stands is kept."""
    here = file.tell()
    try:
        if kind == "WEBP":
            file.seek(4)
            return int.from_bytes(file.read(4), "little") + 8 <= nbytes
        mark = _END_MARKS.get(kind)
        if mark is None or nbytes < len(mark):
            return False
        file.seek(nbytes - len(mark))
        return file.read() == mark
    finally:
        file.seek(here)


def _is_deep(image: Image.Image) -> bool:
    return image.mode in _DEEP_MODES or image.mode.startswith("I;")


def _raw_mode(image: Image.Image) -> str:
    """How pixels lie in the file, as Pillow calls it; empty where it doesn't say."""
    tiles = getattr(image, "tile", None)
    given = tiles[0][3] if tiles else ""
    first = given[0] if isinstance(given, tuple) and given else given
    return first if isinstance(first, str) else ""


# --- what is shown of an image -----------------------------------------------------------


def cut_out(image: Image.Image, view: View, draws: Generator | None) -> NDArray[np.uint8]:
    """A random part of an image (Szegedy et al. 2015, "Going deeper with convolutions", section 6),
    or without `draws` its middle: (C, size, size)."""
    if draws is None:
        part = _middle(image, view)
    else:
        top, left, high, wide = crop_box(image.height, image.width, draws)
        part = image.crop((left, top, left + wide, top + high))
        part = part.resize((view.size, view.size), Image.Resampling.BILINEAR)
    pixels = np.atleast_3d(np.asarray(part))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.uint8)


def _middle(image: Image.Image, view: View) -> Image.Image:
    """The image scaled until its shorter side is `view.shorter`, then the middle of that."""
    size, shorter = view.size, view.shorter
    scale = shorter / min(image.size)
    wide, high = (max(shorter, int(side * scale)) for side in image.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def crop_box(height: int, width: int, draws: Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of a random part of an image.

    Area uniform in 8..100 % of the image's, aspect ratio log-uniform in 3/4..4/3; where ten
    draws give none that fits, the middle of the image, with the nearest allowed ratio.
    """
    least, most = _CROP_RATIO
    for _ in range(_CROP_TRIES):
        area = height * width * draws.uniform(*_CROP_AREA)
        ratio = math.exp(draws.uniform(math.log(least), math.log(most)))
        high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < high <= height and 0 < wide <= width:
            top, left = draws.integers(0, (height - high + 1, width - wide + 1))
            return int(top), int(left), high, wide
    high, wide = min(height, round(width / least)), min(width, round(height * most))
    return (height - high) // 2, (width - wide) // 2, high, wide
