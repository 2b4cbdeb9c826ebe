"""A sweep: what it is, kept in its folder; and its runs, all of them checked before one starts.

DIR/sweep.json, base.yaml     keys, values and seeds; the config that they vary
DIR/loss.name=pred,seed=1/    a run's folder for each
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from launch.grid.combinations import SEED, Combination, Grid, grid_of, seeds_of
from launch.grid.table import TABLES
from launch.plan.checks import check_local, make_job
from launch.resume import is_finished
from launch.run_directory import holds_run
from launch.series import check_same, check_same_run, check_tested, options_for
from pipeline.config.config_file import load_config
from pipeline.errors import ConfigError, WrongKeysError, cut, one_line
from pipeline.storage.atomic import replace_in
from pipeline.system.paths import expanded

if TYPE_CHECKING:
    from pathlib import Path

    from launch.job import Job, Options
    from launch.run_directory import HeldRun
    from pipeline.config.sections import Config

SWEEP, BASE = "sweep.json", "base.yaml"
_OPTION = "--run-dir"
_MOST_ERRORS = 20


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line said. `launch`: how to train each run, with what `--set` changes in all
    of them."""

    config: Path | None
    over: tuple[str, ...]
    seeds: str | None
    run_dir: Path | None
    launch: Options
    command: str = "pipeline-sweep"
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class Sweep:
    """`config`: the file that `overrides`, and then each run's own, change."""

    name: str
    config: Path
    overrides: tuple[str, ...]
    grid: Grid

    @property
    def about(self) -> dict[str, Any]:
        """As JSON values, but for the config, which is a file of its own."""
        return {
            "name": self.name,
            "set": list(self.overrides),
            "over": {key: list(words) for key, words in self.grid.axes.items()},
            "seeds": list(self.grid.seeds),
        }

    def config_of(self, run: Combination) -> Config:
        """Raises ConfigError where the run has none that is right."""
        return load_config(self.config, self.overrides, varied=run.overrides)

    def keep(self, held: HeldRun) -> Sweep:
        """Write it into its folder; gives the sweep by the config there.

        Raises:
            OSError: where the disk refuses.
        """
        replace_in(held.folder, BASE, self.config.read_bytes())
        replace_in(held.folder, SWEEP, (json.dumps(self.about, indent=1) + "\n").encode())
        return replace(self, config=held.path / BASE)


@dataclass(frozen=True, slots=True)
class Planned:
    """One run, checked. `is_begun`, `is_finished`: as its folder was then."""

    run: Combination
    options: Options
    is_begun: bool
    is_finished: bool

    def job(self, sweep: Sweep) -> Job:
        """As it was checked, of the config in the sweep's folder; with its data, which may be
        large, read again.

        Raises:
            ConfigError: where it can't be trained after all.
        """
        return replace(make_job(replace(self.options, config=sweep.config)), name=sweep.name)


def sweep_in(folder: Path) -> Sweep | None:
    """The sweep that a folder holds; None where there is none.

    Raises:
        ConfigError: where it is damaged.
    """
    path = folder / SWEEP
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        axes = {key: tuple(map(_text, words)) for key, words in tree["over"].items()}
        grid = Grid(axes, tuple(map(_count, tree["seeds"])))
        return Sweep(_text(tree["name"]), folder / BASE, tuple(map(_text, tree["set"])), grid)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: is no sweep of this command: {one_line(error)}") from None


