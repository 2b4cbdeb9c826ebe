"""benchmarks/PAPER.md: the paper's tables beside what was measured here, from the records alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from launch.display.format import NOTHING, markdown
from launch.paper.configs import CONFIGS, count_parameters, epochs_text
from launch.paper.figures import FIGURES, draw_figures
from launch.paper.results import best_record, read_records
from launch.paper.table import all_cells, entries_of
from pipeline.storage.atomic import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from launch.paper.results import Record
    from launch.paper.table import Cell, Table

RESULTS, REPORT = "results/paper.json", "PAPER.md"
_INTRODUCTION = """\
# The paper's tables, and what this trainer gives

Written by `pipeline-reproduce --report` from [`results/paper.json`](results/paper.json); runs are
added by `pipeline-reproduce TABLE[/ROW[/LOSS]]`. The paper: Nøkland & Eidnes, "Training Neural
Networks with Local Error Signals", ICML 2019. Errors are test errors in percent after the last
epoch, one run each, as in the paper. Parameters are those of layers and output, with bias and
batch norm, without heads; they round to the paper's, but for the MLP of CIFAR-100 (27.5M, where the
paper prints 27M). Images/s is the median over a run's epochs. A commit with a + had uncommitted
changes.
"""
_COLUMNS = (
    "row", "loss", "paper, %", "ours, %", "difference", "parameters (paper)", "parameters (ours)",
    "epochs", "images/s", "machine", "commit", "config",
)  # fmt: skip
_OTHERS = ("entry", "changed", "error, %", "epochs", "images/s", "machine", "commit")
_ALIGNED_LEFT = ("row", "loss", "machine", "commit", "config", "entry", "changed")


def write_report(
    tables: Sequence[Table], folder: Path, say: Callable[[str], None], figures: set[str] | None
) -> Path:
    """Write PAPER.md and the learning curves below `folder`, from its results/paper.json.

    Where others may do so at the same time: only within `results.alone_in`.

    Args:
        say: takes a line that says so where no pictures can be drawn.
        figures: the only ones to draw again; None: all.

    Raises:
        ConfigError: where the file of results is damaged.
    """
    records = read_records(folder / RESULTS)
    draw_figures(tables, records, folder / FIGURES, say, figures)
    path = folder / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, report_text(tables, records, folder).encode())
    return path


def report_text(tables: Sequence[Table], records: Sequence[Record], folder: Path) -> str:
    """The report as Markdown; the pictures that are there are shown under their tables."""
    shown: set[str] = set()
    parts = [_INTRODUCTION]
    for table in tables:
        parts.append(f"## Table {table.number}. {table.title}\n")
        rows = [_row(cell, records, folder) for cell in table.cells]
        parts.append(markdown(_COLUMNS, rows, _ALIGNED_LEFT))
        parts += _pictures(table, folder, shown)
    best = [best_record(entry, records) for entry in entries_of(all_cells(tables))]
    in_tables = {record.identity for record in best if record}
    others = [_other_row(record) for record in records if record.identity not in in_tables]
    if others:
        parts += ["## Runs with other settings, or shorter than one above\n"]
        parts += [markdown(_OTHERS, others, _ALIGNED_LEFT)]
    return "\n".join(parts)


def difference(ours: float, paper: str) -> str:
    """Ours minus the paper's, to the paper's digits and at least two: `+0.06`."""
    places = max(2, len(paper.partition(".")[2]))
    return f"{ours - float(paper):+.{places}f}"


def _row(cell: Cell, records: Sequence[Record], folder: Path) -> tuple[str, ...]:
    config = f"{CONFIGS}/{cell.entry.key}.yaml"
    link = f"[{cell.entry.key}]({os.path.relpath(config, folder)})"
    ours = f"{count_parameters(cell.entry):,}"
    head = (cell.label, cell.loss, cell.error)
    record = best_record(cell.entry, records)
    if record is None:
        blank = ("not run", NOTHING, cell.parameters, ours, str(cell.entry.epochs))
        return (*head, *blank, NOTHING, NOTHING, NOTHING, link)
    # seed and precision, where they are not the entry's
    other = [f"{key.removeprefix('runtime.')} {ours}" for key, (_, ours) in record.changes.items()]
    error = f"{record.error_pct:.2f}" + (f" ({', '.join(other)})" if other else "")
    gap = difference(record.error_pct, cell.error)
    epochs = epochs_text(record.epochs, cell.entry.epochs)
    return (*head, error, gap, cell.parameters, ours, epochs, *_where(record), link)


def _other_row(record: Record) -> tuple[str, ...]:
    changed = ", ".join(f"{key}: {ours}" for key, (_, ours) in sorted(record.changes.items()))
    error = f"{record.error_pct:.2f}"
    return (record.entry, changed or NOTHING, error, str(record.epochs), *_where(record))


def _where(record: Record) -> tuple[str, str, str]:
    """Images/s, machine, commit."""
    speed = NOTHING if record.images_per_s is None else f"{record.images_per_s:.0f}"
    if not record.starts:
        return speed, "not recorded", "not recorded"
    commits = dict.fromkeys(_commit(start) for start in record.starts)
    return speed, _machine(record), ", ".join(commits)


def _machine(record: Record) -> str:
    start = record.starts[-1]
    alone = record.single or record.stages == 1
    workers = "1 process" if alone else f"{record.stages} processes"
    if record.devices == ["cpu"]:
        threads = record.threads_per_stage
        of_each = "" if threads == 1 else f" of {threads} threads"
        return f"{start['processor']}, {start['cores']} cores; {workers}{of_each}"
    names = ", ".join(dict.fromkeys(start.get("gpus", ()))) or "GPU"
    return f"{len(record.devices)} × {names}; {workers}"


def _commit(start: dict[str, Any]) -> str:
    """The version where there is no commit; with a + where there were uncommitted changes."""
    commit = start["commit"] or start["versions"].get("local-loss-pipeline") or "unknown"
    return f"{commit}+" if start["uncommitted_changes"] else str(commit)


def _pictures(table: Table, folder: Path, shown: set[str]) -> list[str]:
    """Each picture once, under the first table that it belongs to."""
    names = dict.fromkeys(cell.entry.figure for cell in table.cells)
    fresh = [name for name in names if name not in shown and (folder / _file(name)).exists()]
    shown.update(fresh)
    return [f"![Learning curves of {name}]({_file(name)})\n" for name in fresh]


def _file(figure: str) -> str:
    return f"{FIGURES}/{figure}.svg"
