"""The page of all keys says what is declared, and docs/config.md is that page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from support import REPOSITORY

from pipeline.config import reference
from pipeline.config.schema import Field, JsonValue, Section
from pipeline.config.sections import Config

if TYPE_CHECKING:
    import pytest

COMMAND = "python -m pipeline.config.reference > docs/config.md"


class Part(Section):
    """Of a section, or many by name."""

    lr: float = 1.0
    """How fast."""
    steps: int = 1
    """How far."""


class Keys(Section):
    """One key of each kind."""

    needed: int
    """It has | no default."""
    whole: int = Field(default=2, ge=1, le=2000)
    """A sentence of
    two lines."""
    real: float | None = Field(default=None, gt=0, lt=0.5)
    """It may be absent."""
    switch: bool = True
    """On or off."""
    text: str = "data"
    """Any."""
    like: str | None = Field(default=None, pattern="^a+$")
    """Of a form."""
    only: Literal["all"] = "all"
    """One."""
    choice: Annotated[int, Field(ge=1)] | Literal["all", "none"] = 1
    """One of several."""
    several: tuple[tuple[int, ...], ...] = ()
    """Lists in a list."""
    own: dict[str, JsonValue] = Field(default={})
    """A user's."""
    part: Part = Part()
    """A section below."""
    parts: dict[int, Part] = Field(default={})
    """Sections below."""


class Whole(Section):
    """Two sections."""

    first: Keys
    second: Keys = Keys(needed=1)


PAGE = """\
## first

One key of each kind.

| key | value | default | |
|---|---|---|---|
| `first.needed` | whole number | **needed** | It has &#124; no default. |
| `first.whole` | whole number from 1, up to 2,000 | `2` | A sentence of two lines. |
| `first.real` | number above 0, below 0.5 | – | It may be absent. |
| `first.switch` | `true` or `false` | `true` | On or off. |
| `first.text` | text | `data` | Any. |
| `first.like` | text as `^a+$` | – | Of a form. |
| `first.only` | `all` | `all` | One. |
| `first.choice` | whole number from 1, `all` or `none` | `1` | One of several. |
| `first.several` | [[whole number, …], …] | `[]` | Lists in a list. |
| `first.own` | {key: any value, …} | `{}` | A user's. |
| `first.part` | {`lr`, `steps`} | `{"lr": 1.0, "steps": 1}` | A section below. |
| `first.parts` | {key: {`lr`, `steps`}, …} | `{}` | Sections below. |

## second

One key of each kind. This section may be left out.
"""


def test_every_kind_of_key_has_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "Config", Whole)
    page = reference.reference()
    assert page[page.index("## first") :].startswith(PAGE)


def test_every_key_has_a_sentence_below_it() -> None:
    sections = {name: Config.model_fields[name].annotation for name in Config.model_fields}
    silent = [
        f"{section}.{key}"
        for section, kind in sections.items()
        for key, field in kind.model_fields.items()
        if not (field.description or "").endswith((".", ")"))
    ]
    assert silent == [], "write a sentence below each, it is what documents say of the key"


def test_the_document_is_current() -> None:
    document = (REPOSITORY / "docs/config.md").read_text(encoding="utf-8")
    assert document == reference.reference(), f"keys have changed: {COMMAND}"
