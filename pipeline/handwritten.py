"""Files that people write beside a config: a device that is imagined, a plan of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pipeline.errors import ConfigError
from pipeline.plan import Plan, StagePlan
from pipeline.schema import Field, Section, checked
from pipeline.specs import stage_units
from pipeline.yamlfile import load_tree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.specs import BlockSpec


class AssumedDevice(Section):
    """A device to plan for: `--assume FILE`. All devices are of this kind."""

    macs_per_s: float = Field(ge=1e3, le=1e18)
    """Multiply-adds per second that training reaches on it, not what its data sheet says."""
    memory_bytes: float = Field(gt=0, le=1e18)
    """What the blocks on it may need together."""
    link_bytes_per_s: float = Field(ge=1e3, le=1e18)
    """From one device to another."""
    link_latency_s: float = Field(default=0.0, ge=0, le=1e3)
    """Until the first byte has arrived."""
    overhead_s: float = Field(default=0.0, ge=0, le=1e3)
    """Of each block and batch, whatever its size: starting kernels."""


class MeasuredBlock(Section):
    """What one batch takes, in seconds: until the block can send, and after."""

    block: int
    name: str
    forward_s: float = Field(ge=0, le=1e6)
    learn_s: float = Field(ge=0, le=1e6)


class MeasuredCosts(Section):
    """What was measured of a network on a device; a person may change any number."""

    network: str
    device: str
    batch_size: int
    measured: str
    copied_per_s: float = Field(ge=1e3)
    """Bytes per second that a process copies into a slot of the next stage; between CUDA devices,
    where nobody waits for it, the bytes that get there."""
    feed_s: float = Field(default=0.0, ge=0, le=1e6)
    """What the coordinator needs to prepare a batch."""
    hop_s: float = Field(default=0.0, ge=0, le=1e6)
    """What a batch's hop to the next process takes a CPU, at both ends, beside the copy."""
    crowded_speed: float = Field(default=1.0, gt=0, le=1e3)
    """Speed of a stage on a CPU while `crowd` of them work, or more, over what it is alone, beside
    the turns that they take where cores are fewer; above 1 where the machine had other work when
    it was measured alone."""
    crowd: int = Field(default=2, ge=2)
    blocks: Annotated[tuple[MeasuredBlock, ...], Field(strict=False, min_length=1)]


class _Stage(Section):
    blocks: Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
    device: str
    stage: int | None = None


class _PlanFile(Section):
    stages: Annotated[tuple[_Stage, ...], Field(strict=False, min_length=1)]
    single: bool = False
    costs: Annotated[tuple[dict[str, float | bool], ...], Field(strict=False)] = ()


def load_device(path: Path) -> AssumedDevice:
    """Read `--assume FILE`.

    Raises:
        ConfigError: naming file, key, value and rule.
    """
    return checked(AssumedDevice, load_tree(path), str(path))


def load_costs(path: Path, specs: Sequence[BlockSpec], batch_size: int) -> MeasuredCosts:
    """Read what was measured.

    Raises:
        ConfigError: naming file, key, value and rule.
    """
    costs = checked(MeasuredCosts, load_tree(path), str(path))
    cure = "change it back, or remove the file and measure again with --measure"
    if costs.batch_size != batch_size:
        raise ConfigError(
            f"{path}: batch_size: {costs.batch_size}, but these are the costs of batches of "
            f"{batch_size}; {cure}"
        )
    found = [(block.block, block.name) for block in costs.blocks]
    expected = [(spec.index, spec.name) for spec in specs]
    if found != expected:
        raise ConfigError(f"{path}: blocks must be {expected} in order, found {found}; {cure}")
    return costs


def load_plan(path: Path, specs: Sequence[BlockSpec], devices: Sequence[str]) -> Plan:
    """Read `--plan FILE`: the `stages` of a plan.json, as written by a run or by hand.

    Args:
        devices: that there are.

    Raises:
        ConfigError: where it is no plan, not for this network, or not for these devices.
    """
    stages = checked(_PlanFile, load_tree(path), str(path)).stages
    _check_blocks(path, [stage.blocks for stage in stages], specs)
    for number, stage in enumerate(stages):
        if stage.stage not in (None, number):
            raise ConfigError(f"{path}: stage {stage.stage} stands where stage {number} belongs")
        if stage.device not in devices:
            raise ConfigError(
                f"{path}: stage {number} is on {stage.device}, which is none of the devices "
                f"{', '.join(devices)}; change it there or give other --gpus"
            )
    return Plan(tuple(StagePlan(n, s.blocks, s.device) for n, s in enumerate(stages)))


def _check_blocks(
    path: Path, groups: Sequence[tuple[int, ...]], specs: Sequence[BlockSpec]
) -> None:
    found = [block for group in groups for block in group]
    if found != list(range(len(specs))):
        raise ConfigError(
            f"{path}: the stages' blocks must be 0 to {len(specs) - 1}, each once and in order; "
            f"found {found}"
        )
    beginnings = {unit[0].index for unit in stage_units(specs)}
    for number, group in enumerate(groups):
        if group[0] not in beginnings:
            raise ConfigError(
                f"{path}: stage {number} can't begin with block {group[0]} "
                f"({specs[group[0]].name}): it stays with the block before it, because they learn "
                "together (global backprop, model.group), a residual connection spans them, or it "
                f"is the output; stages may begin with {', '.join(map(str, sorted(beginnings)))}"
            )