def sweep_of(request: Request) -> Sweep:
    """What is asked for; where its folder holds a sweep, that one, with what is added to it.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    check_local(request.launch)
    folder = request.run_dir
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"{_OPTION} {folder}: is no folder: name one for the sweep")
    before = None if folder is None else sweep_in(folder)
    if before is None:
        return _new_sweep(request)
    assert folder is not None
    asked = _more_of(before, request)
    if both := _first_right(before, asked):
        check_same(folder, "sweep", *both, _OPTION)
    return asked


def _new_sweep(request: Request) -> Sweep:
    folder, given = request.run_dir, request.config
    if folder is not None and holds_run(folder):
        raise ConfigError(
            f"{_OPTION} {folder}: holds a run; a sweep needs a folder of its own, in which each of "
            "its runs gets one"
        )
    if given is None:
        if folder is None:
            why = "which config? give CONFIG.yaml, or the folder of a sweep with --run-dir"
            raise ConfigError(why)
        why = "holds no sweep" if folder.exists() else "there is no such folder"
        raise ConfigError(
            f"{_OPTION} {folder}: {why}: name that of a sweep to go on with, or give CONFIG.yaml, "
            "to begin one there"
        )
    if not request.over and request.seeds is None:
        raise ConfigError("what is to vary? give --seeds, as 1-5, or --over, as loss.name=pred,sim")
    for name in (BASE, *TABLES):
        if folder is not None and (folder / name).exists():
            raise ConfigError(
                f"{_OPTION} {folder}: holds {name}, which a sweep writes itself; choose another "
                "folder"
            )
    path, overrides = expanded("CONFIG.yaml", given), request.launch.overrides
    grid = grid_of(request.over, seeds_of(request.seeds) if request.seeds is not None else (0,))
    _check_set_apart(request, grid)
    sweep = Sweep(path.stem, path, overrides, grid)
    if request.seeds is not None:
        return sweep
    return replace(sweep, grid=replace(grid, seeds=(_own_seed(sweep),)))


def _more_of(before: Sweep, request: Request) -> Sweep:
    """A sweep with what is asked for on top."""
    overrides = request.launch.overrides
    if request.config is None:
        before, config = replace(before, overrides=(*before.overrides, *overrides)), before.config
    else:
        config = expanded("CONFIG.yaml", request.config)
        before = replace(before, overrides=overrides)
    grid = before.grid
    if request.over:
        axes = grid_of(request.over, grid.seeds).axes
        if axes.keys() != grid.axes.keys():
            keys = ", ".join(grid.axes) or "seeds alone"
            raise ConfigError(
                f"{_OPTION} {request.run_dir}: holds a sweep over {keys}; its values and seeds can "
                "be extended, for other keys choose another folder"
            )
        grid = grid.with_more(replace(grid, axes=axes))
    if request.seeds is not None:
        grid = grid.with_more(replace(grid, seeds=seeds_of(request.seeds)))
    grid.check_size()
    _check_set_apart(request, grid)
    return replace(before, config=config, grid=grid)


def _first_right(before: Sweep, asked: Sweep) -> tuple[Config, Config] | None:
    """The configs, then and now, of the first of the runs that has one in both."""
    for run in before.grid.combinations():
        with suppress(ConfigError):  # what is wrong with single runs is told of all at once
            return before.config_of(run), asked.config_of(run)
    return None


def _check_set_apart(request: Request, grid: Grid) -> None:
    """Raises ConfigError for a key that is set and varied."""
    varied = {**dict.fromkeys(grid.axes, "--over"), **({SEED: "--seeds"} if request.seeds else {})}
    for override in request.launch.overrides:
        if by := varied.get(override.partition("=")[0]):
            raise ConfigError(
                f"--set {cut(override)}: {by} gives this key its values: leave one out"
            )


def _own_seed(sweep: Sweep) -> int:
    """That of the config: the seed of a sweep that varies none."""
    for settings in sweep.grid.settings():
        overrides = tuple(f"{key}={word}" for key, word in settings)
        with suppress(ConfigError):  # told later
            return load_config(sweep.config, (*sweep.overrides, *overrides)).runtime.seed
    return 1


def checked(sweep: Sweep, request: Request) -> list[Planned]:
    """All runs in order, each checked as far as can be before it starts.

    Raises:
        ConfigError: saying all that is wrong, and with which runs.
    """
    found: dict[Combination, Planned] = {}
    wrong: dict[str, list[str]] = {}
    for settings in sweep.grid.settings():
        job = None
        for seed in sweep.grid.seeds:
            run = Combination(settings, seed)
            try:
                job, found[run] = _checked(run, sweep, request, job)
            except WrongKeysError as error:
                for problem in error.problems:
                    wrong.setdefault(problem.line, []).append(run.name)
            except ConfigError as error:
                wrong.setdefault(str(error), []).append(run.name)
    if wrong:
        raise ConfigError(_all_wrong(wrong, len(sweep.grid)))
    return [found[run] for run in sweep.grid.combinations()]


def _checked(
    run: Combination, sweep: Sweep, request: Request, like: Job | None
) -> tuple[Job, Planned]:
    """`like`: the job of another seed, which has the same data, network and plan."""
    config = sweep.config_of(run)
    overrides = (*sweep.overrides, *run.overrides)
    options = replace(request.launch, config=sweep.config, overrides=overrides, dry_run=False)
    options = options_for(options, backprop=config.loss.is_global)
    check_tested(config)
    # data of a user's own are read, and their network is tried, once for all seeds, and let go
    if like is None:
        job = make_job(options)
    else:  # --data-parallel and --replicas have gone into its config
        parallel = {"parallel": like.config.parallel}
        job = replace(like, config=config.model_copy(update=parallel))
    job = replace(job, own_data=None, rehearsal=None)
    folder = None if request.run_dir is None else request.run_dir / run.name
    begun = folder is not None and holds_run(folder)
    if folder is not None and begun:
        check_same_run(folder, job.config, _OPTION)
        options = replace(options, run_dir=folder)
    done = folder is not None and begun and is_finished(folder, job)
    return job, Planned(run, options, begun, done)


def _all_wrong(wrong: dict[str, list[str]], runs: int) -> str:
    lines = [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {error}"
        for error, names in wrong.items()
    ]
    of = len({name for names in wrong.values() for name in names})
    if len(lines) == 1:
        return next(iter(wrong)) if of == runs else lines[0]
    left = len(lines) - _MOST_ERRORS
    more = [f"and {left} more"] if left > 0 else []
    return "\n  ".join([f"{of} of {runs} runs can't start:", *lines[:_MOST_ERRORS], *more])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r:.40} is no seed")
    return value
