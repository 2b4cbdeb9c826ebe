"""Reads runs, looks at their networks, and writes the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.display.format import counted
from launch.display.view import looking_shown
from launch.drawing import HOW_TO_GET_IT, can_draw
from launch.machine.provenance import program
from launch.read_run import EVALUATING, checkpoint_named
from launch.report import about, confusion, curves, depth, filters, similarity, speed, timeline
from launch.report.looks import look
from launch.report.material import read_material
from launch.report.page import html
from launch.report.room import MOST_BYTES, MOST_RUNS, rooms
from launch.report.run import Run
from pipeline.errors import ConfigError
from pipeline.storage.atomic import reason, replace_in
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from launch.report.pieces import Section
    from launch.report.room import Room
    from pipeline.data.image_folder import Progress


def write_report(
    paths: Sequence[Path],
    to: Path,
    checkpoint: str,
    *,
    data: Path | None,
    exit_at: float,
    examples: int | None,
) -> int:
    """Write the page about runs to a file; gives its bytes.

    Raises:
        ConfigError: where matplotlib is missing, a folder holds no run or no such checkpoint,
            `data` can't be read, or the file can't be written.
        CheckpointError: where a checkpoint is damaged.
    """
    if not can_draw():
        raise ConfigError(f"pipeline-report draws with matplotlib: install {HOW_TO_GET_IT}")
    if len(paths) > MOST_RUNS:
        raise ConfigError(f"RUN…: {len(paths)} runs; a page shows {MOST_RUNS} at most")
    found = [
        read_material(path, name, checkpoint_named(checkpoint))
        for path, name in zip(paths, names(paths), strict=True)
    ]
    runs = []
    for number, files in enumerate(found):
        # a bar each: they take as long as their test sets
        with looking_shown() as show:

            def shown(what: str, done: int, of: int, name: str = files.name) -> None:
                most = examples if examples and what == EVALUATING else of
                show(f"{name}: {what}", min(done, most), min(of, most))

            looks = look(files.path, checkpoint, data, exit_at, examples, shown)
        runs.append(Run(number, files, looks))
    with looking_shown() as show:
        text = page(runs, exit_at, show)
    encoded = _encoded(text)
    nbytes = len(encoded)
    if nbytes > MOST_BYTES:
        raise ConfigError(
            f"RUN…: a page about {counted(len(runs), 'runs')} takes {nbytes / 1e6:.1f} MB, more "
            f"than {MOST_BYTES / 1e6:g}: name fewer"
        )
    with Folder.open(to.parent) as folder:
        try:
            replace_in(folder, to.name, encoded)
        except OSError as error:
            raise ConfigError(
                f"--out {to}: can't be written: {reason(error, folder)}; make room, or choose "
                "another folder"
            ) from None
    return nbytes


def names(paths: Sequence[Path]) -> list[str]:
    """What to call runs: as their folders, or as they were given where these have equal names."""
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else list(map(str, paths))


def _encoded(text: str) -> bytes:
    """In UTF-8; what is none, as a file's name may be, escaped."""
    return text.encode(errors="backslashreplace")


def page(runs: Sequence[Run], exit_at: float, show: Progress = lambda what, done, of: None) -> str:
    """The page about runs that were looked at; with less in its pictures where it would be too
    large. `show`: is told how many of its sections are drawn."""
    whole, *smaller = rooms(len(runs))
    text = _page(runs, exit_at, whole, show)
    for room in smaller:
        if len(_encoded(text)) <= MOST_BYTES:
            break
        text = _page(runs, exit_at, room, show, room.text)
    return text


def _page(runs: Sequence[Run], exit_at: float, room: Room, show: Progress, *said: str) -> str:
    """`said`: of the page itself."""
    several = len(runs) > 1
    what = "drawing smaller pictures" if said else "drawing"
    draws: list[Callable[[], Section]] = [
        *([lambda: about.results(runs)] if several else []),
        lambda: curves.section(runs, room),
        lambda: depth.section(runs, exit_at, room.rows),
        lambda: similarity.section(runs, room.blocks),
        lambda: filters.section(runs, room.filters),
        lambda: confusion.section(runs, room.images),
        lambda: speed.speed_section(runs, room.rows),
        lambda: timeline.section(runs, room),
        lambda: speed.memory_section(runs, room.rows),
        lambda: about.plan_section(runs, room.rows),
        lambda: about.settings_section(runs, room),
    ]
    sections: list[Section] = []
    for draw in draws:
        sections.append(draw())
        show(what, len(sections), len(draws))
    return html(
        f"{len(runs)} runs" if several else runs[0].name,
        [*(_about(run, several=several) for run in runs), *said],
        [] if several else about.facts(runs[0]),
        sections,
        several=several,
        program=program(),
    )


def _about(run: Run, *, several: bool) -> str:
    """What is looked at, in two sentences."""
    found, on = run.looks.evaluation, run.files.data.get("name")
    said = f"{run.name}: loss" if several else "A network trained with the loss"
    said += f" {run.files.loss or 'unknown, since its config can not be read'}"
    said += f", on the data {on}" if on else ""
    if isinstance(found, str):
        return f"{said}. What its files say, up to step {run.files.last_step}."
    return (
        f"{said}. Pictures show its checkpoint of step {run.files.step}, "
        f"on {counted(found.examples, 'examples')} of {run.looks.examples}."
    )
