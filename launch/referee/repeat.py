"""pipeline-referee --repeat: trainings of kept rows carried out anew, and held against them.

rows that are named ─▶ a process each, by the row's own config ─▶ SHA-256 of every block
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from launch.child_commands import carry_out
from launch.command import DONE, FAILED, complain
from launch.display.format import counted
from launch.display.streams import wait_for_no_reader
from launch.engines.interrupts import INTERRUPTED
from launch.machine.provenance import provenance
from launch.referee.referee import check_config, check_data, config_beside, launch_words
from launch.referee.rows import Rows, row_of_run
from pipeline.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from launch.child_commands import Ended
    from launch.referee.rows import Row
    from launch.referee.tasks import Request
    from pipeline.config.sections import Config

OPTION = "--repeat"
_CPU = "cpu"


def repeat(names: str, request: Request, say: Callable[[str], None]) -> int:
    """Train again what is named, in a folder that is removed; the exit status: failed where one
    came to other bits.

    Args:
        names: of rows, as `mlp/pred/seed=1`, or of all trainings of a rule or a network, as
            `mlp/pred` or `mlp`; several with commas.

    Raises:
        ConfigError: for the first thing that is wrong, before anything is started.
    """
    rows = {row.path: row for row in _named(names, Rows(request.out))}
    configs = {path: row.config_here(request.data) for path, row in rows.items()}
    for path, config in configs.items():
        check_config(path, config, _device(rows[path], request))
    check_data(configs.values())
    minutes = max(1, round(sum(row.result.get("seconds", 0.0) for row in rows.values()) / 60))
    say(f"{counted(len(rows), 'trainings')}, which took {minutes} min of one process")
    wait_for_no_reader()
    with TemporaryDirectory(prefix="pipeline-") as folder:
        at_work = _Repetition(rows, configs, Path(folder), request, say)
        is_whole = carry_out(at_work.next_one, at_work.ended, request.jobs)
    say(f"{at_work.same} of {counted(at_work.compared, 'trainings')} came to the same bits")
    if not is_whole:
        return complain("interrupted", INTERRUPTED)
    return DONE if at_work.same == len(rows) else FAILED


class _Repetition:
    """Its methods are what `carry_out` asks and tells."""

    def __init__(
        self,
        rows: Mapping[str, Row],
        configs: Mapping[str, Config],
        folder: Path,
        request: Request,
        say: Callable[[str], None],
    ) -> None:
        self._rows, self._configs, self._folder = rows, configs, folder
        self._request, self._say = request, say
        self._left = list(rows)
        self._compared: dict[str, bool] = {}
        """Of each training that was, whether it came to the same bits."""

    @property
    def compared(self) -> int:
        """How many trainings were compared with their rows."""
        return len(self._compared)

    @property
    def same(self) -> int:
        """How many of them came to the same bits."""
        return sum(self._compared.values())

    def next_one(self, others: bool) -> tuple[str, list[str]] | None:
        """The next training, and the words of its command."""
        if not self._left:
            return None
        path = self._left.pop(0)
        run_dir = self._folder / path
        file = config_beside(run_dir, self._configs[path])
        return path, launch_words(file, run_dir, _device(self._rows[path], self._request))

    def ended(self, one: Ended[str]) -> None:
        """Say whether it came to the same."""
        path, anew = one.task, None
        if one.status == DONE:
            anew = row_of_run(path, self._configs[path], self._folder / path, one.wall_s)
        if anew is None:
            told = "interrupted" if one.was_interrupted else f"no result: {one.why}"
        else:
            differs = bits_that_differ(self._rows[path], anew)
            self._compared[path] = not differs
            told = differs or f"the same bits: {_figure(anew)}"
        self._say(f"{path}: {told}, {one.wall_s:.0f} s")


def bits_that_differ(kept: Row, anew: Row) -> str:
    """What is not the same in a training and its row; empty where nothing is."""
    before, after = kept.result["blocks_sha256"], anew.result["blocks_sha256"]
    others = [block for block in before if before[block] != after.get(block)]
    others += [block for block in after if block not in before]
    figures = f"{_figure(anew)} against {_figure(kept)}"
    if not others:
        return "" if kept.error_pct == anew.error_pct else f"the same bits, but {figures}"
    blocks = "all blocks" if set(others) == {*before, *after} else f"blocks {', '.join(others)}"
    told = f"not the same: {figures}, other bits in {blocks}"
    made, here = _place(kept.starts[-1], kept), _place(provenance(""), anew)
    if made != here:
        told += f"; the row was trained on {made}, this on {here}, which may round otherwise"
    return told


def _figure(row: Row) -> str:
    if row.error_pct is not None:
        return f"error {row.error_pct:.2f} %"
    loss = row.result.get("loss")
    return "no loss" if loss is None else f"loss {loss:.4f}"


def _place(start: Mapping[str, Any], row: Row) -> str:
    """Where a row was trained."""
    of = [start["processor"]] if row.result["device"] == _CPU else start.get("gpus", ())
    return f"{', '.join(of)} with torch {start['versions'].get('torch', '')}"


def _device(row: Row, request: Request) -> str | None:
    """For `--gpus`: where none is asked for, that of the row; a GPU is the default, if there is
    one."""
    given = request.gpus
    return _CPU if given is None and row.result["device"] == _CPU else given


def _named(names: str, rows: Rows) -> Sequence[Row]:
    known = {row.path: row for row in rows.all() if row.result.get("blocks_sha256")}
    found: dict[str, Row] = {}
    for name in filter(None, (word.strip().strip("/") for word in names.split(","))):
        own = {path: row for path, row in known.items() if f"{path}/".startswith(f"{name}/")}
        if not own:
            kinds = {"/".join(path.split("/")[:2]) for path in known}
            why = f"there is no training (seed=N) of that in {rows.folder}"
            raise ConfigError(f"{OPTION} {name}: {why}{did_you_mean(name, [*known, *kinds])}")
        found.update(own)
    if not found:
        raise ConfigError(f"{OPTION} {names!r}: names no row: give one, as mlp/pred/seed=1")
    return [*found.values()]
