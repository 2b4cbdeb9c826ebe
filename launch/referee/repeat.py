"""pipeline-referee --repeat: trainings of kept rows carried out anew, and held against them.

rows that are named ─▶ a process each, by the row's own config ─▶ SHA-256 of every block
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from launch.command import DONE, FAILED
from launch.display.streams import wait_for_no_reader
from launch.engines.interrupts import INTERRUPTED
from launch.machine.provenance import provenance
from launch.referee.referee import check_configs, launch_words
from launch.referee.rows import Rows, row_of_run
from launch.referee.tasks import Task
from launch.referee.work import carry_out
from pipeline.config.config_file import dump_config
from pipeline.config.sections import build_config
from pipeline.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from launch.referee.rows import Row
    from launch.referee.table import Table
    from launch.referee.tasks import Request
    from launch.referee.work import Ended
    from pipeline.config.sections import Config

OPTION = "--repeat"


def repeat(names: str, request: Request, say: Callable[[str], None]) -> int:
    """Train again what is named, in a folder that is removed; the exit status: failed where one
    came to other bits.

    Args:
        names: of rows, as `mlp/pred/seed=1`, or of all trainings of a rule or a network, as
            `mlp/pred` or `mlp`; several with commas.

    Raises:
        ConfigError: for the first thing that is wrong, before anything is started.
    """
    rows = _named(names, Rows(request.out))
    found = {_task_of(row, request.table): row for row in rows}
    configs = {task: _config_of(row, request.data) for task, row in found.items()}
    check_configs({str(task.path): one for task, one in configs.items()}, request.gpus)
    minutes = max(1, round(sum(row.result.get("seconds") or 0.0 for row in rows) / 60))
    say(f"{len(rows)} to train again, which took {minutes} min of one core where they were made")
    wait_for_no_reader()
    with TemporaryDirectory(prefix="pipeline-") as folder:
        at_work = _Repetition(found, configs, Path(folder), request.gpus, say)
        is_whole = carry_out(at_work.next_one, at_work.ended, request.jobs)
    say(f"{at_work.same} of {len(found)} came to the same bits")
    if not is_whole:
        return INTERRUPTED
    return DONE if at_work.same == len(found) else FAILED


class _Repetition:
    """Its methods are what `carry_out` asks and tells."""

    def __init__(
        self,
        rows: Mapping[Task, Row],
        configs: Mapping[Task, Config],
        folder: Path,
        gpus: str | None,
        say: Callable[[str], None],
    ) -> None:
        self._rows, self._configs, self._folder = rows, configs, folder
        self._gpus, self._say = gpus, say
        self._left = list(rows)
        self.same = 0

    def next_one(self, others: bool) -> tuple[Task, list[str]] | None:
        """The next training, and the words of its command."""
        if not self._left:
            return None
        task = self._left.pop(0)
        run_dir = self._folder / task.path
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        file = run_dir.with_name(f"{run_dir.name}.yaml")
        file.write_bytes(dump_config(self._configs[task]).encode())
        return task, launch_words(file, run_dir, self._gpus)

    def ended(self, one: Ended) -> None:
        """Say whether it came to the same."""
        task = one.task
        anew = None
        if one.status == DONE:
            config, run_dir = self._configs[task], self._folder / task.path
            anew = row_of_run(task, config, run_dir, one.wall_s)
        if anew is None:
            told = "interrupted" if one.was_interrupted else f"no result: {one.why}"
        else:
            told = what_differs(self._rows[task], anew)
            self.same += not told
            told = told or f"the same bits: {_figure(anew)}"
        self._say(f"{task.path}: {told}, {one.wall_s:.0f} s")


def what_differs(kept: Row, anew: Row) -> str:
    """What is not the same in a training and its row; empty where nothing is."""
    before, after = kept.result["blocks_sha256"], anew.result["blocks_sha256"]
    others = [block for block in before if before[block] != after.get(block)]
    if before.keys() == after.keys() and not others and kept.error_pct == anew.error_pct:
        return ""
    told = f"not the same: {_figure(anew)} against {_figure(kept)}, {len(others)} of "
    told += f"{len(before)} blocks with other bits"
    made, here = _machine(kept.starts[-1], kept), _machine(provenance(""), anew)
    if made != here:
        told += f"; the row was made by {made}, and this is {here}: other machines round otherwise"
    return told


def _figure(row: Row) -> str:
    if row.error_pct is None:
        return f"loss {row.result['loss']:.4f}"
    return f"error {row.error_pct:.2f} %"


def _machine(start: Mapping[str, Any], row: Row) -> str:
    """Where a row was trained."""
    of = [start["processor"]] if row.result["device"] == "cpu" else start.get("gpus", ())
    return f"{', '.join(of)} with torch {start['versions'].get('torch', '')}"


def _named(names: str, rows: Rows) -> Sequence[Row]:
    known = {row.path: row for row in rows.all() if "blocks_sha256" in row.result}
    found: dict[str, Row] = {}
    for name in (word.strip().strip("/") for word in names.split(",")):
        own = {path: row for path, row in known.items() if f"{path}/".startswith(f"{name}/")}
        if not own:
            kinds = {"/".join(path.split("/")[:2]) for path in known}
            why = f"there is no such training in {rows.folder}"
            raise ConfigError(f"{OPTION} {name!r}: {why}{did_you_mean(name, [*known, *kinds])}")
        found.update(own)
    return [*found.values()]


def _task_of(row: Row, table: Table) -> Task:
    if row.network not in table.networks or row.rule not in table.rules:
        raise ConfigError(
            f"{OPTION} {row.path}: the table has no such network or rule: name the one with "
            "--table that the row was made with"
        )
    seed = int(row.name.removeprefix("seed="))
    return Task(table.networks[row.network], table.rules[row.rule], "train", seed=seed)


def _config_of(row: Row, data: str | None) -> Config:
    """The row's own, with the data where they are here."""
    tree = {name: dict(section) for name, section in row.config.items()}
    tree["data"].pop("root", None)  # of the machine that made it
    if data is not None:
        tree["data"]["root"] = data
    return build_config(tree, f"the row {row.path}")
