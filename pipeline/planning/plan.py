"""Blocks -> stages -> devices, from what each block costs; and how fast that can be. Pure.

    blocks   0  1  2  3  4  5        a stage is consecutive blocks: the slowest made fastest
    stages   0  0  1  2  2  3
    devices  a  a  b  c  c  a        a stage goes on any device: the busiest made least busy,
                                     then little sent from one to another

Nothing flows upstream and there is no bubble, so a pipeline is as fast as its busiest device
(section 8 of the design). Devices count as equally fast, and all of them are used. Every
choice is a function of the costs alone: the same costs are planned the same way everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pipeline.errors import STAGES, ConfigError, Option
from pipeline.network.specs import stage_units
from pipeline.planning.cost import estimated_bytes
from pipeline.planning.placement import busiest, most_even_cuts, place, smallest_peak

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.network.specs import BlockSpec
    from pipeline.planning.cost import BlockCost


@dataclass(frozen=True, slots=True)
class StageCost:
    """Costs of consecutive blocks together, in the units of `BlockCost`; of `train_macs` the part
    that one process does, on an average batch."""

    parameters: int
    head_parameters: int
    train_macs: int
    sent_bytes: int
    estimated_bytes: int


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One process: which blocks (by index, consecutive) on which device. `member` of `members`:
    which it is of a team that trains the same blocks; teams are consecutive. `in_rounds`: members
    take batches by turns, else each takes a share of every batch."""

    stage: int
    blocks: tuple[int, ...]
    device: str
    member: int = 0
    members: int = 1
    in_rounds: bool = False

    @property
    def place(self) -> int:
        """Its place among the processes of its team: replicas stand in the order of rounds, the
        last first."""
        return self.members - 1 - self.member if self.in_rounds else self.member

    @property
    def host(self) -> str:
        """The host that its device is on, of `hostA/cuda:0`; empty: the launcher's machine."""
        return self.device.rpartition("/")[0]

    @property
    def blocks_in_words(self) -> str:
        """As "block 0" or "blocks 2–3"."""
        first, last = self.blocks[0], self.blocks[-1]
        return f"block {first}" if first == last else f"blocks {first}–{last}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Where every block is trained. `fed_from`: the host of the coordinator, which reads the data;
    empty: the machine of the launcher, as `StagePlan.host`."""

    stages: tuple[StagePlan, ...]
    fed_from: str = ""

    @property
    def n_stages(self) -> int:
        """How many worker processes this plan needs."""
        return len(self.stages)

    @property
    def n_blocks(self) -> int:
        """How many blocks the network has."""
        return len({block for stage in self.stages for block in stage.blocks})

    @property
    def members(self) -> int:
        """How many processes hold the whole network; 1 for a pipeline."""
        return 1 if self.stages[0].in_rounds else self.stages[0].members

    def name(self, stage: int) -> str:
        """How people call one of the processes."""
        plan = self.stages[stage]
        if self.members > 1:
            return f"member {stage}"
        return f"stage {stage}" + (f", replica {plan.member}" if plan.in_rounds else "")

    def team(self, stage: int) -> list[StagePlan]:
        """The processes that train the same blocks, in order of member."""
        own = self.stages[stage]
        others = (one for one in self.stages if one.blocks == own.blocks)
        return sorted(others, key=lambda one: one.member)

    def in_one_process(self) -> Plan:
        """What single mode does: one block after the other, on the device of the first stage."""
        if any(stage.members > 1 for stage in self.stages):
            return self  # there, too, each member holds its blocks
        blocks = tuple(block for stage in self.stages for block in stage.blocks)
        return Plan((StagePlan(0, blocks, self.stages[0].device),))

    @property
    def blocks_of_devices(self) -> dict[str, tuple[int, ...]]:
        """Which blocks each device holds, with those of every process there."""
        found: dict[str, tuple[int, ...]] = {}
        for stage in self.stages:
            found[stage.device] = (*found.get(stage.device, ()), *stage.blocks)
        return found

    def stage_costs(self, costs: Sequence[BlockCost]) -> list[StageCost]:
        """What each stage costs, given what the blocks do. Members of a team do a part of the
        multiply-adds each: of every batch a share, or of so many batches one."""
        found = []
        for stage in self.stages:
            whole = stage_cost([costs[block] for block in stage.blocks])
            found.append(replace(whole, train_macs=whole.train_macs // stage.members))
        return found

    def received_bytes(
        self, costs: Sequence[BlockCost], examples: int, example_bytes: int, target_bytes: int
    ) -> tuple[int, ...]:
        """What crosses the link to each stage with a batch, headers aside: the first is sent
        examples as they leave the data set, each other what the one before it passes on, which in
        a team that holds the whole network are the same examples; all are sent targets."""
        if self.members > 1:
            return (examples * (example_bytes + target_bytes),) * self.members
        stages = self.stage_costs(costs)
        per_example = (example_bytes, *(stage.sent_bytes for stage in stages[:-1]))
        return tuple(examples * (nbytes + target_bytes) for nbytes in per_example)

    def tree(self, costs: Sequence[BlockCost] = ()) -> dict[str, Any]:
        """Plain JSON values, for plan.json."""
        stages = [
            {
                "stage": plan.stage,
                "device": plan.device,
                "blocks": list(plan.blocks),
                **({"member": plan.member} if plan.members > 1 else {}),
                **({"in_rounds": True} if plan.in_rounds else {}),
            }
            for plan in self.stages
        ]
        return {"stages": stages, "costs": [cost.tree() for cost in costs]}


def stage_cost(costs: Sequence[BlockCost]) -> StageCost:
    """Cost of a stage that holds these consecutive blocks; it sends what its last block sends."""
    return StageCost(
        parameters=sum(cost.parameters for cost in costs),
        head_parameters=sum(cost.head_parameters for cost in costs),
        train_macs=sum(cost.train_macs for cost in costs),
        sent_bytes=costs[-1].sent_bytes,
        estimated_bytes=estimated_bytes(costs),
    )


def make_plan(
    specs: Sequence[BlockSpec],
    costs: Sequence[BlockCost],
    *,
    stages: int | None,
    devices: Sequence[str],
    loads: Sequence[int] | None = None,
) -> Plan:
    """Divide the blocks into stages and place these on devices.

    Args:
        stages: how many; None means as many as there can be, one per hidden layer unless layers
            learn in groups or a shortcut spans them. The output block joins the last.
        devices: at least one; stage 0 gets the first.
        loads: what each block costs, in any unit; None: its multiply-adds.

    Raises:
        ConfigError: where there is no stage, or more stages than the network can be cut into.
    """
    assert devices, "no device to place stages on"
    units = stage_units(specs)
    n_stages = len(units) if stages is None else stages
    _check_stages(n_stages, specs, len(units))
    loads = [cost.train_macs for cost in costs] if loads is None else loads
    cuts = most_even_cuts([sum(loads[spec.index] for spec in unit) for unit in units], n_stages)
    groups = [
        tuple(spec.index for unit in units[start:end] for spec in unit)
        for start, end in pairwise(cuts)
    ]
    # a stage of which nothing is known counts as something, or a device might be left without
    sums = [max(1, sum(loads[block] for block in group)) for group in groups]
    traffic = [costs[group[-1]].sent_bytes for group in groups[:-1]]
    placement = place(sums, len(devices), traffic)
    return Plan(
        tuple(
            StagePlan(stage, group, devices[device])
            for stage, (group, device) in enumerate(zip(groups, placement, strict=True))
        )
    )


def with_replicas(
    plan: Plan,
    replicas: Mapping[int, int],
    costs: Sequence[BlockCost],
    devices: Sequence[str],
    loads: Sequence[int] | None = None,
) -> Plan:
    """The plan with as many processes for each stage as its blocks have replicas, placed anew.

    The first of them takes the last batch of a round, so that it has passed on the others' when it
    begins to work: see `docs/design/exchange.md`.

    Raises:
        ConfigError: where blocks of one stage have different numbers.
    """
    loads = [cost.train_macs for cost in costs] if loads is None else loads
    grown: list[tuple[tuple[int, ...], int, int]] = []
    for stage in plan.stages:
        numbers = {replicas.get(block, 1) for block in stage.blocks}
        if len(numbers) > 1:
            named = ", ".join(f"block {b} {replicas.get(b, 1)}" for b in stage.blocks)
            raise ConfigError(
                f"parallel.replicas: stage {stage.stage} has blocks with different numbers of "
                f"replicas ({named}): divide them otherwise, with ",
                *(STAGES, " or ", Option("plan")),
            )
        (number,) = numbers
        grown += [(stage.blocks, member, number) for member in reversed(range(number))]
    sums = [max(1, sum(loads[b] for b in blocks) // number) for blocks, _, number in grown]
    traffic = [costs[blocks[-1]].sent_bytes for blocks, _, _ in grown[:-1]]
    placement = place(sums, len(devices), traffic)
    stages = tuple(
        StagePlan(at, blocks, devices[device], member, number, number > 1)
        for at, ((blocks, member, number), device) in enumerate(zip(grown, placement, strict=True))
    )
    return replace(plan, stages=stages)


def plan_members(specs: Sequence[BlockSpec], members: int, devices: Sequence[str]) -> Plan:
    """A process for each member of a team that holds the whole network, on devices in turn."""
    blocks = tuple(spec.index for spec in specs)
    return Plan(
        tuple(
            StagePlan(member, blocks, devices[member % len(devices)], member, members)
            for member in range(members)
        )
    )


def speedup_bound_consecutive(costs: Sequence[BlockCost | StageCost], n_devices: int) -> float:
    """How many times faster than one device, where each device takes consecutive parts."""
    loads = [cost.train_macs for cost in costs]
    return sum(loads) / smallest_peak(loads, n_devices)


def speedup_bound_free(costs: Sequence[BlockCost | StageCost], n_devices: int) -> float:
    """How many times faster than one device, where any device takes any part.

    Exact unless the search meets its limits; then what the best placement found gives.
    """
    loads = [cost.train_macs for cost in costs]
    return sum(loads) / busiest(loads, place(loads, n_devices))


def _check_stages(n_stages: int, specs: Sequence[BlockSpec], most: int) -> None:
    if n_stages < 1:
        raise ConfigError(STAGES, f" {n_stages}: at least 1 stage is needed; use 1 to {most}")
    if n_stages > most:
        hidden = sum(not spec.is_output for spec in specs)
        model = f"the model ({specs[0].name} … {specs[-1].name})"
        why = f"every stage needs a hidden layer, and {model} has {hidden}"
        if hidden > most:
            why = (
                f"{model} has {hidden} hidden layers in {most} parts that can't be divided, "
                "because layers learn in groups (model.group) or a residual connection spans them "
                "(model.residual)"
            )
        raise ConfigError(STAGES, f" {n_stages}: {why}; use ", STAGES, f" {most} or fewer")
