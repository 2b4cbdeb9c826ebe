"""Has a proof carried out in other processes, and judges what they have found. Without torch."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from shutil import disk_usage
from typing import TYPE_CHECKING

from pipeline.config.sections import config_tree
from pipeline.errors import ConfigError, StageFailedError
from pipeline.locality.folder import Asked, ProofFolder
from pipeline.locality.trace import first_difference
from pipeline.network.specs import learning_units
from pipeline.signals import signals_held
from pipeline.system.interpreter import python_command, python_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.locality.trace import Difference, Fault
    from pipeline.network.specs import BlockSpec

_UNCHECKED_BYTES = 64 << 20
"""Of a tape: room for so much is not asked for."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of `blocks` blocks that were trained alone from `batches` batches. `findings`: a line for
    each that did not do the same; none where all is local."""

    blocks: int
    batches: int
    findings: tuple[str, ...]


def tape_bytes(config: Config, facts: DataFacts, specs: Sequence[BlockSpec], steps: int) -> int:
    """What the tapes of a proof take on a disk."""
    units = learning_units(specs)
    examples = sum(unit[0].in_training.example_bytes(unit[0].in_shape) for unit in units[1:])
    each = facts.example_bytes + examples + len(units) * facts.target_bytes
    return each * config.data.batch_size * steps


def ask(
    config: Config,
    facts: DataFacts,
    specs: Sequence[BlockSpec],
    *,
    device: str,
    steps: int,
    folder: Path,
    initial: Mapping[int, bytes],
) -> None:
    """Prepare a proof in a folder that is empty.

    Args:
        initial: what blocks begin with that another run has learned (`Initial.files`).

    Raises:
        ConfigError: for global backprop, and where the tapes would not fit.
    """
    if config.loss.is_global:
        raise ConfigError(
            f"loss.name {config.loss.name} is global backprop: every block learns from the error "
            "of the last one, so there is nothing to prove; local are pred, sim, predsim and rules"
        )
    needed, free = tape_bytes(config, facts, specs, steps), disk_usage(folder).free
    if needed > max(free, _UNCHECKED_BYTES):
        raise ConfigError(
            f"what the blocks receive in {steps} steps takes {needed / 1e9:.1f} GB, and "
            f"{folder.parent} has {free / 1e9:.1f} GB free: use fewer steps, a smaller "
            "data.batch_size, or another folder for temporary files (TMPDIR)"
        )
    units = tuple(tuple(spec.index for spec in unit) for unit in learning_units(specs))
    ProofFolder(folder).ask(Asked(config_tree(config), device, steps, units), initial)


def carry_out(folders: Sequence[Path]) -> None:
    """Record and retrain, for all that was asked in these folders, in new processes.

    Raises:
        StageFailedError: where these can't be had.
    """
    command = python_command("pipeline.locality.process", os.getpid(), *map(str, folders))
    with signals_held(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are ended from here
        process = subprocess.Popen(command, env=python_environment(), stdin=subprocess.DEVNULL)
    try:
        status = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if status:
        raise StageFailedError(f"the process that trains blocks alone ended with status {status}")


def judge(config: Config, specs: Sequence[BlockSpec], folder: Path) -> Verdict:
    """What a proof that was carried out has shown.

    Raises:
        StageFailedError: where the whole network could not be trained.
    """
    proof, units = ProofFolder(folder), learning_units(specs)
    recorded, findings = proof.recorded(), []
    for trace in recorded:
        if (fault := trace.fault) is not None:
            text = f"the whole network can't be trained: {fault.text}"
            if fault.block is not None:
                text = _failed(config, specs[fault.block], fault, "in the whole network")
            raise StageFailedError(text, fault.traceback)
    for at, unit in enumerate(units):
        alone = proof.alone(at)
        if found := first_difference(recorded[at], alone, unit[-1].index):
            findings.append(f"{_block(config, specs[found.block])}: {_differs(found)}")
        elif alone.fault is not None:
            spec = unit[-1] if alone.fault.block is None else specs[alone.fault.block]
            findings.append(_failed(config, spec, alone.fault, "alone, from what it received"))
    return Verdict(len(specs), max(len(trace.steps) for trace in recorded), tuple(findings))


def _block(config: Config, spec: BlockSpec) -> str:
    """A block, and what it learns from."""
    whose = [f"model.factory {config.model.factory}"] if spec.custom else []
    if spec.is_output:
        whose = whose or ["output layer"]
    elif config.loss.rule is not None:
        whose.insert(0, f"rule {config.loss.rule}")
    else:
        whose = whose or [f"loss {config.loss.name}"]
    return f"block {spec.index} ({', '.join(whose)})"


def _differs(found: Difference) -> str:
    return (
        f"trained alone from what it received, {found.tensor or 'what it passes on'} differs "
        f"{found.when}: it uses something besides what arrived"
    )


def _failed(config: Config, spec: BlockSpec, fault: Fault, how: str) -> str:
    text = fault.text  # may name rule and block as well
    for named in (f"loss.rule {config.loss.rule}: ", f"block {spec.index}: "):
        text = text.removeprefix(named)
    at = f", at batch {fault.batch_id}" if fault.batch_id else ""
    return f"{_block(config, spec)}: fails {how}{at}: {text}"
