"""Two steps and a test of one group of a user's own blocks, and whether another network repeats
the second step from a snapshot of the state before it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from pipeline.errors import ConfigError, one_line
from pipeline.learning.block_file import decode_block, encode_block
from pipeline.learning.user_block import CustomBlock
from pipeline.network.ownership import extra_states
from pipeline.network.tensor_names import HEADS, OPTIMIZER
from pipeline.rehearsal.fingerprints import Sent, digest, fingerprints
from pipeline.rehearsal.unsaved_state import attributes, shared_values
from pipeline.schedule.reports import Fingerprint
from pipeline.system.named_object import NamedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from pipeline.learning.block import Block
    from pipeline.learning.stage import Stage

_MORE_STEPS = 6
"""Until a block that chooses at random what learns is taken for one that never learns."""


class Trial:
    """Two steps and a test of one group. `sent`: what it passed on in each step.

    Raises:
        ConfigError: naming the block, and what is wrong with it.
    """

    def __init__(self, stage: Stage, inputs: Sequence[tuple[Tensor, ...]], lr: float) -> None:
        """`inputs`: of two steps, what arrives."""
        self._inputs, self._lr = inputs, lr
        modules = users_modules(stage.blocks)
        self._at_first = attributes(modules)
        self.sent = [self._step(stage, 1)]
        gave = [tensor.clone() for tensor in self.sent[0]]
        self._before = dict(_buffers(stage))
        with naming_block(stage, "at its first snapshot"):
            states = stage.state()
            self._files = {
                block.spec.index: encode_block(states[block.spec.index])
                for block in stage.in_turn(stage.blocks)
            }
        shared = shared_values(modules.values())
        self.sent.append(self._step(stage, 2))
        self._state, self._attributes = fingerprints(stage.state()), attributes(modules)
        if list(map(digest, gave)) != list(map(digest, self.sent[0])):
            raise ConfigError(
                f"block {stage.blocks[-1].spec.index}: what it gave for one batch has changed with "
                "the next one, while it may still be on its way: give a new tensor each time"
            )
        after = shared_values(modules.values())
        if changed := [name for name in after if after[name] != shared.get(name)]:
            raise ConfigError(
                f"block {stage.blocks[0].spec.index}: its step changes {some(changed)}, which is "
                "no part of its state and another in each process: register a buffer of the module"
            )
        self._check_test(stage)
        self._check_learning(stage)
        for block in stage.blocks:
            block.release_optimizer()

    def compare(self, stage: Stage) -> None:
        """Let another network go on from the snapshot.

        Raises:
            ConfigError: where it does not do the same.
        """
        with naming_block(stage, "on the way back from a snapshot"):
            stage.load({block: decode_block(data) for block, data in self._files.items()})
        sent = self._step(stage, 2)
        self._check_attributes(attributes(users_modules(stage.blocks)))
        found = fingerprints(stage.state())
        differing = [was for was, now in zip(self._state, found, strict=True) if was != now]
        if list(map(digest, sent)) != list(map(digest, self.sent[1])):
            differing.append(Fingerprint(stage.blocks[-1].spec.index, "its activation", ""))
        if differing:
            # that of the first block, and rather what the user wrote than a head
            first = min(
                differing,
                key=lambda each: (each.block, each.tensor.startswith((*HEADS, OPTIMIZER))),
            )
            raise ConfigError(
                f"block {first.block}: the same step from the same state does not give the same "
                f"{first.tensor} again, as in another process: it keeps what no buffer holds, or "
                "draws numbers that are not set for each batch, as those of torch.rand, "
                "numpy.random.rand and random.random are"
            )
        for block in stage.blocks:
            block.release_optimizer()

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

    def _step(self, stage: Stage, batch_id: int) -> tuple[Tensor, ...]:
        """What arrives at the next stage; nothing from the last one."""
        x, targets, *carried = (tensor.clone() for tensor in self._inputs[batch_id - 1])
        sent = Sent(targets)
        with naming_block(stage, f"in training, for inputs of shape {tuple(x.shape)}"):
            stage.train(x, targets, *carried, batch_id=batch_id, lr=self._lr, send=sent.send)
        sent.check_unchanged(stage)
        return sent.tensors

    def _check_attributes(self, anew: Mapping[str, str]) -> None:
        """Attributes that steps change are what they would be without the earlier ones."""
        kept = [
            name
            for name, value in self._attributes.items()
            if value != anew.get(name) and value != self._at_first.get(name)
        ]
        if kept:
            block = kept[0].partition(".")[0]
            names = [name.partition(".")[2] for name in kept if name.startswith(f"{block}.")]
            raise ConfigError(
                f"block {block}: {some(names)} changes from step to step and is no part of its "
                "state, so that it would start anew when the run is resumed: register a buffer"
            )

    def _check_test(self, stage: Stage) -> None:
        """Tests change nothing (invariant 8)."""
        before = {name: buffer.clone() for name, buffer in _buffers(stage)}
        x, *others = (tensor.clone() for tensor in self._inputs[1])
        first = stage.blocks[0].spec
        if first.index and first.in_tests != first.in_training:
            return  # other rows arrive in a test
        with naming_block(stage, f"in a test, for inputs of shape {tuple(x.shape)}"):
            stage.evaluate(x, *others, send=lambda *passed: None)
        for name, buffer in _buffers(stage):
            if name not in before or digest(buffer) != digest(before[name]):
                block, _, tensor = name.partition(".")
                raise ConfigError(
                    f"block {block}: a test changes its {tensor}; let it change only "
                    "`if self.training`"
                )

    def _check_learning(self, stage: Stage) -> None:
        own = [b for b in stage.blocks if isinstance(b, CustomBlock) and not b.spec.frozen]
        batch_id = 2
        while idle := [block.spec.index for block in own if not block.learns]:
            if stage.take_skipped():
                return  # its losses are not finite, which the run will say of its own examples
            if batch_id == 2 + _MORE_STEPS:
                raise ConfigError(
                    f"block {idle[0]}: none of its parameters gets a gradient from its loss: does "
                    "what it gives depend on them, without no_grad() or detach()?"
                )
            batch_id += 1
            with naming_block(stage, "in training"):
                stage.train(
                    *(tensor.clone() for tensor in self._inputs[0]),
                    batch_id=batch_id,
                    lr=self._lr,
                    send=lambda *passed: None,
                )


@contextmanager
def naming_block(stage: Stage, what: str) -> Iterator[None]:
    """Whatever the user's modules raise inside becomes a ConfigError that names the block."""
    try:
        yield
    except NamedError:  # which says where it was
        raise
    except Exception as error:
        at = stage.blocks[-1].spec.index if stage.at_work is None else stage.at_work
        raise ConfigError(f"block {at}, {what}: {one_line(error)}") from error


def users_modules(blocks: Iterable[Block]) -> dict[str, nn.Module]:
    """The modules that a user has written, by block."""
    found: dict[str, nn.Module] = {}
    for block in blocks:
        own: dict[str, nn.Module] = {}
        if isinstance(block, CustomBlock):
            own = {"encoder": block.encoder, "tail": block.tail}
        if block.spec.rule is not None and block.rule is not None:
            own["rule"] = block.rule
        if own:
            found[str(block.spec.index)] = nn.ModuleDict(own)
    return found


def some(names: Sequence[str]) -> str:
    """Names in a line, the first three of them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _buffers(stage: Stage) -> list[tuple[str, Tensor]]:
    return [
        (f"{block.spec.index}.{name}", buffer)
        for block in stage.blocks
        for name, buffer in block.named_buffers()
    ]
