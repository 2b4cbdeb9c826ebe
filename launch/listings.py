"""What there is to choose from: networks, data sets, losses, local rules, a table each.

All words come from where a thing is defined: presets, facts, docstrings and signatures.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config.sections import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.rules.rule import LocalRule


class Entry(NamedTuple):
    """A row of a table. `source`: a paper, or empty; `more`: of a rule, its options."""

    name: str
    about: str
    source: str = ""
    more: str = ""


def print_listing(what: str) -> None:
    """Print a table of `models`, `data`, `losses` or `rules`."""
    from rich.console import Console

    from launch.plan.dry_run import plain_table

    key, entries = LISTINGS[what]
    found = list(entries())
    headings = [key, "what it is", "source", "loss.options"]
    used = [at for at in range(len(headings)) if at < 2 or any(entry[at] for entry in found)]
    table = plain_table([headings[at] for at in used], ())
    for entry in found:
        table.add_row(*(entry[at] for at in used))
    Console().print(table, highlight=False, markup=False)


def models() -> Iterator[Entry]:
    """Every value of `model.name`."""
    from pipeline.config.model import MODEL_NAMES
    from pipeline.network.architectures import WIDE, described

    for name in (*MODEL_NAMES, WIDE):
        if name == "factory":
            yield Entry(name, _first_sentence(settings()["model.factory"].about))
        else:
            yield Entry(name, *described(name))


def data_sets() -> Iterator[Entry]:
    """Every value of `data.name`."""
    from pipeline.data.facts import about

    known = settings()
    for name in known["data.name"].choices:
        own = {"npz": "data.file", "factory": "data.factory"}.get(name)
        yield Entry(name, _first_sentence(known[own].about) if own else about(name))


def losses() -> Iterator[Entry]:
    """Every value of `loss.name`."""
    from pipeline.config.loss import described

    for name in settings()["loss.name"].choices:
        yield Entry(name, *described(name))


def rules() -> Iterator[Entry]:
    """Every shipped local rule, by the docstrings of its file and class."""
    import pipeline.rules

    for name in pipeline.rules.SHIPPED:
        rule: type[LocalRule] = getattr(pipeline.rules, name)
        about, source, *_ = f"{sys.modules[rule.__module__].__doc__}\n\n".split("\n\n")
        options = list(inspect.signature(rule).parameters.values())[1:]
        yield Entry(
            name,
            " ".join(about.split()),
            _work(source),
            ", ".join(f"{option.name}: {option.default}" for option in options),
        )


LISTINGS = {
    "models": ("model.name", models),
    "data": ("data.name", data_sets),
    "losses": ("loss.name", losses),
    "rules": ("loss.rule", rules),
}
"""By what is asked for: the key that takes the names, and the entries."""


def _first_sentence(text: str) -> str:
    return re.split(r"[.:;](?: |$)", text, maxsplit=1)[0]


def _work(text: str) -> str:
    """Authors, title and year, of a paragraph that begins with them."""
    line = " ".join(text.split())
    cited = re.match(r'[^"]*"[^"]*"(?: \([^)]*\))?', line)
    return cited[0] if cited else _first_sentence(line)
