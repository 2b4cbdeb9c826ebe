"""What the referee has to do, in order, and the config of each task.

    speed      a few steps, alone on the machine
    search     one value, tested on a share of the training images
    locality   each block retrained alone
    train      anew on all training images, once a seed

A round trains one seed of every rule on every network; what a rule's run needs goes before it. So
wherever the work ends, there is a table of as many seeds of each as of any other.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pipeline.config.config_file import config_from, set_value
from pipeline.config.recipe import MAX_EPOCHS
from pipeline.config.yaml_text import word_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launch.referee.table import Network, Rule, Table
    from pipeline.config.sections import Config

Kind: TypeAlias = Literal["speed", "locality", "search", "train"]

VALIDATION = 0.1
"""Share of the training images on which values are compared."""
SEARCH_SEED = 1
SPEED_EPOCHS = 4
"""Of a measurement of speed: the first of its epochs is not counted."""
NEVER = MAX_EPOCHS
"""Epochs between tests: only the last epoch is tested, as it always is."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """`value`: the one that is tried, in a search; `seed`: of a run that counts. Tasks of the same
    path are the same."""

    network: Network
    rule: Rule
    kind: Kind
    value: Any = None
    seed: int = SEARCH_SEED

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def name(self) -> str:
        """As `seed=1`, or `search-optimizer.lr=0.001`: that of its folder."""
        if self.kind == "search":
            return f"search-{self.rule.key}={word_for(self.value)}"
        return f"seed={self.seed}" if self.kind == "train" else self.kind

    @property
    def path(self) -> PurePosixPath:
        """Network, rule and name."""
        return PurePosixPath(self.network.name, self.rule.name, self.name)


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line said. `overrides`: as `--set` has them, for all runs; `data`: folder of
    the data sets; `hours`: when to begin nothing more; `out`: where the table and its rows are."""

    table: Table
    networks: Sequence[Network]
    rules: Sequence[Rule]
    seeds: tuple[int, ...] = (1, 2, 3)
    overrides: tuple[str, ...] = ()
    data: str | None = None
    gpus: str | None = None
    jobs: int = 1
    hours: float | None = None
    out: Path = Path("benchmarks")
    runs: Path = Path("runs/referee")
    command: str = "pipeline-referee"

    @property
    def pairs(self) -> list[tuple[Network, Rule]]:
        """Every rule on every network that it takes."""
        return [(net, rule) for net in self.networks for rule in self.rules if rule.fits(net)]


def tasks_of(request: Request) -> list[Task]:
    """All of them, in the order in which they are begun."""
    tasks = [Task(net, rule, "speed") for net, rule in request.pairs]
    for round_, seed in enumerate(request.seeds):
        for network, rule in request.pairs:
            if round_ == 0:
                searched = searching(rule, request.table)
                tasks += [Task(network, searched, "search", value) for value in searched.values]
                if needs_proof(network, rule, request):
                    tasks.append(Task(network, rule, "locality"))
            tasks.append(Task(network, rule, "train", seed=seed))
    return list({task.path: task for task in tasks}.values())  # a search may count for several


def searching(rule: Rule, table: Table) -> Rule:
    """The rule whose search counts for this one."""
    return rule if rule.search_of is None else table.rules[rule.search_of]


def needs_proof(network: Network, rule: Rule, request: Request) -> bool:
    """Whether there is locality to be proven: not of global backprop."""
    config = config_of(Task(network, rule, "locality"), request)
    return not config.loss.is_global


def config_of(task: Task, request: Request, value: Any = None) -> Config:
    """The config of a task.

    Args:
        value: of a run that counts, what its search has found best; None: the first of the values.

    Raises:
        ConfigError: for all that is wrong with it.
    """
    network, rule = task.network, task.rule
    said = f"pipeline-referee, {network.name}/{rule.name}"
    tree = deepcopy(request.table.tree(network, rule))
    is_search = task.kind == "search"
    tried = task.value if is_search else value
    before = {
        rule.key: rule.values[0] if tried is None else tried,
        "schedule.epochs": network.search_epochs if is_search else network.epochs,
        "runtime.eval_depths": True,
        "runtime.eval_every_epochs": NEVER,
        "runtime.keep_best": False,
        "runtime.keep_checkpoints": 1,
    }
    if request.data is not None:
        before["data.root"] = request.data
    for key, setting in before.items():
        set_value(tree, key, setting, said)
    after: dict[str, Any] = {"runtime.seed": task.seed}
    if is_search:
        after["data.validation"] = VALIDATION
    config = config_from(tree, said, request.overrides, after)
    if task.kind != "speed":
        return config
    of_an_epoch = config.data.batch_size * network.speed_steps
    images = min(of_an_epoch, config.data.train_limit or MAX_EPOCHS)
    of_speed = {
        **after,
        "schedule.epochs": SPEED_EPOCHS,
        "data.train_limit": images,
        "runtime.eval_every_epochs": 0,
    }
    return config_from(tree, said, request.overrides, of_speed)
