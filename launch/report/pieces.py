"""What a page is put together from. Values only: `page.py` writes them as HTML, and escapes every
text; only what was drawn here, `Figure.drawn`, is taken as it is.

Of each piece the template knows by `kind` how to write it, and by `wide` whether it has a row of
its own.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a legend. `color`: as `drawing.css` gives it; `mark`: how it is drawn."""

    color: str
    label: str
    mark: str = "line"
    """Or `dashed`, or `box`."""


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph of plain text."""

    kind: ClassVar[str] = "words"
    wide: ClassVar[bool] = False
    text: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing. `said`: what it shows, for who doesn't see it."""

    kind: ClassVar[str] = "figure"
    title: str
    drawn: str
    """An `<svg>` element."""
    said: str
    keys: tuple[Key, ...] = ()
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """`words`: so many columns, from the left, hold words; the others numbers."""

    kind: ClassVar[str] = "table"
    wide: ClassVar[bool] = False
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    folded: str = ""
    """What to click on to see it; empty: it is seen."""


@dataclass(frozen=True, slots=True)
class Image:
    """A small picture, a PNG file. `lines`: what stands below it."""

    png: bytes
    said: str
    lines: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """It as the address of an `<img>`."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


@dataclass(frozen=True, slots=True)
class Gallery:
    """Small pictures in rows. `width`: of each, in CSS pixels; `smooth`: not as they are, pixel by
    pixel."""

    kind: ClassVar[str] = "gallery"
    wide: ClassVar[bool] = True
    title: str
    images: tuple[Image, ...]
    width: int
    smooth: bool = False
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """Of a `Matrix`. `share`: how strongly it is coloured, from 0 to 1; `right`: as what is
    right."""

    text: str
    share: float
    right: bool


@dataclass(frozen=True, slots=True)
class Matrix:
    """A table whose cells are coloured. `corner`: what rows and columns are."""

    kind: ClassVar[str] = "matrix"
    wide: ClassVar[bool] = False
    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True, slots=True)
class Code:
    """A text as it stands, to be unfolded."""

    kind: ClassVar[str] = "code"
    wide: ClassVar[bool] = False
    folded: str
    text: str


TEXT = (Words, Table, Code)
Piece: TypeAlias = "Words | Figure | Table | Gallery | Matrix | Code"


@dataclass(frozen=True, slots=True)
class Card:
    """What a section says of one run, or, where `run` is empty, of all of them."""

    run: str
    pieces: tuple[Piece, ...]

    @property
    def groups(self) -> list[list[Piece]]:
        """The pieces in order, those of text together: they stand beside a figure where there is
        room."""
        found: list[list[Piece]] = []
        for piece in self.pieces:
            if found and isinstance(piece, TEXT) and isinstance(found[-1][-1], TEXT):
                found[-1].append(piece)
            else:
                found.append([piece])
        return found


@dataclass(frozen=True, slots=True)
class Section:
    """`lead`: what one sees there; `look_for`: and what to look for."""

    name: str
    """In the address of a place on the page."""
    title: str
    lead: str
    look_for: str
    cards: Sequence[Card]
    one_column: bool = False
    """Whether its cards lie below each other, as wide as the page."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A number on top of the page."""

    value: str
    what: str
