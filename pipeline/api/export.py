"""`pipeline.export`: the network of a run's folder as a file that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.api.arguments import as_argument
from pipeline.api.asked import network_given
from pipeline.api.caller import settings_kept
from pipeline.api.description import description
from pipeline.api.formats import GRAPHS, SUFFIXES, FromData, check_format, encoded
from pipeline.api.load import loaded
from pipeline.errors import RUN_DIR, ConfigError, Option, one_line, worded
from pipeline.storage.atomic import reason, replace_in
from pipeline.storage.folder import Folder
from pipeline.system.given import Given
from pipeline.system.paths import check_free, expanded, file_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from pipeline.api.formats import Format
    from pipeline.api.load import Loaded
    from pipeline.rules.rule import LocalRule

BESIDE = ".txt"
"""What is added to a file's name for that of the text beside it."""
_OUT = Option("out")


def export(
    run_dir: str | Path,
    format: Format = "safetensors",
    out: str | Path | None = None,
    *,
    at: str | int = "last",
    depth: int | None = None,
    preprocess: bool = False,
    overwrite: bool = False,
    network: nn.Module | Sequence[nn.Module] | None = None,
    loss: type[LocalRule] | None = None,
) -> Path:
    """Write the network that `load` gives to a file, which can be used without this package, and
    beside it a text: what it takes and gives, its classes, how to load it, where it is from.

    Args:
        format: "safetensors" or "state-dict", tensors by name; "torch-export" or "onnx", a program
            for batches of any size.
        out: the file; None: in the current folder, by the name of the run's folder. The text is
            called the same, with `.txt` added.
        at, depth, network, loss: as for `load`.
        preprocess: put normalisation into the program, which then takes examples as they are in
            the data.
        overwrite: write over files that are there.

    Returns:
        The file.

    Raises:
        ConfigError: as `load`; for a format that there is not, or whose library is missing; where
            torch can't export the network, and where a file is there already or can't be written.
        CheckpointError: as `load`.
    """
    with worded(as_argument):
        given = Given(network_given(network), loss)
        return write_export(
            run_dir,
            format,
            out,
            at=at,
            depth=depth,
            preprocess=preprocess,
            overwrite=overwrite,
            given=given,
        )


def write_export(
    run_dir: str | Path,
    format: Format,
    out: str | Path | None,
    *,
    at: str | int,
    depth: int | None,
    preprocess: bool,
    overwrite: bool,
    given: Given | None = None,
) -> Path:
    """As `export`; `given` as for `loaded`."""
    check_format(format)
    if preprocess and format not in GRAPHS:
        raise ConfigError(
            Option("preprocess"),
            f": format {format} holds tensors, and no program that could normalise: use "
            f"{' or '.join(GRAPHS)}, or leave it out",
        )
    path = _file(run_dir, format, out)
    text = path.with_name(path.name + BESIDE)
    for each in (path, text):
        check_free(_OUT, each, overwrite=overwrite)
    run = loaded(run_dir, at=at, depth=depth, given=given)
    with settings_kept():
        module = FromData(run.module, run.facts).eval() if preprocess else run.module
        example = _example(run, preprocess)
        result = _result(module, example)
        data = encoded(module, format, example)
    said = description(
        run, path.name, format, depth=depth, preprocess=preprocess, example=example, result=result
    )
    _write({path.name: data, text.name: said.encode(errors="backslashreplace")}, path.parent)
    return path


def _file(run_dir: str | Path, format: Format, out: str | Path | None) -> Path:
    if out is None:
        return Path.cwd() / f"{expanded(RUN_DIR, run_dir).resolve().name}{SUFFIXES[format]}"
    return file_named(_OUT, out)


def _example(run: Loaded, preprocess: bool) -> Tensor:
    """Two examples, of zeros, as the module takes them."""
    as_data = preprocess or run.facts.dtype == "int64"
    kind = getattr(torch, run.facts.dtype) if as_data else torch.float32
    return torch.zeros((2, *run.facts.shape), dtype=kind)


def _result(module: nn.Module, example: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            given: Tensor = module(example)
    except Exception as error:  # whatever the user's modules raise
        raise ConfigError(f"network: does not compute by itself: {one_line(error)}") from error
    return given


def _write(files: dict[str, bytes], where: Path) -> None:
    with Folder.open(where) as folder:
        for name, data in files.items():
            try:
                replace_in(folder, name, data)
            except OSError as error:
                raise ConfigError(
                    _OUT,
                    f" {where / name}: can't be written: {reason(error, folder)}; make room, or "
                    "choose another folder",
                ) from None
