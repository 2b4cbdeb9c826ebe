"""A block made of a user's own modules (`user_network.py`), with the heads of every other block."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.errors import CheckpointError, ConfigError
from pipeline.kernels.memory_layout import as_it_arrives
from pipeline.learning.block import Block
from pipeline.network.ownership import extra_states
from pipeline.network.to_device import memory_of, tensors_of, to_device
from pipeline.seeding import Purpose, derived_seed, of_share, seeded_draws

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from pipeline.learning.optimizers import Optimizer
    from pipeline.network.specs import BlockSpec
    from pipeline.network.user_network import BlockModules

_BODY, _TAIL = 0, 1


class CustomBlock(Block):
    """State keys: `encoder.*` (up to what the heads see), `tail.*` (from there to the next
    block), and those of `heads.py`. Initial weights are as the user's function made them.

    The state holds every parameter and every buffer, each once, whether or not the modules would
    put it into a state dict; and `<module>._extra_state`, where `get_extra_state` gives a tensor.
    """

    def __init__(self, spec: BlockSpec, part: BlockModules, **placing: Any) -> None:
        super().__init__(spec, **placing)
        self.encoder, self.tail = part
        self._changes_its_input = any(map(_may_work_in_place, self.tail.modules()))
        self._received = 0
        """Where the memory of the input begins."""
        self._idle: set[int] = set()
        self._check_same(spec)
        to_device(part, self.device, self.dtype)

    def _check_same(self, spec: BlockSpec) -> None:
        found = sum(p.numel() for own in (self.encoder, self.tail) for p in own.parameters())
        if spec.custom is not None and found != spec.custom.parameters:
            raise ConfigError(
                f"block {spec.index} has {found} parameters, it had {spec.custom.parameters} "
                "before: the function must give the same network each time, in every process"
            )

    def attach(self, make_optimizer: Callable[[Mapping[str, Tensor]], Optimizer]) -> None:
        super().attach(make_optimizer)
        self._idle = set(range(len(self.learned)))

    def update(self, gradients: Sequence[Tensor | None], lr: float | Tensor) -> None:
        """As `Block.update`; takes note of the parameters that have learned.

        Raises:
            ConfigError: for a gradient that is sparse, as `nn.Embedding(…, sparse=True)` gives it.
        """
        if any(each is not None and each.layout != torch.strided for each in gradients):
            raise ConfigError(
                "gives a sparse gradient, and the optimizers take dense ones: make its layers with "
                "sparse=False"
            )
        self._idle = {at for at in self._idle if gradients[at] is None}
        super().update(gradients, lr)

    @property
    def idle(self) -> tuple[str, ...]:
        """The user's parameters that no batch has given a gradient so far."""
        names = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        return tuple(names[at] for at in sorted(self._idle) if _is_users(names[at]))

    @property
    def learns(self) -> bool:
        """Whether any batch has given a parameter of the user's a gradient."""
        names = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        return len(self.idle) < sum(map(_is_users, names))

    def own_copy(self, x: Tensor) -> Tensor:
        return x.clone()

    def forward(self, x: Tensor, *, batch_id: int | None, shortcut: Tensor | None = None) -> Tensor:
        self.train(batch_id is not None)
        if self.spec.unsupervised != "none":
            x = x.clone()  # the loss will look at it, and the modules may work in place
        self._received = memory_of(x)
        with self.autocast(), self._drawing(batch_id, _BODY):
            return self._run(self._activation, x, shortcut)

    def _activation(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        assert shortcut is None, "a user's own modules have no shortcuts that we know of"
        h: Tensor = self.encoder(x)
        return h

    def transfer(self, h: Tensor, *, batch_id: int | None) -> Tensor:
        self.train(batch_id is not None)
        with self.autocast(), self._drawing(batch_id, _TAIL):
            passed: Tensor = self.tail(h.clone() if self._changes_its_input else h)
        passed = as_it_arrives(passed)
        return passed.clone() if self._will_be_written(passed) else passed

    def _will_be_written(self, passed: Tensor) -> bool:
        """Whether it lies where the next batch arrives, or in a parameter or buffer, which the
        step is about to change while what is passed on may still be on its way."""
        memory = memory_of(passed)
        own = (memory_of(tensor) for tensor in tensors_of((self.encoder, self.tail)))
        return memory == self._received or memory in own

    @contextmanager
    def _drawing(self, batch_id: int | None, where: int) -> Iterator[None]:
        """Whatever the modules draw from the generators that all share, as nn.Dropout does,
        belongs to (seed, block, batch id, share); in evaluation every batch sees the same draws."""
        position = (self.spec.index, batch_id or 0, where, *of_share(self.first))
        seed = derived_seed(self.seed, Purpose.DROPOUT, *position)
        with seeded_draws(seed, self.device):
            yield

    def module_state(self) -> dict[str, Tensor]:
        """As `Block.module_state`: every parameter and buffer, each once."""
        # not the state dict: that lacks what is not persistent, and repeats what occurs twice
        return {name: tensor.detach() for name, tensor in self.named_tensors()}

    def state(self) -> dict[str, Tensor]:
        """As `Block.state`, with what modules add to it by `get_extra_state`."""
        extra = extra_states(self)
        return {
            **super().state(),
            **{name: own.get_extra_state() for name, own in extra.items()},
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """As `Block.load`. A state of an older version lacks the buffers that are not persistent:
        they stay as they are."""
        extra = extra_states(self)
        given = {name: tensor for name, tensor in tensors.items() if name not in extra}
        missing = extra.keys() - tensors.keys()
        if missing:
            raise CheckpointError(f"block {self.spec.index}: checkpoint lacks {sorted(missing)}")
        super().load({**self._left_out_before(given), **given})
        for name, own in extra.items():
            own.set_extra_state(tensors[name].clone())

    def _left_out_before(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        in_state_dict = self.persistent_names()
        return {
            name: tensor.clone()
            for name, tensor in self.named_tensors()
            if name not in given and name not in in_state_dict
        }


def _is_users(name: str) -> bool:
    """Whether a tensor of the state belongs to the user's modules, not to a head."""
    return name.startswith(("encoder.", "tail."))


def _may_work_in_place(module: nn.Module) -> bool:
    """PyTorch's own say so; of a user's nobody knows."""
    is_torchs = type(module).__module__.startswith("torch.nn.")
    return bool(getattr(module, "inplace", False)) or not is_torchs
