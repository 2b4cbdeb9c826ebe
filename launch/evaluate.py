"""pipeline-eval: what a run's network gets right, and where: by class, and by depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launch.command import NumberRange, command, run_command
from launch.read_run import (
    checkpoint_option,
    data_option,
    examples_at,
    existing,
    own_examples,
    read_run,
    run_argument,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from pipeline.trained.evaluation import Evaluation

_MOST_SHOWN = 20
"""Classes of a matrix of confusions that still fits on a screen."""


def report(found: Evaluation, names: Sequence[str], blocks: Sequence[str], about: str) -> None:
    """Print an evaluation. `names`: of the classes; `about`: what was evaluated on what."""
    from rich.console import Console

    from launch.display.format import counted

    console = Console(markup=False)  # which names of classes are not
    numbers = [counted(found.examples, "examples")]
    if found.error_pct is not None:
        numbers.append(f"error {found.error_pct:.2f} %")
    if found.loss is not None:
        numbers.append(f"loss {found.loss:.4f}")
    console.print(f"{about}: {', '.join(numbers)}", highlight=False, soft_wrap=True)
    if found.confusion:
        _print_classes(found, names, console)
    if found.depths:
        _print_depths(found, blocks, console)


def _print_classes(found: Evaluation, names: Sequence[str], console: Console) -> None:
    from launch.display.format import class_text
    from launch.plan.dry_run import plain_table

    short = list(map(class_text, names))
    table = plain_table(("class",), ("examples", "precision", "recall"))
    rows = zip(short, found.confusion, found.precision, found.recall, strict=True)
    for name, row, precision, recall in rows:
        table.add_row(name, str(sum(row)), _share(precision), _share(recall))
    _print(table, console)
    confusions = _confusions(short, found.confusion, console)
    if confusions is None:
        console.print(
            "\nWhich classes were taken for which is too wide to be shown here: see --json."
        )
    else:
        _print(confusions, console)


def _confusions(
    names: Sequence[str], counts: Sequence[Sequence[int]], console: Console
) -> Table | None:
    """A column a class, by name; by number where names are too long for the terminal's width; None
    where these are, too, or the classes are many."""
    from launch.plan.dry_run import plain_table

    def table(rows: Sequence[str], columns: Sequence[str]) -> Table:
        made = plain_table(("class \\ taken for",), columns)
        for row, cells in zip(rows, counts, strict=True):
            made.add_row(row, *map(str, cells))
        return made

    if len(names) > _MOST_SHOWN:
        return None
    numbers = [str(number) for number in range(len(names))]
    numbered = [f"{number} {name}" for number, name in enumerate(names)]
    unbounded = console.options.update(max_width=10_000)
    for made in (table(names, names), table(numbered, numbers)):
        if console.measure(made, options=unbounded).maximum <= console.width:
            return made
    return None


def _print_depths(found: Evaluation, blocks: Sequence[str], console: Console) -> None:
    from launch.plan.dry_run import plain_table

    numbers = ["error %", "ensemble\nerror %"]
    exits = found.exits_error_pct is not None
    numbers += ["exits %", "their\nerror %"] if exits else []
    table = plain_table(("block",), numbers)
    for depth in found.depths:
        cells = [f"{depth.error_pct:.2f}", f"{depth.ensemble_error_pct:.2f}"]
        if exits:
            wrong = depth.exit_error_pct
            cells += [f"{depth.exit_pct:.1f}", "–" if wrong is None else f"{wrong:.2f}"]
        table.add_row(blocks[depth.block], *cells)
    if exits:
        table.add_row("all exits", "", "", "100.0", f"{found.exits_error_pct:.2f}")
    _print(table, console)


def _print(table: Table, console: Console) -> None:
    console.print()
    console.print(table, highlight=False)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def tree(found: Evaluation, names: Sequence[str], blocks: Sequence[str]) -> dict[str, Any]:
    """The evaluation as plain JSON values, classes and blocks by name."""
    from dataclasses import asdict

    classes = zip(names, found.confusion, found.precision, found.recall, strict=False)
    return {
        "examples": found.examples,
        "loss": found.loss,
        "error_pct": found.error_pct,
        "classes": [
            {"name": name, "examples": sum(row), "precision": precision, "recall": recall}
            for name, row, precision, recall in classes
        ],
        "confusion": found.confusion,
        "depths": [{"name": blocks[depth.block], **asdict(depth)} for depth in found.depths],
        "exits_error_pct": found.exits_error_pct,
    }


@command
@run_argument
@data_option
@checkpoint_option
@click.option(
    "--every-depth",
    is_flag=True,
    help="What each block predicts, by its own classifier, and all blocks up to it together (the "
    "mean of their log-probabilities).",
)
@click.option(
    "--exit-at",
    metavar="P",
    type=NumberRange(0, 1),
    help="With --every-depth: let an example leave at the first block that gives its most likely "
    "class a probability of at least P.",
)
@click.option("--json", "as_json", is_flag=True, help="One object in JSON instead of tables.")
def main(
    run: Path,
    data: Path | None,
    checkpoint: str,
    every_depth: bool,
    exit_at: float | None,
    as_json: bool,
) -> None:
    """Evaluate the network of a run's folder RUN, on the CPU, as the run's own tests do.

    \b
    Exit status: 0 done; 1 a damaged checkpoint; 2 wrong usage or examples; 130 interrupted.
    """

    def body() -> int:
        import json

        from launch.command import DONE
        from launch.display.view import looking_shown
        from pipeline.errors import ConfigError
        from pipeline.trained.evaluation import evaluate

        if exit_at is not None and not every_depth:
            raise ConfigError("--exit-at goes with --every-depth")
        if data is not None:
            existing("--data", data)
        trained = read_run(run, checkpoint)
        network = trained.network
        if every_depth and network.form == "weights":
            raise ConfigError(
                f"--every-depth: checkpoint {checkpoint} of {run} holds weights only "
                "(runtime.best_form), without the classifiers of its blocks: use another checkpoint"
            )
        with looking_shown() as show:
            if data is None:
                where, batches = own_examples(trained, show)
            else:
                where, batches = str(data), examples_at(data, trained, show)
            found = evaluate(
                network, batches, confusion=True, by_depth=every_depth, exit_at=exit_at
            )
        blocks = [f"{spec.index} {spec.name}" for spec in network.specs]
        if as_json:
            about = {"run": str(run), "step": trained.step, "data": where}
            print(json.dumps({**about, **tree(found, trained.classes, blocks)}))
        else:
            about_it = f"{run} at step {trained.step}, on {where}"
            report(found, trained.classes, blocks, about_it)
        return DONE

    run_command(body)


if __name__ == "__main__":
    main()
