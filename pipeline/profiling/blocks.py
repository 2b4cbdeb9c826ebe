"""How long a device takes for each block: measured, with batches of random numbers.

Means, not medians: where other work makes a step slow now and then, a run has these steps, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle
from statistics import fmean
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from pipeline.data.batches import load_batches
from pipeline.data.noise import noise_like
from pipeline.kernels.memory_layout import channels_last
from pipeline.learning.build import build_stage, prepare_process
from pipeline.network.from_config import network_specs
from pipeline.network.specs import stage_units
from pipeline.planning.prediction import BlockTimes
from pipeline.seeding import Purpose, generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.network.specs import BlockSpec

_WARM_UP = 3
"""Batches that count for nothing."""
SECONDS, _BATCHES = 0.5, 5
"""What is measured of each thing at least: what holds a machine up for a moment is to average
out."""
_COPIED_BYTES = 1 << 26


@dataclass(slots=True)
class _Laps:
    """Seconds of each batch until it was sent (None: it never is) and until it was learned."""

    device: torch.device
    forward_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    _began: float = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()

    def sent(self, *onwards: Tensor) -> None:
        self.forward_s.append(self.now() - self._began)

    def take(self, step: Callable[[], object]) -> None:
        """Time it again and again, for `SECONDS` and `_BATCHES` at least."""
        for _ in range(_WARM_UP):
            step()
        self.forward_s.clear()
        ends = perf_counter() + SECONDS
        while len(self.total_s) < _BATCHES or perf_counter() < ends:
            self._began = self.now()
            step()
            self.total_s.append(self.now() - self._began)


def measure_blocks(
    config: Config,
    facts: DataFacts,
    device_name: str,
    told: Callable[[str], None] = lambda text: None,
) -> tuple[BlockTimes, ...]:
    """Train each smallest part that can be a stage alone, for `SECONDS` and `_BATCHES` at least.

    Args:
        told: hears what is measured next.

    Returns:
        Means, one per block; in a part of several blocks the last one has all of it.
    """
    device = torch.device(device_name)
    prepare_process(device, config.runtime.threads_per_stage)
    specs = network_specs(config, facts)
    found: list[BlockTimes] = []
    for unit in stage_units(specs):
        told(f"block {unit[0].index} of {len(specs)}, {unit[0].name}")
        found += _measure_unit(UnitTrainer(config, facts, unit, device, specs), unit)
    return tuple(found)


def copied_per_s(device_names: Sequence[str]) -> float:
    """Bytes per second that one thread of this machine copies, or the first CUDA device to the
    second; where there is but one, within itself, which is faster."""
    device, beyond = torch.device(device_names[0]), torch.device(device_names[:2][-1])
    source, laps = torch.ones(_COPIED_BYTES, dtype=torch.uint8, device=device), _Laps(device)
    target = torch.empty_like(source, device=beyond)
    laps.take(lambda: target.copy_(source))
    return _COPIED_BYTES / fmean(laps.total_s)


def feed_s(config: Config) -> float:
    """Seconds that preparing a batch takes; reads the data set.

    Raises:
        ConfigError: where it is not there.
    """
    batches, laps = load_batches(config.data, config.runtime.seed), _Laps(torch.device("cpu"))
    indices = cycle(range(batches.steps_per_epoch))
    laps.take(lambda: batches.train(1, next(indices)))
    return fmean(laps.total_s)


class UnitTrainer:
    """The smallest part of a network that can be a stage, and a batch of random numbers, with what
    a rule carries beside it."""

    def __init__(
        self,
        config: Config,
        facts: DataFacts,
        unit: Sequence[BlockSpec],
        device: torch.device,
        specs: Sequence[BlockSpec],
    ) -> None:
        """`specs`: of the whole network."""
        indices = [spec.index for spec in unit]
        self.device = device
        self._stage = build_stage(config, facts, indices, device, specs=specs)
        n, self._batch_id = config.data.batch_size, 0
        made = noise_like(facts, n, generator(config.runtime.seed, Purpose.IMAGES))
        examples, targets = (torch.from_numpy(array).to(device) for array in made)
        first, arrival = unit[0], unit[0].in_training
        self._given: tuple[Tensor, ...] = (examples, targets)
        if first.index:
            shape = first.in_shape if arrival.shape is None else arrival.shape
            activations = torch.rand(arrival.rows * n, *shape, device=device)
            carried = (
                torch.rand(spec.rows * n, *spec.shape, device=device).to(getattr(torch, spec.dtype))
                for spec in arrival.carried
            )
            self._given = (channels_last(activations), targets, *carried)

    def step(self, send: Callable[..., None] = lambda *onwards: None) -> None:
        """Train it once more, at a rate of 0."""
        self._batch_id += 1
        self._stage.train(*self._given, batch_id=self._batch_id, lr=0.0, send=send)


def _measure_unit(trainer: UnitTrainer, unit: Sequence[BlockSpec]) -> list[BlockTimes]:
    laps = _Laps(trainer.device)
    laps.take(lambda: trainer.step(laps.sent))
    forward = fmean(laps.forward_s) if laps.forward_s else 0.0
    learn = fmean(laps.total_s) - forward
    others = [BlockTimes(spec.index, 0.0, 0.0) for spec in unit[:-1]]
    return [*others, BlockTimes(unit[-1].index, forward, learn)]
