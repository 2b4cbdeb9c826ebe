"""benchmarks/RESULTS.md, written anew from all kept results: python -m benchmarks.results

Each command has a section. There, results of one name (throughput_mlp, …) stand side by side, a
column for each run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import (
    data_parallel,
    depth,
    engines,
    frontier,
    links,
    memory,
    ready,
    recovery,
    rules,
    scaling,
    steptime,
    throughput,
)
from benchmarks.lib.result_files import RESULTS, Kept, kept_results
from launch.display.format import NOTHING, markdown
from pipeline.storage.atomic import replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.lib.report import Report

PAGE = Path(__file__).parent / "RESULTS.md"
BY_HAND = RESULTS / "by_hand.json"
"""Numbers of runs whose metrics were not kept, as rows of the table of trainings."""
REPORTS = {
    "throughput": throughput.REPORT, "steptime": steptime.REPORT, "scaling": scaling.REPORT,
    "memory": memory.REPORT, "links": links.REPORT, "recovery": recovery.REPORT,
    "ready": ready.REPORT, "rules": rules.REPORT, "depth": depth.REPORT,
    "frontier": frontier.REPORT, "data_parallel": data_parallel.REPORT,
    "engines": engines.REPORT,
}  # fmt: skip
COLUMNS = ("what", "result", "command", "machine", "versions", "date", "commit")
RUN = COLUMNS[2:]
WORDS = """\
# What was measured

Written by `python -m benchmarks.results` from the files in [`results/`](results).
[`README.md`](README.md) says how to measure each again, [`PAPER.md`](PAPER.md) has the paper's
tables. A command is the one that ran, at the commit beside it (with a +: and uncommitted changes);
its options may have changed since. Until 2026-11-28 a date is the day on which a result was added.
The machines were shared and noisy: ratios within one run mean more than single seconds. A number in
**bold** misses what was asked for.
"""
TRAININGS = """\
## Trainings

Test errors after the last epoch, `runtime.seed: 1` unless a row says otherwise. Rows without a link
are kept by hand, in [`by_hand.json`](results/by_hand.json).

"""


def page(kept: Sequence[Kept], by_hand: Sequence[Mapping[str, str]]) -> str:
    """A section for each command, then the trainings."""
    by_command = {name: results_of(name, kept) for name in REPORTS}
    sections = [section(REPORTS[name], own) for name, own in by_command.items() if own]
    rows = [
        [_link(one.name, one), f"{one.tree['test_error_pct']:.2f} %", *where(one)]
        for one in results_of(None, kept)
    ]
    rows += [[row[column] for column in COLUMNS] for row in by_hand]
    return "\n".join([WORDS, *sections, TRAININGS + markdown(COLUMNS, rows, COLUMNS)])


def results_of(command: str | None, kept: Sequence[Kept]) -> list[Kept]:
    """Those that a module of benchmarks/ measured; for None those of other commands."""
    named = [re.search(r"\bbenchmarks\.(\w+)", one.tree["command"]) for one in kept]
    return [one for one, match in zip(kept, named, strict=True) if (match and match[1]) == command]


def _link(text: str, one: Kept) -> str:
    return f"[{text}](results/{one.path.name})"


def where(one: Kept) -> list[str]:
    """How a result came about: `RUN`."""
    tree = one.tree
    return [
        f"`{tree['command']}`",
        machine(one),
        f"torch {tree['versions']['torch']}, Python {tree['python']}",
        one.date,
        tree["commit"] + "+" * tree["uncommitted_changes"],
    ]


def machine(one: Kept) -> str:
    """The GPUs, or the processor and its cores."""
    if one.on_gpu:
        return ", ".join(one.tree["gpus"])
    return f"{one.tree['processor']}, {one.tree['cores']} cores"


def section(report: Report, kept: Sequence[Kept]) -> str:
    """Of one command: a part for each name."""
    texts = [f"## {report.title}\n", f"{report.words}\n"]
    names = list(dict.fromkeys(one.name for one in kept))
    for name in names:
        texts += [f"### {name}\n"] if len(names) > 1 else []
        texts.append(part(report, [one for one in kept if one.name == name]))
    return "\n".join(texts)


def part(report: Report, kept: Sequence[Kept]) -> str:
    """Runs of one name: where they were made, what each found, their tables."""
    numbered = {f"run {number}": one for number, one in enumerate(kept, 1)}
    runs = [[_link(run, one), *where(one)] for run, one in numbered.items()]
    texts = [markdown(("", *RUN), runs, ("", *RUN)), side_by_side(report, numbered)]
    for run, one in numbered.items():
        if report.table:
            title = f"{run}: {machine(one)}"
            table = report.table(one.tree)
            texts.append(f"<details><summary>{title}</summary>\n\n{table}\n</details>\n")
    return "\n".join(texts)


def side_by_side(report: Report, runs: Mapping[str, Kept]) -> str:
    """A row for each number that some run found, a column for each run."""
    found = {
        run: {one.what: one for one in report.findings(kept.tree)} for run, kept in runs.items()
    }
    merged = {what: one for own in found.values() for what, one in own.items()}
    rows = [
        [what, one.asked, *(_cell(own.get(what)) for own in found.values())]
        for what, one in merged.items()
    ]
    return markdown(("what", "asked", *runs), rows, ("what", "asked"))


def _cell(found: Any) -> str:
    if found is None:
        return NOTHING
    return found.found if found.met else f"**{found.found}**"


def main() -> None:
    """Write the page."""
    text = page(kept_results(), json.loads(BY_HAND.read_text(encoding="utf-8")))
    replace_file(PAGE, text.encode())
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
