"""The page as HTML: `page.html` and `page.css`, filled by jinja2, which escapes every text."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from launch.report.pieces import Fact, Section


def html(
    heading: str,
    about: Sequence[str],
    facts: Iterable[Fact],
    sections: Sequence[Section],
    *,
    several: bool,
    program: str,
) -> str:
    """The whole page.

    Args:
        about: sentences under the heading; several: whether cards say which run they are of;
            program: what wrote it, and its version.
    """
    folder = files("launch.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    return template.render(
        heading=heading,
        about=about,
        facts=list(facts),
        sections=sections,
        several=several,
        program=program,
        css=(folder / "page.css").read_text(encoding="utf-8"),
    )
