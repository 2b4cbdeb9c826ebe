"""Whether a user's own network trains as a pipeline does: found out before anything starts.

    one     t1 ▷ snapshot ▷ t2 ▷ test            block after block
    another            load ▷ t2                 as in another process, the last block first

Two networks are made by two calls of the user's function. They must start alike; and from the
state after the first step both must take the second one alike, bit for bit. What a block keeps
that is no part of its state, what it draws from generators of its own, from the time or the
process, what it looks up in another block: all of it makes a difference, of whatever kind it is
(`trial.py`). Then examples go through in batches of all the sizes that the run will have.

What can't be seen so: what seldom happens, or begins later than the second step, or depends on
the order of sets, which is another in each process. Steps are of few examples, and on the CPU.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch

from pipeline.data.noise import noise_like
from pipeline.errors import ConfigError
from pipeline.learning.block_file import kind_of
from pipeline.learning.build import build_blocks, build_preprocess
from pipeline.learning.stage import Stage
from pipeline.learning.user_block import CustomBlock
from pipeline.network.ownership import retyped
from pipeline.network.specs import in_runs
from pipeline.network.user_network import build_children, naming_factory
from pipeline.rehearsal.fingerprints import digest, initial_fingerprints
from pipeline.rehearsal.other_process import as_another_process
from pipeline.rehearsal.trial import Trial, naming_block, some, users_modules
from pipeline.rehearsal.unsaved_state import files_of
from pipeline.schedule.reports import Fingerprint
from pipeline.seeding import Purpose, generator
from pipeline.system.named_object import naming

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.learning.block import Block
    from pipeline.network.specs import BlockSpec

_IMAGES, _STEP_MACS = 16, 1 << 33
"""Of a step, and its work, at most; but two examples."""
_MOST_BYTES, _MOST_MACS = 1 << 30, 1 << 38
"""Of an activation, and of work, for a batch that is tried: a device has more of both."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class BlockTensor:
    """A tensor of a block. `kind`: its type and shape, for people. `moves`: whether training
    changes it. `persistent`: whether a state dict has it."""

    block: int
    name: str
    kind: str
    moves: bool
    persistent: bool


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What every process must find its network to be; and what the user should know."""

    initial: tuple[Fingerprint, ...]
    notes: tuple[str, ...]
    tensors: tuple[BlockTensor, ...] = ()
    """Every parameter and buffer, of the heads too."""


def rehearse(config: Config, facts: DataFacts, specs: Sequence[BlockSpec]) -> Rehearsal:
    """Take two steps with the network that `model.factory` makes, and look at all sizes.

    Raises:
        ConfigError: naming the block, what is wrong with it, and what to do.
    """
    with _naming_code(config), _as_in_a_run(config.runtime.threads_per_stage):
        one = _Network(config, facts, specs)
        initial = initial_fingerprints(one.blocks)
        files = files_of(users_modules(one.blocks).values())
        with as_another_process(files):
            another = _Network(config, facts, specs)
            _check_alike_at_first(initial, initial_fingerprints(another.blocks))
        trials = one.trained()
        with as_another_process(files):
            for stage, trial in reversed(list(zip(another.stages, trials, strict=True))):
                trial.compare(stage)
        del another
        one.try_sizes()
        notes = [*one.without_gradient()]
        if config.model.factory is not None:
            children = build_children(config.model, config.runtime.seed)
            notes = [*retyped(children, torch.float32), *notes]
        return Rehearsal(initial, tuple(notes), tuple(one.tensors(initial)))


def _naming_code(config: Config) -> AbstractContextManager[None]:
    if config.model.factory is None and config.loss.rule is not None:
        return naming(f"loss.rule {config.loss.rule}")
    return naming_factory(config.model)


class _Network:
    """A network as the user's function has made it, in stages of one group each."""

    def __init__(self, config: Config, facts: DataFacts, specs: Sequence[BlockSpec]) -> None:
        self._config, self._facts, self._specs = config, facts, specs
        self._macs = max(1, sum(spec.custom.forward_macs for spec in specs if spec.custom))
        self.blocks = build_blocks(config, specs, range(len(specs)), _CPU)
        first, *others = in_runs(self.blocks, lambda block: block.spec.same_group)
        preprocess = build_preprocess(config, facts, _CPU)
        self.stages = [
            Stage(first, preprocess, "skip_batch"),
            *(Stage(group, None, "skip_batch") for group in others),
        ]

    def trained(self) -> list[Trial]:
        """Two steps of every group and a test; what others are compared with."""
        n = min(_IMAGES, max(2, _STEP_MACS // self._macs), self._config.data.batch_size)
        inputs = [self._batch(n, number) for number in (1, 2)]
        trials = []
        for stage in self.stages:
            trial = Trial(stage, inputs, self._config.optimizer.lr)
            if self._config.runtime.on_nonfinite == "skip_batch":
                trial.check_skippable(stage)
            trials.append(trial)
            inputs = trial.sent
        return trials

    @torch.no_grad()
    def try_sizes(self) -> None:
        """Pass examples through in batches as large as those of the run, the last ones included."""
        sizes = {
            *((n, True) for n in self._sizes(self._facts.train_images)),
            *((n, False) for n in self._sizes(self._facts.test_images)),
        }
        for n, training in sorted(sizes):
            given = self._batch(n, n)
            for stage in self.stages:
                what = f"{'in training' if training else 'in a test'}, for a batch of {n}"
                with naming_block(stage, what), _results_checked(stage.blocks):
                    given = stage.passed_on(given, n, training=training)

    def without_gradient(self) -> Iterator[str]:
        """A line for each block some of whose parameters no step has given a gradient."""
        for block in self.blocks:
            if isinstance(block, CustomBlock) and block.idle:
                yield (
                    f"block {block.spec.index}: {some(block.idle)} got no gradient in a trial: a "
                    "parameter stays as it is until a batch gives it one"
                )

    def tensors(self, initial: Sequence[Fingerprint]) -> Iterator[BlockTensor]:
        """Every tensor of the user's blocks, of which `initial` says how they began."""
        at_first = set(initial)
        for block in self.blocks:
            if block.spec.custom is None and block.spec.rule is None:
                continue
            in_state_dict = block.persistent_names()
            for name, tensor in block.module_state().items():
                now = Fingerprint(block.spec.index, name, digest(tensor))
                moves, persistent = now not in at_first, name in in_state_dict
                yield BlockTensor(now.block, name, kind_of(tensor), moves, persistent)

    def _sizes(self, examples: int) -> set[int]:
        batch = min(self._config.data.batch_size, examples)
        if not batch:
            return set()  # data without a test
        shapes = (s for spec in self._specs for s in (spec.in_shape, spec.shape, spec.out_shape))
        largest = max(1, max(map(prod, shapes)) * 4)
        most = min(_MOST_BYTES // largest, _MOST_MACS // self._macs)
        return {n for n in (batch, examples % batch or batch) if n <= most}

    def _batch(self, n: int, number: int) -> tuple[Tensor, ...]:
        """Examples and targets such as the data set has them."""
        x, y = noise_like(self._facts, n, generator(number, Purpose.IMAGES))
        return torch.from_numpy(x), torch.from_numpy(y)


@contextmanager
def _as_in_a_run(threads: int) -> Iterator[None]:
    """With kernels that give the same bits each time, or complain."""
    mode, before = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    torch.set_deterministic_debug_mode("error")
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.set_num_threads(before)


def _check_alike_at_first(one: Sequence[Fingerprint], other: Sequence[Fingerprint]) -> None:
    for first, second in zip(one, other, strict=True):
        if first != second:
            raise ConfigError(
                f"block {first.block}: {first.tensor} does not start as it did when the function "
                "was called before: draw initial weights from torch.rand, numpy.random.rand or "
                "random.random, whose seed is set, not from the time, the process, the operating "
                "system or a generator that goes on"
            )


@contextmanager
def _results_checked(blocks: Sequence[Block]) -> Iterator[None]:
    """Inside, every activation must have the shape that was planned."""

    def check(block: Block, given: tuple[Tensor, ...], h: Tensor) -> None:
        shape = (len(given[0]), *block.spec.shape)
        if tuple(h.shape) != shape or not h.is_floating_point():
            raise ValueError(
                f"gives {tuple(h.shape)} of {h.dtype}; {shape} of real numbers is needed"
            )

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(check).remove)
        yield
