"""Entries of the paper as tasks: all that can be checked before training is checked here."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from launch.machine.provenance import read_starts
from launch.paper.configs import config_text, scaled_epochs, shortened
from launch.paper.figures import FIGURES
from launch.paper.report import RESULTS
from launch.paper.results import alone_in, read_records
from launch.paper.table import all_cells, entries_of, select
from launch.plan.checks import check_local, make_job
from launch.run_directory import holds_run
from launch.series import check_same_run, check_tested, options_for
from pipeline.errors import ConfigError
from pipeline.storage.atomic import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from launch.job import Job, Options
    from launch.paper.table import Entry, Table


RUNS_OPTION = "--runs"


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line said. `launch`: how to train; the config comes with each entry."""

    selector: str
    launch: Options
    epochs_scale: float = 1.0
    runs: Path = Path("runs/paper")
    results: Path = Path("benchmarks")
    command: str = "pipeline-reproduce"


@dataclass(frozen=True, slots=True)
class Task:
    """One entry, checked: it can be trained or resumed, or is finished."""

    entry: Entry
    run_dir: Path
    options: Options
    job: Job


def make_tasks(tables: Sequence[Table], request: Request) -> list[Task]:
    """Check the selected entries; writes their configs beside their run directories.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    check_local(request.launch)
    entries = entries_of(select(tables, request.selector))
    return [make_task(tables, entry, request) for entry in entries]


def make_task(tables: Sequence[Table], entry: Entry, request: Request) -> Task:
    """Check one entry; writes its config beside its run directory, and nothing else.

    Raises:
        ConfigError: where it can't be trained as asked, or its folder holds another run.
    """
    with writing(RUNS_OPTION, request.runs):
        config, run_dir = _config_of(tables, entry, request)
        # to list it tells a file, or a folder of others, from a folder that holds no run
        held = run_dir.exists() and any(run_dir.iterdir()) and holds_run(run_dir)
    options = replace(request.launch, config=config, run_dir=run_dir, resume=held)
    options = options_for(options, backprop=entry.backprop)
    job = make_job(options)
    check_tested(job.config)
    if held:
        check_same_run(run_dir, job.config, RUNS_OPTION)
        read_starts(run_dir)
    return Task(entry, run_dir, options, job)


def check_results(folder: Path) -> None:
    """See that results can be kept in a folder, which is made; and that those in it can be read.

    Raises:
        ConfigError: naming the folder or the file, and the cure.
    """
    path = folder / RESULTS
    with writing("--results", folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        for place in (folder, path.parent, folder / FIGURES):
            if place.exists():
                TemporaryFile(dir=place).close()
    read_records(path)


@contextmanager
def writing(flag: str, folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error that names the option and its folder.

    Raises:
        ConfigError: naming option, folder, reason and cure.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{flag} {folder}: can't be written: {error}; make it writable, or choose "
            f"another folder with {flag}"
        ) from None


def _config_of(tables: Sequence[Table], entry: Entry, request: Request) -> tuple[Path, Path]:
    """The entry's config, written as <name>.yaml, and its run directory <name> beside it."""
    epochs = scaled_epochs(entry, request.epochs_scale)
    suffix = "" if epochs == entry.epochs else f"-{epochs}_epochs"
    directory = request.runs / f"{entry.key}{suffix}"
    cells = [cell for cell in all_cells(tables) if cell.entry.key == entry.key]
    config = directory.with_name(f"{directory.name}.yaml")
    with alone_in(config.parent):  # another command may read it, or write it, too
        replace_file(config, config_text(shortened(entry, epochs), cells).encode())
    return config, directory
