"""Whether a user's own network trains as a pipeline does: found out before anything starts.

    one     t1 ▷ snapshot ▷ t2 ▷ test            block after block
    another            load ▷ t2                 as in another process, the last block first

Two networks are made by two calls of the user's function. They must start alike; and from the
state after the first step both must take the second one alike, bit for bit. What a block keeps
that is no part of its state, what it draws from generators of its own, from the time or the
process, what it looks up in another block: all of it makes a difference, of whatever kind it is.
Then images go through in batches of all the sizes that the run will have.

What can't be seen so: what seldom happens, or begins later than the second step, or depends on
the order of sets, which is another in each process. Steps are of few images, and on the CPU.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.errors import ConfigError, one_line
from pipeline.learning.block_file import decode_block, encode_block, kind_of
from pipeline.learning.build import build_blocks, build_preprocess
from pipeline.learning.groups import rest
from pipeline.learning.stage import Stage
from pipeline.learning.user_block import CustomBlock
from pipeline.network.ownership import extra_states, retyped
from pipeline.network.specs import in_runs
from pipeline.network.user_network import build_children, naming_factory
from pipeline.rehearsal.fingerprints import digest, fingerprints, initial_fingerprints
from pipeline.rehearsal.other_process import as_another_process
from pipeline.rehearsal.unsaved_state import attributes, files_of, shared_values
from pipeline.schedule.reports import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set

    from torch import Tensor

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.learning.block import Block
    from pipeline.network.specs import BlockSpec

_IMAGES, _STEP_MACS = 16, 1 << 33
"""Of a step, and its work, at most; but two images."""
_MORE_STEPS = 6
"""Until a block that chooses at random what learns is taken for one that never learns."""
_MOST_BYTES, _MOST_MACS = 1 << 30, 1 << 38
"""Of an activation, and of work, for a batch that is tried: a device has more of both."""
_HEADS = ("pred.", "sim.", "projection.", "recon.", "optimizer.")
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Held:
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
    held: tuple[Held, ...] = ()
    """Every parameter and buffer, of the heads too."""


def rehearse(config: Config, facts: DataFacts, specs: Sequence[BlockSpec]) -> Rehearsal:
    """Take two steps with the network that `model.factory` makes, and look at all sizes.

    Raises:
        ConfigError: naming the block, what is wrong with it, and what to do.
    """
    with naming_factory(config.model), _as_in_a_run(config.runtime.threads_per_stage):
        return _rehearsed(config, facts, specs)


def _rehearsed(config: Config, facts: DataFacts, specs: Sequence[BlockSpec]) -> Rehearsal:
    one = _Network(config, facts, specs)
    initial = initial_fingerprints(one.blocks)
    files = files_of(_users(one.blocks).values())
    with as_another_process(files):
        another = _Network(config, facts, specs)
        _check_alike_at_first(initial, initial_fingerprints(another.blocks))
    references = one.trained()
    with as_another_process(files):
        for stage, reference in reversed(list(zip(another.stages, references, strict=True))):
            reference.compare(stage)
    del another
    one.try_sizes()
    children = build_children(config.model, config.runtime.seed)
    notes = (*retyped(children, torch.float32), *_idle(one.blocks))
    return Rehearsal(initial, notes, tuple(_held(one.blocks, set(initial))))


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

    def trained(self) -> list[_Reference]:
        """Two steps of every group and a test; what others are compared with."""
        n = min(_IMAGES, max(2, _STEP_MACS // self._macs), self._config.data.batch_size)
        inputs = [self._images(n, number) for number in (1, 2)]
        labels = self._labels(n)
        references = []
        for stage in self.stages:
            reference = _Reference(stage, inputs, labels, self._config.optimizer.lr)
            if self._config.runtime.on_nonfinite == "skip_batch":
                reference.check_skippable(stage)
            references.append(reference)
            inputs = reference.sent
        return references

    @torch.no_grad()
    def try_sizes(self) -> None:
        """Pass images through in batches as large as those of the run, the last ones included."""
        sizes = {
            *((n, True) for n in self._sizes(self._facts.train_images)),
            *((n, False) for n in self._sizes(self._facts.test_images)),
        }
        for n, training in sorted(sizes):
            x = self._images(n, n)
            for stage in self.stages:
                what = f"{'in training' if training else 'in a test'}, for a batch of {n}"
                with _naming(stage, what):
                    x = _passed(stage, x, n if training else None)

    def _sizes(self, images: int) -> set[int]:
        batch = min(self._config.data.batch_size, images)
        largest = max(max(_numbers(spec) for spec in self._specs) * 4, 1)
        most = min(_MOST_BYTES // largest, _MOST_MACS // self._macs)
        return {n for n in (batch, images % batch or batch) if n <= most}

    def _images(self, n: int, number: int) -> Tensor:
        shape = (n, *self._specs[0].in_shape)
        draws = torch.Generator().manual_seed(number)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws)

    def _labels(self, n: int) -> Tensor:
        return torch.arange(n) % self._facts.classes


class _Reference:
    """Two steps and a test of one group."""

    def __init__(self, stage: Stage, inputs: Sequence[Tensor], labels: Tensor, lr: float) -> None:
        self._inputs, self._labels, self._lr = inputs, labels, lr
        self._modules = _users(stage.blocks)
        self._at_first = self._attributes()
        self.sent = [self._step(stage, 1)]
        gave = [tensor.clone() for tensor in self.sent]
        self._before = dict(_buffers(stage))
        self._files = self._snapshot(stage)
        shared = shared_values(self._modules.values())
        self.sent.append(self._step(stage, 2))
        self._state, self._held = fingerprints(stage.state()), self._attributes()
        self._check_given(stage, gave)
        self._check_shared(stage, shared)
        self._check_test(stage)
        self._check_learning(stage)
        rest(stage.blocks)

    def compare(self, stage: Stage) -> None:
        """Let another network go on from the snapshot.

        Raises:
            ConfigError: where it does not do the same.
        """
        with _naming(stage, "on the way back from a snapshot"):
            stage.load({block: decode_block(data) for block, data in self._files.items()})
        sent = self._step(stage, 2)
        self._check_attributes(_users(stage.blocks))
        found = fingerprints(stage.state())
        last = stage.blocks[-1].spec.index
        differing = [was for was, now in zip(self._state, found, strict=True) if was != now]
        if digest(sent) != digest(self.sent[1]):
            differing.append(Fingerprint(last, "its activation", ""))
        if differing:
            # that of the first block, and rather what the user wrote than a head
            first = min(differing, key=lambda each: (each.block, each.tensor.startswith(_HEADS)))
            raise ConfigError(
                f"block {first.block}: the same step from the same state does not give the same "
                f"{first.tensor} again, as in another process: it keeps what no buffer holds, or "
                "draws numbers that are not set for each batch, as those of torch.rand, "
                "numpy.random.rand and random.random are"
            )
        rest(stage.blocks)

    def check_skippable(self, stage: Stage) -> None:
        """A batch that is skipped leaves no trace, also in what is no parameter.

        Raises:
            ConfigError: where a block changes that in a way that can't be taken back.
        """
        replaced = [
            name for name, buffer in _buffers(stage) if buffer is not self._before.get(name)
        ]
        added = [
            f"{block.spec.index}.{name}" for block in stage.blocks for name in extra_states(block)
        ]
        for name in (*replaced, *added):
            block, _, tensor = name.partition(".")
            raise ConfigError(
                f"block {block}: its step puts another tensor in the place of {tensor}, which "
                "runtime.on_nonfinite skip_batch can't take back: register a buffer, and change it "
                "in place (copy_, lerp_), or use stop or rollback"
            )

    def _step(self, stage: Stage, batch_id: int) -> Tensor:
        sent: list[Tensor] = []
        x = self._inputs[batch_id - 1].clone()
        with _naming(stage, f"in training, for inputs of shape {tuple(x.shape)}"):
            stage.train(x, self._labels, batch_id=batch_id, lr=self._lr, send=sent.append)
        return sent[0] if sent else torch.zeros(0)

    def _snapshot(self, stage: Stage) -> Mapping[int, bytes]:
        with _naming(stage, "at its first snapshot"):
            states = stage.state()
            return {
                block.spec.index: encode_block(states[block.spec.index])
                for block in stage.in_turn(stage.blocks)
            }

    def _attributes(self) -> dict[str, str]:
        return _attributes(self._modules)

    def _check_given(self, stage: Stage, gave: Sequence[Tensor]) -> None:
        if not all(
            digest(one) == digest(other) for one, other in zip(gave, self.sent, strict=False)
        ):
            raise ConfigError(
                f"block {stage.blocks[-1].spec.index}: what it gave for one batch has changed with "
                "the next one, while it may still be on its way: give a new tensor each time"
            )

    def _check_shared(self, stage: Stage, before: Mapping[str, str]) -> None:
        after = shared_values(self._modules.values())
        changed = [name for name in after if after[name] != before.get(name)]
        if changed:
            raise ConfigError(
                f"block {stage.blocks[0].spec.index}: its step changes {_some(changed)}, which is "
                "no part of its state and another in each process: register a buffer of the module"
            )

    def _check_attributes(self, others: Mapping[int, nn.Module]) -> None:
        """Attributes that steps change are what they would be without the earlier ones."""
        anew = _attributes(others)
        kept = [
            name
            for name, held in self._held.items()
            if held != anew.get(name) and held != self._at_first.get(name)
        ]
        if kept:
            block = kept[0].partition(".")[0]
            names = [name.partition(".")[2] for name in kept if name.startswith(f"{block}.")]
            raise ConfigError(
                f"block {block}: {_some(names)} changes from step to step and is no part of its "
                "state, so that it would start anew when the run is resumed: register a buffer"
            )

    def _check_test(self, stage: Stage) -> None:
        """Tests change nothing (invariant 8)."""
        before = {name: buffer.clone() for name, buffer in _buffers(stage)}
        x = self._inputs[1].clone()
        with _naming(stage, f"in a test, for inputs of shape {tuple(x.shape)}"):
            stage.evaluate(x, self._labels, send=lambda passed: None)
        for name, buffer in _buffers(stage):
            if name not in before or digest(buffer) != digest(before[name]):
                block, _, tensor = name.partition(".")
                raise ConfigError(
                    f"block {block}: a test changes its {tensor}; let it change only "
                    "`if self.training`"
                )

    def _check_learning(self, stage: Stage) -> None:
        batch_id = 2
        while (idle := _never_learning(stage)) is not None:
            if stage.take_skipped():
                return  # its losses are not finite, which the run will say of its own images
            if batch_id == 2 + _MORE_STEPS:
                raise ConfigError(
                    f"block {idle}: none of its parameters gets a gradient from its loss: does "
                    "what it gives depend on them, without no_grad() or detach()?"
                )
            batch_id += 1
            with _naming(stage, "in training"):
                stage.train(
                    self._inputs[0].clone(),
                    self._labels,
                    batch_id=batch_id,
                    lr=self._lr,
                    send=lambda passed: None,
                )


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


@contextmanager
def _naming(stage: Stage, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the user's modules raise
        at = stage.blocks[-1].spec.index if stage.at_work is None else stage.at_work
        raise ConfigError(f"block {at}, {what}: {one_line(error)}") from error


def _check_alike_at_first(one: Sequence[Fingerprint], other: Sequence[Fingerprint]) -> None:
    for first, second in zip(one, other, strict=True):
        if first != second:
            raise ConfigError(
                f"block {first.block}: {first.tensor} does not start as it did when the function "
                "was called before: draw initial weights from torch.rand, numpy.random.rand or "
                "random.random, whose seed is set, not from the time, the process, the operating "
                "system or a generator that goes on"
            )


def _users(blocks: Sequence[Block]) -> dict[int, nn.Module]:
    """The modules that the user's function has made, by block."""
    own = (block for block in blocks if isinstance(block, CustomBlock))
    return {
        block.spec.index: nn.ModuleDict({"encoder": block.encoder, "tail": block.tail})
        for block in own
    }


