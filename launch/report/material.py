"""What lies in a run's folder, as a report needs it: read, and nothing computed."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from launch.machine.provenance import PROVENANCE_FILE, is_provenance
from launch.read_run import as_option_of_a_run
from launch.run_directory import PLAN, epoch_lines
from pipeline.config.config_file import config_of
from pipeline.config.sections import config_tree
from pipeline.errors import ConfigError, worded
from pipeline.planning.cost import BlockCost
from pipeline.planning.plan import Plan, StagePlan
from pipeline.run.timeline_file import TRACE
from pipeline.storage.checkpoint_writer import CONFIG, DATA
from pipeline.trained.run_folder import NoCheckpointError, checkpoint_at, open_run

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.storage.folder import Folder


@dataclass(frozen=True, slots=True)
class Material:
    """Of one run.

    `lines`: of metrics.jsonl, those of epochs that were trained. `plan`, `costs`: None and none
    where there is no such file. `data`, `starts`: as data.json and provenance.json have them.
    `config`: the file's text. `trace`: its events, None where there is no trace.
    """

    name: str
    path: Path
    step: int | None
    """Of the checkpoint that is looked at; None where there is none."""
    lines: list[dict[str, Any]]
    plan: Plan | None
    costs: tuple[BlockCost, ...]
    single: bool
    config: str
    data: dict[str, Any]
    starts: list[dict[str, Any]]
    trace: list[dict[str, Any]] | None
    batch_size: int
    loss: str

    @property
    def last_step(self) -> int:
        """Of the checkpoint, else of the last epoch; 0 where no file tells."""
        if self.step is not None:
            return self.step
        told = self.lines[-1].get("step") if self.lines else None
        return told if isinstance(told, int) else 0


def read_material(path: Path, name: str, checkpoint: str | int) -> Material:
    """Read a run's folder; what is not there, or not as it should be, is left out.

    Raises:
        ConfigError: where it is no run's folder, has no such checkpoint, or neither a checkpoint
            nor an epoch to show.
        CheckpointError: where the manifest of that is damaged.
    """
    with worded(as_option_of_a_run), open_run(path) as run:
        lines, text = epoch_lines(run.path), _read(run, CONFIG).decode(errors="replace")
        try:
            found = checkpoint_at(run, checkpoint)
            step, config = found.state.position.step, found.config
        except NoCheckpointError:  # removed, to save room, or the first is not yet written
            if not lines or checkpoint != "last":
                raise
            step, config = None, _config(text)
        plan = _tree(run, PLAN)
        starts = json_value(_read(run, PROVENANCE_FILE))
        trace = _tree(run, TRACE).get("traceEvents")
        return Material(
            name=name,
            path=path,
            step=step,
            lines=lines,
            plan=_plan(plan),
            costs=_costs(plan),
            single=bool(plan.get("single")),
            config=text,
            data=_tree(run, DATA),
            starts=list(filter(is_provenance, starts if isinstance(starts, list) else [])),
            trace=trace if isinstance(trace, list) else None,
            batch_size=int(config.get("data", {}).get("batch_size", 0) or 0),
            loss=_loss(config),
        )


def _config(text: str) -> dict[str, Any]:
    """Of what the file says; nothing, where this version can't read it."""
    with suppress(ConfigError):
        return config_tree(config_of(text, CONFIG))
    return {}


def _loss(config: dict[str, Any]) -> str:
    section = config.get("loss", {})
    rule = str(section.get("rule") or "")
    bio = "-bio" if section.get("bio") else ""
    return rule.rpartition(":")[2] or f"{section.get('name', '')}{bio}"


def _read(run: Folder, name: str) -> bytes:
    with suppress(OSError):
        return run.read(name)
    return b""


def json_value(data: bytes) -> Any:
    """What a file holds; None where it is no JSON."""
    with suppress(ValueError, RecursionError):
        return json.loads(data)
    return None


def _tree(run: Folder, name: str) -> dict[str, Any]:
    found = json_value(_read(run, name))
    return found if isinstance(found, dict) else {}


def _plan(tree: dict[str, Any]) -> Plan | None:
    with suppress(KeyError, TypeError, ValueError):
        blocks = [tuple(map(int, stage["blocks"])) for stage in tree["stages"]]
        stages = [
            StagePlan(
                place,
                blocks[place],
                str(stage["device"]),
                member=int(stage.get("member", 0)),
                members=blocks.count(blocks[place]),
                in_rounds=bool(stage.get("in_rounds")),
            )
            for place, stage in enumerate(tree["stages"])
        ]
        return Plan(tuple(stages)) if stages else None
    return None


def _costs(tree: dict[str, Any]) -> tuple[BlockCost, ...]:
    """Early versions had fewer fields."""
    known = {each.name for each in fields(BlockCost)}
    with suppress(KeyError, TypeError, AttributeError):
        return tuple(
            BlockCost(**{key: value for key, value in cost.items() if key in known})
            for cost in tree["costs"]
        )
    return ()
