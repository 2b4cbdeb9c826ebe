"""The referee at work: which task is begun next, what its process is told, what it gave.

rows that are there ─▶ tasks that are left ─▶ a process each ─▶ a row, and the table anew
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from launch.command import DONE, FAILED
from launch.machine.provenance import provenance
from launch.referee.expected import Expectation
from launch.referee.page import write_page
from launch.referee.rows import Row, row_of_run
from launch.referee.tasks import Task, config_of, searching, tasks_of
from launch.run_directory import holds_run
from launch.series import check_same_run
from pipeline.config.config_file import dump_config
from pipeline.config.sections import config_tree
from pipeline.errors import DATA_ROOT, ConfigError, as_option, worded
from pipeline.storage.atomic import replace_file
from pipeline.storage.checkpoint_writer import CHECKPOINTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from launch.child_commands import Ended
    from launch.referee.rows import Rows
    from launch.referee.table import Network, Rule
    from launch.referee.tasks import Request
    from pipeline.config.sections import Config
    from pipeline.errors import Option

RUNS = "--runs"
_LAUNCH = ("pipeline-launch", "launch.cli", "--single", "--view", "quiet")
_VERIFY = ("pipeline-verify", "launch.verify", "--locality")


@dataclass(frozen=True, slots=True)
class Begun:
    """What a process was told to do. `resumed`: whether others have had a part in it."""

    config: Config
    run_dir: Path
    resumed: bool


def best_value(network: Network, rule: Rule, request: Request, rows: Rows) -> Any:
    """The value that a rule's search found to have the lowest validation error, or, where nothing
    is predicted, loss; the first of several; None where not all have been tried, or none is good.
    """
    searched = searching(rule, request.table)
    found = [rows.of(Task(network, searched, "search", value)) for value in searched.values]
    if not all(found):
        return None
    good = [
        (row.result["loss"] if row.error_pct is None else row.error_pct, number)
        for number, row in enumerate(found)
        if row is not None and not row.failed
    ]
    return searched.values[min(good)[1]] if good else None


class Referee:
    """Carries out the tasks of a request; `carry_out` asks it what is next.

    Args:
        say: shows a line.
    """

    def __init__(self, request: Request, rows: Rows, say: Callable[[str], None]) -> None:
        self._request, self._rows, self._say = request, rows, say
        self._expected = Expectation(request, rows)
        self._left = [task for task in tasks_of(request) if rows.of(task) is None]
        self._of_others = _tasks_of_known_pairs(request, rows)
        self._begun: dict[Task, Begun] = {}
        self._all, self._done = len(self._left), 0
        self._began = time.monotonic()
        self.missing: dict[Task, str] = {}
        """Why a task has no row."""
        self.status = DONE
        """Of the command: failed where a task has failed that budget and interruptions had let."""

    def next_one(self, others: bool) -> tuple[Task, list[str]] | None:
        """As `carry_out` asks for it."""
        if any(task.kind == "speed" for task in self._begun):
            return None  # it is measured alone
        for task in self._left[:]:
            if task.kind == "speed" and others:
                return None
            if why := self._prevented(task):
                self._left.remove(task)
                self.missing[task] = why
            elif self._is_ready(task):
                self._left.remove(task)
                return task, self._words(task)
        return None

    def ended(self, one: Ended[Task]) -> None:
        """A task's process has ended: keep what it gave, and write the table anew."""
        begun = self._begun.get(one.task)
        if begun is None:  # told again, of which only the line was left
            return
        row = self._row(one, begun)
        if row is not None:
            self._rows.add(row)
            self._clear(one.task, begun.run_dir)
            told = in_words(row)
        elif one.was_interrupted:
            told = self.missing[one.task] = "interrupted"
        else:
            told = self.missing[one.task] = f"failed: {one.why}"
            self.status = FAILED
        del self._begun[one.task]
        self._done += 1
        at = f"[{self._done}/{self._all}] {one.task.path}"
        self._say(f"{at}: {told}, {one.wall_s:.0f} s{self._to_come()}")
        self.write()

    def write(self) -> None:
        """The table, by the rows that there are, whichever command made them."""
        others = {task: "not asked for" for task in self._of_others if self._rows.of(task) is None}
        left = dict.fromkeys([*self._left, *self._begun], "not begun")
        write_page(self._request, self._rows, {**others, **left, **self.missing})

    def hours_left(self) -> float:
        """Expected, of what is left, by so many processes."""
        seconds = sum(map(self._expected.seconds, self._left))
        return seconds / self._request.jobs / 3600

    def _prevented(self, task: Task) -> str:
        """Why a task can't be begun at all; empty where it can, now or later."""
        if task.kind == "train":
            searched = searching(task.rule, self._request.table)
            for value in searched.values:
                trial = Task(task.network, searched, "search", value)
                if trial in self.missing:
                    return f"its search has no result for {searched.key} {value}"
            tried = [
                self._rows.of(Task(task.network, searched, "search", v)) for v in searched.values
            ]
            if all(row is not None and row.failed for row in tried):
                self.status = FAILED
                return f"failed with every value of {searched.key}"
        if self._request.hours is not None:
            needed, so_far = self._expected.seconds(task), time.monotonic() - self._began
            if so_far + needed > self._request.hours * 3600:
                return f"not begun: beyond the budget of {self._request.hours:g} h"
        return ""

    def _is_ready(self, task: Task) -> bool:
        if task.kind != "train":
            return True
        return best_value(task.network, task.rule, self._request, self._rows) is not None

    def _words(self, task: Task) -> list[str]:
        value = None
        if task.kind == "train":
            value = best_value(task.network, task.rule, self._request, self._rows)
        config = config_of(task, self._request, value)
        run_dir = self._request.runs / task.path
        file = config_beside(run_dir, config)
        self._clear(task, run_dir)
        resumed = holds_run(run_dir)
        self._begun[task] = Begun(config, run_dir, resumed)
        if task.kind == "locality":
            return [*_VERIFY, *_on(self._request.gpus), str(file)]
        if resumed:
            check_same_run(run_dir, config, RUNS)
        return launch_words(file, run_dir, self._request.gpus, resume=resumed)

    def _clear(self, task: Task, run_dir: Path) -> None:
        """A measurement of speed leaves nothing; a search no weights, which nobody needs once its
        row is kept."""
        if task.kind == "speed":
            rmtree(run_dir, ignore_errors=True)
        elif task.kind == "search" and self._rows.of(task) is not None:
            rmtree(run_dir / CHECKPOINTS, ignore_errors=True)

    def _row(self, one: Ended[Task], begun: Begun) -> Row | None:
        task, config = one.task, begun.config
        path, tree = str(task.path), config_tree(config)
        if task.kind == "locality":
            if one.status not in (DONE, FAILED) or not one.said:
                return None
            found = [line for line in one.said.splitlines() if line][-1]
            result = {"is_local": one.status == DONE, "said": found, "wall_s": round(one.wall_s, 1)}
            return Row(path, tree, (self._provenance(),), result)
        if one.status == DONE:
            wall_s = None if begun.resumed else one.wall_s
            return row_of_run(path, config, begun.run_dir, wall_s)
        if one.status == FAILED and task.kind == "search":
            return Row(path, tree, (self._provenance(),), {}, one.why)
        return None

    def _provenance(self) -> dict[str, Any]:
        found = provenance(self._request.command)
        return {key: value for key, value in found.items() if key != "system"}

    def _to_come(self) -> str:
        hours = self.hours_left()
        return f"; about {hours:.1f} h left" if hours > 0.05 else ""


