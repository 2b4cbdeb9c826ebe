"""pipeline-init: a first config for one's own data, with a comment on what was chosen."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from launch.command import command, run_command
from launch.read_run import to_write

if TYPE_CHECKING:
    from pathlib import Path


@command
@click.argument("data", metavar="DATA")
@click.option("--out", metavar="FILE", help="The file to write.  [default: standard output]")
@click.option("--overwrite", is_flag=True, help="Write over FILE.")
def main(data: str, out: str | None, overwrite: bool) -> None:
    """Look at DATA and write a config that trains a small network on it at once. Every choice has a
    comment. DATA is a folder of images (train/CLASS/… with val/CLASS/… or test/CLASS/…, or
    CLASS/… alone), an .npz file, or the name of a data set.

    \b
    Exit status: 0 done; 2 wrong usage, or data that can't be read; 130 interrupted.
    """

    def body() -> int:
        from launch.command import DONE
        from launch.first_config import first_config

        path = None if out is None else to_write(out, overwrite=overwrite)
        text = first_config(data)
        if path is None:
            print(text, end="")
        else:
            _write(path, text)
        # beside a config that goes into a file, where it is no part of it
        print(f"next: pipeline-launch --single {path or 'FILE.yaml'}", file=sys.stderr)
        return DONE

    run_command(body)


def _write(path: Path, text: str) -> None:
    from pipeline.errors import ConfigError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {path}: can't be written: {error.strerror or error}") from None


if __name__ == "__main__":
    main()