def _passed(stage: Stage, x: Tensor, batch_id: int | None) -> Tensor:
    """What the stage passes on, without learning; batch_id None: in a test."""
    x = stage.prepared(x, batch_id or 0)
    for block in stage.in_turn(stage.blocks):
        h = block(x, batch_id=batch_id)
        _check_result(h, (len(x), *block.spec.shape))
        passed = block.transfer(h, batch_id=batch_id)
        _check_result(passed, (len(x), *block.spec.out_shape))
        x = passed
    return x


def _check_result(result: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(result.shape) != shape or not result.is_floating_point():
        raise ValueError(
            f"gives {tuple(result.shape)} of {result.dtype}; {shape} of real numbers is needed"
        )


def _idle(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, CustomBlock) and block.idle:
            yield (
                f"block {block.spec.index}: {_some(block.idle)} got no gradient in a trial: a "
                "parameter stays as it is until a batch gives it one"
            )


def _held(blocks: Sequence[Block], initial: Set[Fingerprint]) -> Iterator[Held]:
    for block in blocks:
        if block.spec.custom is None:
            continue
        in_state_dict = block.state_dict(keep_vars=True).keys()
        for name, tensor in block.module_state().items():
            now = Fingerprint(block.spec.index, name, digest(tensor))
            persistent = name in in_state_dict
            yield Held(now.block, name, kind_of(tensor), now not in initial, persistent)


def _attributes(modules: Mapping[int, nn.Module]) -> dict[str, str]:
    return attributes({str(block): module for block, module in modules.items()})


def _buffers(stage: Stage) -> list[tuple[str, Tensor]]:
    return [
        (f"{block.spec.index}.{name}", buffer)
        for block in stage.blocks
        for name, buffer in block.named_buffers()
    ]


def _never_learning(stage: Stage) -> int | None:
    own = (block for block in stage.blocks if isinstance(block, CustomBlock))
    return next((block.spec.index for block in own if not block.learns), None)


def _numbers(spec: BlockSpec) -> int:
    """Of the largest activation of an image."""
    sizes = (spec.in_shape, spec.shape, spec.out_shape)
    return max(torch.Size(shape).numel() for shape in sizes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
