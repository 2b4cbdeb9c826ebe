"""pipeline-report: what runs leave, to look at: one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path

import click

from launch.command import NumberRange, PathType, command, run_command
from launch.read_run import checkpoint_option, data_option, existing, to_write


@command
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=PathType())
@data_option
@checkpoint_option
@click.option(
    "--exit-at",
    metavar="P",
    type=NumberRange(0, 1),
    default=0.9,
    show_default=True,
    help="Let an example leave at the first block that gives its most likely class a probability "
    "of at least P.",
)
@click.option(
    "--examples",
    metavar="N",
    type=click.IntRange(min=1),
    help="Look at the first N examples only.  [default: all]",
)
@click.option(
    "--out",
    metavar="FILE",
    help="The file to write.  [default: in the current folder, RUN's name with .html, or "
    "report.html for several]",
)
@click.option("--overwrite", is_flag=True, help="Write over a file that is there.")
def main(
    runs: tuple[Path, ...],
    data: Path | None,
    checkpoint: str,
    exit_at: float,
    examples: int | None,
    out: str | None,
    overwrite: bool,
) -> None:
    """Show what the folders of runs, RUN…, hold as one HTML file that needs nothing else: learning
    curves by block, error by depth, what each block finds alike, filters, confusions, speed,
    memory, plan and settings; several runs side by side. Networks are evaluated on the CPU.

    \b
    Exit status: 0 done; 1 a damaged checkpoint; 2 wrong usage, no such run, or a file that is
    there; 130 interrupted.
    """

    def body() -> int:
        from launch.command import DONE
        from launch.display.format import size_text
        from launch.report.report import write_report

        name = f"{runs[0].resolve().name}.html" if len(runs) == 1 else "report.html"
        path = to_write(Path.cwd() / name if out is None else out, overwrite=overwrite)
        if data is not None:
            existing("--data", data)
        nbytes = write_report(runs, path, checkpoint, data=data, exit_at=exit_at, examples=examples)
        print(f"{path}: {size_text(nbytes)}, to be opened in a browser")
        return DONE

    run_command(body)


if __name__ == "__main__":
    main()
