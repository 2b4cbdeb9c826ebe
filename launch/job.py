"""What the command line asks for (`Options`), and the checked run that is made of it (`Job`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from pipeline.storage.checkpoint import Initial, RunState

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.data.own_data import OwnData
    from pipeline.network.specs import BlockSpec
    from pipeline.planning.cost import BlockCost
    from pipeline.planning.plan import Plan
    from pipeline.planning.prediction import Timing
    from pipeline.rehearsal.rehearsal import Rehearsal

ViewKind: TypeAlias = Literal["auto", "live", "plain", "quiet"]


@dataclass(frozen=True, slots=True)
class KnownSpeed:
    """What is known of a job's speed. `source`: where the times are from, for people.
    `memory_bytes`: of a device; None where it is not known."""

    timing: Timing
    source: str
    memory_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    config: Path | None
    stages: int | None = None
    gpus: str | None = None
    single: bool = False
    overrides: tuple[str, ...] = ()
    run_dir: Path | None = None
    resume: bool = False
    dry_run: bool = False
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    ray_insecure: bool = False
    view: ViewKind = "auto"
    plan: Path | None = None
    assume: Path | None = None
    measure: bool = False
    trace: int | None = None
    data_parallel: int | None = None
    replicas: tuple[str, ...] = ()
    command: str = ""
    """What was called, for the run's provenance."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run that has been checked and can start."""

    name: str
    config: Config
    facts: DataFacts
    """Of its data, as planned: what is measured of them (`data.normalise`) is not known yet."""
    specs: tuple[BlockSpec, ...]
    costs: tuple[BlockCost, ...]
    plan: Plan
    known_speed: KnownSpeed | None = None
    single: bool = False
    """Whether one process trains all stages."""
    own_code: tuple[str, ...] = ()
    """Names of the user's own modules that were imported to plan their network."""
    rehearsal: Rehearsal | None = None
    """What was found out about a user's own network."""
    auto_replicas: bool = False
    """Whether `--replicas auto` was to find stages that more processes help."""
    too_large: str = ""
    """Why this machine's memory can't hold it; only a dry run goes on with that."""
    milestones_for: int | None = None
    """The epochs that stand beside the milestones in the config, where `--set` changed only
    these."""
    own_data: OwnData | None = None
    """Data of the user's own, as they were read to plan the run."""
    initial: Initial = field(default_factory=Initial)
    """What its blocks begin with that another run has learned; not looked for where the run is
    resumed."""

    @property
    def in_one_process(self) -> bool:
        """Whether one process trains it: in single mode, or by global backprop, unless that is
        shared out in a team."""
        return self.single or (self.config.loss.is_global and self.plan.members == 1)

    @property
    def beginning(self) -> RunState:
        """Where it starts that has not been trained yet."""
        return RunState(initial=self.initial)
