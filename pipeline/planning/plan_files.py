"""Files that people write beside a config: a device that is imagined, a plan of their own."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pipeline.config.schema import BeforeValidator, Field, Section, brief, checked
from pipeline.config.yaml_file import load_tree
from pipeline.errors import GPUS, ConfigError, cut
from pipeline.network.specs import stage_units
from pipeline.planning.plan import Plan, StagePlan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.network.specs import BlockSpec


class SpeedOfPrecision(Section):
    """Multiply-adds per second, for each `runtime.precision` of which they are known."""

    fp32: float | None = Field(default=None, ge=1e3, le=1e18)
    bf16: float | None = Field(default=None, ge=1e3, le=1e18)


def _of_a_precision(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(
            f"{value:g} is not allowed: a speed is that of a precision, write "
            f"{{bf16: {value:g}}} or {{fp32: {value:g}}}"
        )
    return value


class AssumedDevice(Section):
    """A device to plan for: `--assume FILE`. All devices are of this kind."""

    macs_per_s: Annotated[SpeedOfPrecision, BeforeValidator(_of_a_precision)]
    """Multiply-adds per second that training reaches on it, not what its data sheet says, for each
    precision."""
    memory_bytes: float = Field(gt=0, le=1e18)
    """What the blocks on it may need together."""
    link_bytes_per_s: float = Field(ge=1e3, le=1e18)
    """From one device to another."""
    link_latency_s: float = Field(default=0.0, ge=0, le=1e3)
    """Until the first byte has arrived."""
    network_bytes_per_s: float | None = Field(default=None, ge=1e3, le=1e18)
    """From one host to another; if left out, as from one device to another."""
    network_latency_s: float | None = Field(default=None, ge=0, le=1e3)
    """Until the first byte has arrived at another host; if left out, as at another device."""
    overhead_s: float = Field(default=0.0, ge=0, le=1e3)
    """Of each block and batch, whatever its size: starting kernels."""

    def speed(self, precision: Literal["fp32", "bf16"], source: str) -> float:
        """Multiply-adds per second; `source` is named in the error.

        Raises:
            ConfigError: where the file has none for this precision.
        """
        known = self.macs_per_s.model_dump(exclude_none=True)
        if precision not in known:
            others = "".join(f", or --set runtime.precision={name}" for name in known)
            raise ConfigError(
                f"{source}: macs_per_s.{precision}: is missing, and runtime.precision is "
                f"{precision}: add the speed that training reaches in {precision}{others}"
            )
        return float(known[precision])


_NO_LONGER = {"crowd", "hop_s"}
"""Keys of files that earlier versions have written, which the trial run has made superfluous."""


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
    copied_per_s: float = Field(ge=1e3, le=1e18)
    """Bytes per second that a process copies into a slot of the next stage; between CUDA devices,
    where nobody waits for it, the bytes that get there."""
    feed_s: float = Field(default=0.0, ge=0, le=1e6)
    """What the coordinator needs to prepare a batch."""
    crowded_speed: float = Field(default=1.0, ge=1e-3, le=1e3)
    """Speed of a CPU's stages while several work, over what each reaches alone, beside the turns
    that they take where cores are fewer: found by the trial run. Above 1 where the machine had
    other work when blocks were measured."""
    blocks: Annotated[tuple[MeasuredBlock, ...], Field(strict=False, min_length=1)]


class _Stage(Section):
    blocks: Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
    device: str
    stage: int | None = None
    member: int | None = None
    in_rounds: bool = False


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
    tree = load_tree(path)
    if isinstance(tree, dict):
        tree = {key: value for key, value in tree.items() if key not in _NO_LONGER}
    costs = checked(MeasuredCosts, tree, str(path))
    cure = "change it back, or remove the file and measure again with --measure"
    if costs.batch_size != batch_size:
        raise ConfigError(
            f"{path}: batch_size: {costs.batch_size}, but these are the costs of batches of "
            f"{batch_size}; {cure}"
        )
    found = [f"block {block.block}, {block.name}" for block in costs.blocks]
    expected = [f"block {spec.index}, {spec.name}" for spec in specs]
    for place, (one, other) in enumerate(zip_longest(found, expected, fillvalue="nothing")):
        if one != other:
            raise ConfigError(f"{path}: blocks.{place}: must be {other}; found {cut(one)}; {cure}")
    return costs


def load_plan(path: Path, specs: Sequence[BlockSpec], devices: Sequence[str]) -> Plan:
    """Read `--plan FILE`: the `stages` of a plan.json, as written by a run or by hand.

    Args:
        devices: that there are.

    Raises:
        ConfigError: where it is no plan, not for this network, or not for these devices.
    """
    found = checked(_PlanFile, load_tree(path), str(path)).stages
    # of replicas one stands for all, whose number is the configuration's
    stages = [stage for stage in found if not stage.member]
    if len(stages) < len(found):
        stages = [stage.model_copy(update={"stage": None}) for stage in stages]
    blocks = [block for stage in stages for block in stage.blocks]
    if blocks != list(range(len(specs))):
        raise ConfigError(
            f"{path}: the stages' blocks must be 0 to {len(specs) - 1}, each once and in order; "
            f"found {brief(blocks)}"
        )
    beginnings = {unit[0].index for unit in stage_units(specs)}
    for number, stage in enumerate(stages):
        first = stage.blocks[0]
        if first not in beginnings:
            raise ConfigError(
                f"{path}: stage {number} can't begin with block {first} ({specs[first].name}): it "
                "stays with the block before it, because they learn together (global backprop, "
                "model.group), a residual connection spans them, or it is the output; stages may "
                f"begin with {cut(', '.join(map(str, sorted(beginnings))))}"
            )
        if stage.stage not in (None, number):
            raise ConfigError(
                f"{path}: stage {brief(stage.stage)} stands where stage {number} belongs"
            )
        if stage.device not in devices:
            raise ConfigError(
                f"{path}: stage {number} is on {cut(stage.device)}, which is none of the devices "
                f"{cut(', '.join(devices))}; change it there or give other ",
                GPUS,
            )
    return Plan(tuple(StagePlan(n, s.blocks, s.device) for n, s in enumerate(stages)))