def config_beside(run_dir: Path, config: Config) -> Path:
    """Write a run's config beside its folder; the file."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    file = run_dir.with_name(f"{run_dir.name}.yaml")
    replace_file(file, dump_config(config).encode())
    return file


def launch_words(file: Path, run_dir: Path, gpus: str | None, *, resume: bool = False) -> list[str]:
    """For the process that trains a config file in a folder, in one process."""
    return [*_LAUNCH, *_on(gpus), *["--resume"] * resume, "--run-dir", str(run_dir), str(file)]


def _on(gpus: str | None) -> list[str]:
    return [] if gpus is None else ["--gpus", gpus]


def _tasks_of_known_pairs(request: Request, rows: Rows) -> list[Task]:
    """What an earlier command may have left: all tasks, of the same seeds, of each rule on each
    network of which there is a row."""
    pairs = {(row.network, row.rule) for row in rows.all()}
    table = request.table
    tasks = list[Task]()
    for network in table.networks.values():
        rules = [rule for rule in table.rules.values() if (network.name, rule.name) in pairs]
        # what is set for the networks that are asked for need not be right for others
        tasks += tasks_of(replace(request, networks=[network], rules=rules, overrides=()))
    return tasks


def in_words(row: Row) -> str:
    """For a line about what a task gave."""
    if row.failed:
        return f"no result: {row.failed}"
    result = row.result
    if "is_local" in result:
        return str(result["said"])
    if "tested_on" not in result:
        return f"{result['images_per_s']:,.0f} images/s"
    if row.error_pct is None:
        return f"{result['tested_on']} loss {result['loss']:.4f}"
    return f"{result['tested_on']} error {row.error_pct:.2f} %"


def check_rows(request: Request, rows: Rows) -> None:
    """See that the rows that are there are of what is asked for.

    Raises:
        ConfigError: naming the row, the key that differs, and the cure.
    """
    from launch.resume import what_differs

    for task in tasks_of(request):
        row = rows.of(task)
        if row is None:
            continue
        value = best_value(task.network, task.rule, request, rows) if task.kind == "train" else None
        config = config_of(task, request, value)
        for key, (old, new) in what_differs(row.checked_config(), config).items():
            if task.kind in ("locality", "speed") and key == task.rule.key:
                continue  # these do the same work by any value
            if task.kind == "train" and value is None and key == task.rule.key:
                continue  # found by a search whose rows are not here
            raise ConfigError(
                f"--out {request.out}: {task.path} is there with {key} {old}, but {new} is asked "
                "for: choose another folder with --out, or take that row out of "
                f"{rows.folder / task.network.name / task.rule.name}.jsonl"
            )


def check_config(name: str, config: Config, gpus: str | None) -> None:
    """See that it can be trained, in one process; `name`: what an error calls it.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    from launch.job import Options
    from launch.plan.checks import check_job

    check_job(name, config, Options(None, single=True, gpus=gpus))


def check_data(configs: Iterable[Config]) -> None:
    """See that the data of these are there, which may be fetched.

    Raises:
        ConfigError: for the first that is not.
    """
    from pipeline.data.batches import load_batches

    with worded(_as_option):
        for data in {one.data.model_dump_json(): one.data for one in configs}.values():
            load_batches(data, seed=1)


def _as_option(option: Option) -> str:
    return "--data DIR" if option == DATA_ROOT else as_option(option)
