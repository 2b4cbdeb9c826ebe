"""How long tasks are expected to take: by what the same has taken before, else by the speed that
was measured, else by the cost model.

Seconds of one core that nothing else uses; several tasks at once divide them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.plan.checks import network_costs
from launch.referee.tasks import Task, config_of, searching
from pipeline.data.facts import data_facts
from pipeline.network.from_config import network_specs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from launch.referee.rows import Row, Rows
    from launch.referee.table import Network, Rule
    from launch.referee.tasks import Request
    from pipeline.network.specs import BlockSpec
    from pipeline.planning.cost import BlockCost

ASSUMED_RATE = 25e9
"""Multiply-adds a second of a core, where nothing has been measured yet."""
START_S = 8.0
"""To start a process, import torch, read the data, write a checkpoint."""
_FORWARD = 1 / 3
"""Share of a training step that an example takes in a test."""
_PROOF_S = 30.0


class Expectation:
    """Of the tasks of a request, by the rows that there are."""

    def __init__(self, request: Request, rows: Rows) -> None:
        self._request, self._rows = request, rows
        self._by_costs: dict[tuple[str, str], float] = {}
        self._rows_tested: dict[tuple[str, str], float] = {}
        self._lengths: dict[tuple[str, str, str], tuple[int, float]] = {}

    def seconds(self, task: Task) -> float:
        """What a task takes."""
        if task.kind == "locality":
            return _PROOF_S
        epochs, images = self._length(task)
        before = [
            row.result["wall_s"]
            for row in self._like(task)
            if "wall_s" in row.result and row.config["schedule"]["epochs"] == epochs
        ]
        if before:
            return float(sum(before) / len(before))
        return START_S + images / self.images_per_s(task.network, task.rule)

    def _length(self, task: Task) -> tuple[int, float]:
        """Epochs of a task, and as many images as what it trains and tests counts for; the same of
        all values and seeds."""
        key = (task.network.name, task.rule.name, task.kind)
        if key not in self._lengths:
            config = config_of(task, self._request)
            facts = data_facts(config.data)
            images = float(config.schedule.epochs * facts.train_images)
            if task.kind != "speed":
                rows = self._rows_tested_per_trained(task.network, task.rule)
                images += facts.test_images * rows * _FORWARD
            self._lengths[key] = config.schedule.epochs, images
        return self._lengths[key]

    def images_per_s(self, network: Network, rule: Rule) -> float:
        """The speed of one process, as measured, or as expected."""
        row = self._rows.of(Task(network, rule, "speed"))
        if row is not None and row.result.get("images_per_s"):
            return float(row.result["images_per_s"])
        key = (network.name, rule.name)
        if key not in self._by_costs:
            specs, costs = self._network(network, rule)
            self._rows_tested[key] = specs[0].in_tests.rows / specs[0].in_training.rows
            self._by_costs[key] = ASSUMED_RATE / max(1, sum(cost.train_macs for cost in costs))
        return self._by_costs[key]

    def is_measured(self, network: Network, rule: Rule) -> bool:
        """Whether there is a measurement."""
        return self._rows.of(Task(network, rule, "speed")) is not None

    def _rows_tested_per_trained(self, network: Network, rule: Rule) -> float:
        """A rule may try every class in a test, or learn from several copies."""
        key = (network.name, rule.name)
        if key not in self._rows_tested:
            first = self._network(network, rule)[0][0]
            self._rows_tested[key] = first.in_tests.rows / first.in_training.rows
        return self._rows_tested[key]

    def _network(
        self, network: Network, rule: Rule
    ) -> tuple[Sequence[BlockSpec], Sequence[BlockCost]]:
        """A user's network and a rule are traced for this, which takes seconds."""
        config = config_of(Task(network, rule, "speed"), self._request)
        specs = network_specs(config, data_facts(config.data))
        return specs, network_costs(config, specs)

    def _like(self, task: Task) -> Iterable[Row]:
        """Rows of tasks that do the same work: other seeds, other values."""
        kin = [Task(task.network, task.rule, "train", seed=seed) for seed in self._request.seeds]
        if task.kind == "search":
            rule = searching(task.rule, self._request.table)
            kin = [Task(task.network, rule, "search", value) for value in rule.values]
        elif task.kind == "speed":
            kin = [task]
        return [row for one in kin if (row := self._rows.of(one)) and not row.failed]
