"""Pictures by matplotlib, which is optional: the one file that imports it.

A picture for a web page has colours by name (`ink`, `along`), which the page gives for a light and
for a dark screen, and text that stays text, in the page's font.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from matplotlib.axes import Axes as Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Figure
    from numpy.typing import NDArray

HOW_TO_GET_IT = "matplotlib (pip install 'local-loss-pipeline[figures]')"
INKS = (
    "text", "muted", "grid",
    "run-0", "run-1", "run-2", "run-3", "run-4", "run-5", "run-6", "run-7",
    "run-8", "run-9",
    "read", "compute", "learn", "copy", "send", "marker", "input", "room",
)  # fmt: skip
"""Colours that a page has as CSS variables."""

_WIDE = 12.0
"""From the highest to the lowest error on an axis, where few marks are enough."""
_REPRODUCIBLE: Any = {"svg.hashsalt": "local-loss-pipeline", "svg.fonttype": "none"}
"""The same numbers give the same bytes; text stays text."""
_FOR_A_PAGE: Any = {
    **_REPRODUCIBLE,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.0,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.linewidth": 0.5,
}
_CODED = re.compile(r"#000([12])([0-9a-f]{2})\b")
_BEFORE_SVG = re.compile(r"\A.*?(?=<svg)|<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
_SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"')
_GROUP_ID = re.compile(r' id="[a-zA-Z.]+[a-zA-Z0-9.]*_[0-9]+"')
_FONT = re.compile(r" ?font(?:-family)?: [^;\"]*'DejaVu Sans'[^;\"]*;?")
_TAG = re.compile(r"<[^>]*>")
_DECIMALS = re.compile(r"(\d\.\d\d)\d+")


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        return False
    return True


def ink(name: str) -> str:
    """A colour of `INKS`, as matplotlib takes it."""
    return f"#0001{INKS.index(name):02x}"


def along(share: float) -> str:
    """A colour of a row that goes from the page's `first` (0) to its `last` (1), as matplotlib
    takes it."""
    return f"#0002{round(100 * share):02x}"


def css(color: str) -> str:
    """What a page calls a colour that `ink` or `along` gave."""
    return _CODED.sub(_named, color)


def _named(coded: re.Match[str]) -> str:
    number = int(coded[2], 16)
    if coded[1] == "1":
        return f"var(--{INKS[number]})"
    return f"color-mix(in oklab, var(--last) {number}%, var(--first))"


class Sheet:
    """A picture for a web page, of `inches` width and height; the caller draws on its `axes`."""

    def __init__(self, inches: tuple[float, float]) -> None:
        from matplotlib import rc_context

        colors: Any = {
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color"), ink("muted")),
            **dict.fromkeys(("ytick.color", "axes.titlecolor"), ink("muted")),
            **dict.fromkeys(("axes.edgecolor", "grid.color"), ink("grid")),
        }
        self._settings = {**_FOR_A_PAGE, **colors}
        with rc_context(self._settings):
            self.figure = new_figure(inches)
            self.figure.patch.set_visible(False)
            self.axes: Axes = self.figure.subplots()
        self.axes.patch.set_visible(False)

    def svg(self, salt: str) -> str:
        """An `<svg>` element, as wide as the page lets it be. `salt`: other than that of all other
        pictures on the page, whose parts have ids."""
        from matplotlib import rc_context

        drawn = StringIO()
        with rc_context({**self._settings, "svg.hashsalt": salt}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # the page's font may have it
            self.figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
        text = _BEFORE_SVG.sub("", drawn.getvalue())
        for pattern, by in ((_SIZE, r"\1\2"), (_GROUP_ID, ""), (_FONT, "")):
            text = pattern.sub(by, text)
        return css(_TAG.sub(lambda tag: _DECIMALS.sub(r"\1", tag[0]), text))


def new_figure(inches: tuple[float, float]) -> Figure:
    """An empty picture, of width and height."""
    from matplotlib.figure import Figure

    return Figure(figsize=inches, layout="constrained")


def write_svg(figure: Figure, path: Path) -> None:
    """Write a picture as an SVG file, byte for byte the same for the same numbers."""
    from matplotlib import rc_context

    with rc_context(_REPRODUCIBLE):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def errors_axis(axes: Axes) -> None:
    """A vertical, logarithmic axis for errors in percent, with plain numbers."""
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis, *axes.get_ylim(), "{x:g}")


def speeds_axis(axes: Axes) -> None:
    """A horizontal, logarithmic axis for images/s, with plain numbers."""
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis, *axes.get_xlim(), "{x:,.0f}")


def _plain_numbers(axis: Axis, low: float, high: float, form: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    # with a mark or two a curve is easily read as if its scale were linear
    marks = (1.0, 2.0, 5.0) if high > _WIDE * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    axis.set_major_locator(LogLocator(subs=marks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter(form))


def whole_numbers(axes: Axes) -> None:
    """A horizontal axis of whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """(height, width, 3 or 4) as a PNG file; of few colours by a palette, which takes a fourth of
    the bytes, and matplotlib writes none."""
    import numpy as np
    from matplotlib.image import imsave

    colors, places = np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0, return_inverse=True)
    if len(colors) <= 1 << 8:
        return _by_palette(places.reshape(pixels.shape[:2]).astype(np.uint8), colors)
    file = BytesIO()
    imsave(file, pixels, format="png")
    return file.getvalue()


def _by_palette(places: NDArray[np.uint8], colors: NDArray[np.uint8]) -> bytes:
    """A PNG file (RFC 2083) of the colour (3 or 4) at each of the places (height, width)."""
    import numpy as np

    height, width = places.shape
    lines = np.insert(places, 0, 0, axis=1)  # each begins with its filter: none
    chunks = {
        b"IHDR": struct.pack(">2I5B", width, height, 8, 3, 0, 0, 0),
        b"PLTE": colors[:, :3].tobytes(),
        b"tRNS": colors[:, 3:].tobytes(),
        b"IDAT": zlib.compress(lines.tobytes(), 9),
        b"IEND": b"",
    }
    if not chunks[b"tRNS"]:
        del chunks[b"tRNS"]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
