"""pipeline-export: the network of a run as a file that other programs read."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from launch.command import command, run_command
from launch.read_run import (
    as_option_of_a_run,
    checkpoint_named,
    checkpoint_option,
    run_argument,
)
from pipeline.errors import worded

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.api.formats import Format


@command
@run_argument
@click.option(
    "--format",
    metavar="safetensors|state-dict|torch-export|onnx",
    default="safetensors",
    show_default=True,
    help="Tensors by name, as safetensors or by torch.save; or a program that computes, for "
    "batches of any size: PyTorch's own (torch.export), or ONNX.",
)
@checkpoint_option
@click.option(
    "--depth",
    type=int,
    metavar="K",
    help="Only the first K blocks: features instead of predictions.  [default: all]",
)
@click.option(
    "--preprocess",
    is_flag=True,
    help="Put normalisation into the program, which then takes examples as they are in the data.",
)
@click.option(
    "--out",
    metavar="FILE",
    help="The file to write.  [default: in the current folder, named after RUN]",
)
@click.option("--overwrite", is_flag=True, help="Write over files that are there.")
def main(
    run: Path,
    format: str,
    checkpoint: str,
    depth: int | None,
    preprocess: bool,
    out: str | None,
    overwrite: bool,
) -> None:
    """Write the trained network of a run's folder RUN, without its local classifiers, to a file
    that needs nothing of this package, and beside it a text (FILE.txt): what it takes and gives,
    its classes, how to load it, where it is from.

    \b
    Exit status: 0 done; 1 a damaged checkpoint; 2 wrong usage, no such run, or a network that
    can't be exported; 130 interrupted.
    """

    def body() -> int:
        from launch.command import DONE
        from pipeline.api.export import BESIDE, write_export

        with worded(as_option_of_a_run):
            path = write_export(
                run,
                cast("Format", format),
                out,
                at=checkpoint_named(checkpoint),
                depth=depth,
                preprocess=preprocess,
                overwrite=overwrite,
            )
        print(f"{path}, and {path.name}{BESIDE}, which says how to use it")
        return DONE

    run_command(body)


if __name__ == "__main__":
    main()
