"""The tables of a sweep: in its folder as Markdown, CSV and JSON, and on the screen.

table.md, table.csv    a row for each combination: mean ± standard deviation over its seeds
runs.csv               a row for each run
table.json             all of it
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from io import StringIO
from typing import TYPE_CHECKING, Any

from launch.display.format import NOTHING, markdown
from launch.grid.results import NUMBERS, in_words, rows_of
from launch.plan.dry_run import plain_table
from pipeline.storage.atomic import replace_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.table import Table

    from launch.grid.results import Outcome, Row, Spread
    from pipeline.storage.folder import Folder

TABLES = ("table.md", "table.csv", "runs.csv", "table.json")
_ERRORS = {"last_error_pct": ("last error, %", ".2f"), "best_error_pct": ("best error, %", ".2f")}
_LOSSES = {"last_loss": ("last loss", ".4f"), "best_loss": ("best loss", ".4f")}
_SPEEDS = {"images_per_s": ("images/s", ",.0f"), "seconds": ("training, s", ",.1f")}
_WORDS = """\
Mean ± standard deviation (of the sample) over the seeds. n: how many runs count, which are those
that are finished. Errors are of the runs' own tests: after the last epoch, and the lowest; images/s
is the median over a run's epochs; seconds of training are without tests.
"""


def write_tables(folder: Folder, about: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Write all files, each in place of an older one.

    Args:
        about: what the sweep is: its `name` and `command`, and whatever else is to be kept.

    Raises:
        OSError: where the disk refuses.
    """
    rows = rows_of(outcomes)
    keys = [key for key, _ in outcomes[0].run.settings]
    texts = (
        _page(about, keys, rows, outcomes),
        _rows_csv(keys, rows),
        _runs_csv(keys, outcomes),
        json.dumps(_tree(about, rows, outcomes), indent=1) + "\n",
    )
    for name, text in zip(TABLES, texts, strict=True):
        replace_in(folder, name, text.encode())


def screen_table(outcomes: Sequence[Outcome]) -> Table:
    """The table of a sweep's runs for a terminal."""
    rows = rows_of(outcomes)
    keys = [key for key, _ in outcomes[0].run.settings]
    shown = _shown(rows)
    table = plain_table(
        keys, ["n", *(heading.replace(", ", "\n") for heading, _ in shown.values())]
    )
    for row in rows:
        table.add_row(*_cells(row, shown))
    return table


def plain_lines(outcomes: Sequence[Outcome]) -> str:
    """For where there is no terminal: never wrapped."""
    rows = rows_of(outcomes)
    return _markdown([key for key, _ in outcomes[0].run.settings], rows)


def not_counted(outcomes: Iterable[Outcome]) -> list[str]:
    """A line for each run that has no result."""
    return [f"{one.run.name}: {in_words(one)}" for one in outcomes if one.result is None]


def _page(
    about: Mapping[str, Any], keys: Sequence[str], rows: Sequence[Row], outcomes: Sequence[Outcome]
) -> str:
    missing = "".join(f"- {line}\n" for line in not_counted(outcomes))
    return "\n".join(
        [
            f"# {about['name']}: {sum(row.n for row in rows)} of {len(outcomes)} runs\n",
            f"`{about['command']}`\n",
            _WORDS,
            _markdown(keys, rows),
            *([f"Without a result:\n\n{missing}"] if missing else []),
        ]
    )


def _markdown(keys: Sequence[str], rows: Sequence[Row]) -> str:
    shown = _shown(rows)
    columns = [*keys, "n", *(heading for heading, _ in shown.values())]
    return markdown(columns, [_cells(row, shown) for row in rows], keys)


def _shown(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Numbers to show, with heading and format: losses where some run predicts nothing."""
    with_error = sum(row.spreads["last_error_pct"].n for row in rows)
    lacks_error = with_error < sum(row.n for row in rows)
    return {
        **(_ERRORS if with_error or not lacks_error else {}),
        **(_LOSSES if lacks_error else {}),
        **_SPEEDS,
    }


def _cells(row: Row, shown: Mapping[str, tuple[str, str]]) -> list[str]:
    words = [word for _, word in row.settings]
    n = str(row.n) if row.is_whole else f"{row.n} of {row.of}"
    return [
        *words,
        n,
        *(_cell(row.spreads[name], form, row.n) for name, (_, form) in shown.items()),
    ]


def _cell(spread: Spread, form: str, n: int) -> str:
    if spread.mean is None:
        return NOTHING
    said = format(spread.mean, form)
    said += "" if spread.sd is None else f" ± {spread.sd:{form}}"
    return said if spread.n == n else f"{said} (n = {spread.n})"


def _rows_csv(keys: Sequence[str], rows: Sequence[Row]) -> str:
    numbers = [f"{name}{part}" for name in NUMBERS for part in ("", "_sd", "_n")]
    return _csv(
        [*keys, "n", "of", *numbers],
        (
            [*(word for _, word in row.settings), row.n, row.of,
             *(value for name in NUMBERS for value in row.spreads[name])]
            for row in rows
        ),
    )  # fmt: skip


def _runs_csv(keys: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    return _csv(
        [*keys, "seed", "folder", "status", "why", "epochs", *NUMBERS],
        (
            [*(word for _, word in run.settings), run.seed, run.name, status, why,
             *(getattr(result, name, None) for name in ("epochs", *NUMBERS))]
            for run, status, result, why in outcomes
        ),
    )  # fmt: skip


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _tree(
    about: Mapping[str, Any], rows: Sequence[Row], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    return {
        **about,
        "rows": [
            {
                "settings": dict(row.settings),
                "n": row.n,
                "of": row.of,
                **{name: row.spreads[name]._asdict() for name in NUMBERS},
            }
            for row in rows
        ],
        "runs": [
            {
                "settings": dict(run.settings),
                "seed": run.seed,
                "folder": run.name,
                "status": status,
                "why": why,
                "result": None if result is None else asdict(result),
            }
            for run, status, result, why in outcomes
        ],
    }
