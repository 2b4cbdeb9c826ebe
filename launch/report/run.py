"""One run of a report: what lies in its folder, what its network does, and names of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.report.looks import Looks
    from launch.report.material import Material
    from pipeline.planning.plan import StageCost


@dataclass(frozen=True, slots=True)
class Run:
    """`number`: its place among the runs of the page."""

    number: int
    files: Material
    looks: Looks

    @property
    def name(self) -> str:
        """What the page calls it."""
        return self.files.name

    @property
    def n_blocks(self) -> int:
        """As far as is known."""
        plan = self.files.plan
        planned = plan.n_blocks if plan else 0
        reported = max((len(line.get("blocks") or ()) for line in self.files.lines), default=0)
        return len(self.looks.blocks) or planned or reported

    @property
    def stage_costs(self) -> list[StageCost]:
        """Of each stage of the plan; none where they are not known."""
        plan, costs = self.files.plan, self.files.costs
        if plan is None or len(costs) != plan.n_blocks:
            return []
        return plan.stage_costs(costs)

    @property
    def estimated_bytes(self) -> list[int]:
        """Of training, by process: of each stage, or of all in one; none where they are not
        known."""
        plan, costs = self.files.plan, self.files.costs
        if plan is None or not self.stage_costs:
            return []
        stages = plan.in_one_process().stage_costs(costs) if self.files.single else self.stage_costs
        estimates = [cost.estimated_bytes for cost in stages]
        return [sum(estimates)] if self.files.single else estimates  # a team, too, in one process

    def block_name(self, block: int) -> str:
        """As `2 conv 64→128`; its number alone where the rest is not known."""
        names = self.looks.blocks
        if block < len(names):
            return f"{block} {names[block]}"
        for line in self.files.lines[-1:]:
            for each in line.get("blocks") or ():
                if each.get("block") == block and each.get("name"):
                    return f"{block} {each['name']}"
        return f"block {block}"

    def blocks_of(self, stage: int) -> str:
        """The names of a stage's blocks."""
        plan = self.files.plan
        if plan is None or stage >= plan.n_stages:
            return "blocks not known"
        return ", ".join(map(self.block_name, plan.stages[stage].blocks))
