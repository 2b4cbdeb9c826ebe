"""A block: one layer with its heads and its own optimizer; the unit of learning.

`forward` gives the activation h that the heads see; `transfer` gives what is sent downstream
(after dropout and pooling); `update` moves the weights; `stage.py` says from which loss.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from pipeline.device.compiler import run_plainly
from pipeline.errors import CheckpointError
from pipeline.kernels.dropout import Dropout
from pipeline.kernels.linear import Linear
from pipeline.kernels.memory_layout import channels_last, flattened
from pipeline.kernels.nonlinearity import activate
from pipeline.kernels.pooling import pool, pool_values
from pipeline.kernels.recompute import RECOMPUTING_DEVICES, Activation, normalised
from pipeline.learning.built_in import BuiltIn, HeadLosses, Heads, OutputLoss
from pipeline.learning.heads import PredHead, label_projection, reconstruction, similarity_map
from pipeline.learning.losses import is_reduced
from pipeline.learning.precision import autocast
from pipeline.learning.rule_calls import RuleCalls
from pipeline.learning.whole_batch import norm_sizes, see_whole_batches
from pipeline.network.rule_shapes import make_rule
from pipeline.seeding import Purpose, derived_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pipeline.device.compiler import FunctionCaller
    from pipeline.learning.losses import LossValue
    from pipeline.learning.optimizers import Optimizer
    from pipeline.learning.shares import Share
    from pipeline.learning.whole_batch import WholeBatch
    from pipeline.network.specs import BlockSpec, LayerSpec
    from pipeline.rules.rule import Batch, LocalRule


class Block(nn.Module):
    """One hidden layer with its local heads, or the output layer with its cross-entropy.

    State keys: `encoder.*` (the layer), `bn.*`, `bn_input.*` where the input is activated,
    `shortcut.*`, and those of `heads.py`, or `rule.*` for a rule that is not built in.
    Initial weights are PyTorch's defaults, drawn for (seed, block index), but for classifiers
    that are trained beside local losses, the output layer among them: their weights start at zero.
    """

    def __init__(
        self, spec: BlockSpec, *, seed: int, device: torch.device, dtype: torch.dtype, bf16: bool
    ) -> None:
        super().__init__()
        self.spec, self.seed, self.device, self.dtype, self.bf16 = spec, seed, device, dtype, bf16
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, Purpose.INITIAL, spec.index))
            if spec.custom is None:
                self.encoder = _layer(spec.layer)
            if spec.zero_start:
                nn.init.zeros_(cast("Tensor", self.encoder.weight))
            before = spec.batch_norm and spec.activates_input
            self.bn_input = _batch_norm(spec, spec.layer.in_features) if before else None
            self.bn = _batch_norm(spec, spec.layer.out_features) if spec.norms_output else None
            self.shortcut = _shortcut(spec)
            self.pred = PredHead(spec.pred) if spec.pred else None
            self.sim = similarity_map(spec.sim) if spec.sim else None
            self.projection = label_projection(spec)
            self.recon = reconstruction(spec)
            self.rule = self._made_rule()
        if self.bn is not None and spec.passes_raw and not spec.has_loss:
            self.bn.requires_grad_(False)  # nobody reads it, so nothing would teach it
        self.to(device=device, dtype=dtype)
        self.to(memory_format=torch.channels_last)
        self.dropout = Dropout(spec.dropout, seed=seed, block=spec.index, of_units=spec.drops_units)
        self.calls: RuleCalls | None = None
        """Of a rule that is not built in."""
        if spec.rule is not None and self.rule is not None:
            self.calls = RuleCalls(self.rule, spec, seed=seed, device=device, bf16=bf16)
        self._batch_id: int | None = None
        """Of the batch at work in training; None in a test."""
        self.first = 0
        """Of a batch's examples, the first of the share that is at work."""
        self._run: FunctionCaller = run_plainly
        self._optimizer: Optimizer | None = None
        self.learned: list[Tensor] = []
        """The parameters that are trained, once there is an optimizer, in its order."""

    def _made_rule(self) -> LocalRule | None:
        spec = self.spec
        if spec.rule is not None:
            return make_rule(spec)
        if spec.is_output:
            return OutputLoss(spec)
        if not spec.has_local_loss:
            return None
        heads = Heads(self.pred, self.sim, self.projection, self.recon)
        return HeadLosses(spec, heads, device=self.device, dtype=self.dtype, bf16=self.bf16)

    def attach(self, make_optimizer: Callable[[Mapping[str, Tensor]], Optimizer]) -> None:
        """Give the block the optimizer of its own parameters; a frozen one learns nothing, and
        needs none."""
        if self.spec.frozen:
            self.requires_grad_(False)
            return
        learned = {name: p for name, p in self.named_tensors() if p.requires_grad}
        self.learned = list(learned.values())
        self._optimizer = make_optimizer(learned)

    def compute_by(self, run: FunctionCaller) -> None:
        """From now on `run` calls what computes the activation, what is passed on and the loss."""
        self._run = self.dropout.run = run

    def take(self, share: Share) -> None:
        """From now on it is given such shares of batches, and draws what belongs to them."""
        self.first = share.first
        self.dropout.take(share.first, share.count)
        if self.calls is not None:
            self.calls.first = share.first

    def see_whole_batches(
        self, whole: WholeBatch, *, in_norms: bool, in_similarities: bool
    ) -> None:
        """From now on it sees more than its share of a batch."""
        if in_norms:
            see_whole_batches(self, whole)
        if in_similarities and isinstance(self.rule, HeadLosses):
            self.rule.see_whole_batches(whole)

    def seen_sizes(self, rows: int) -> Iterator[list[int]]:
        """Bytes of each tensor that a member shows the others at once, for a share of so many
        examples."""
        yield from norm_sizes(self)
        if isinstance(self.rule, HeadLosses):
            yield from self.rule.similarity_sizes(rows)

    def own_copy(self, x: Tensor) -> Tensor:
        """An input that a rule looks at, too: a copy where the block may compute in place on it."""
        return x

    def forward(self, x: Tensor, *, batch_id: int | None, shortcut: Tensor | None = None) -> Tensor:
        """The activation h (logits for the output block), before dropout and pooling.

        Args:
            x: (n, *spec.in_shape), of the block's dtype (bfloat16 allowed under bf16).
            batch_id: in training, which uses and updates the batch statistics; None in
                evaluation, which uses the running ones and leaves them as they are.
            shortcut: what a residual connection adds, where one ends in this block.
        """
        self._batch_id = batch_id
        if self.training != (batch_id is not None):
            self.train(batch_id is not None)
        return self._run(self._activation, x, shortcut)

    def _activation(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        with self.autocast():
            flat = self.spec.layer.kind == "linear"
            x = flattened(x) if flat else channels_last(x)
            if self.spec.activates_input:
                x = self._normed(x, self.bn_input)
            h: Tensor = self.encoder(x)
            if self.spec.is_output or (self.spec.passes_raw and shortcut is None):
                return h
            if self._can_recompute(h):
                return normalised(h, cast("nn.BatchNorm2d", self.bn), self.spec.nonlinearity)
            adds_first = self.spec.activates_input
            if self.bn is not None and not adds_first:
                h = self.bn(h)
            if shortcut is not None:
                h = h + (self.shortcut(shortcut) if self.shortcut is not None else shortcut)
            if self.spec.passes_raw:
                return h
            return self._normed(h, self.bn) if adds_first else self._activate(h)

    def _normed(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """The activation of a sum x, which stays as it is: others read it, too."""
        return self._activate(x.clone() if norm is None else norm(x))

    def _can_recompute(self, z: Tensor) -> bool:
        """Whether heads can do without the activation of z for a while (`recompute.py`)."""
        return (
            self.training
            and self.spec.recomputable
            and isinstance(self.bn, nn.BatchNorm2d)
            and self.device.type in RECOMPUTING_DEVICES
            and is_reduced(z)
            and not torch.compiler.is_compiling()
        )

    def transfer(self, h: Tensor, *, batch_id: int | None) -> Tensor:
        """What the next block receives: h after dropout and pooling, as `memory_layout` has it.

        Dropout draws for (seed, block, batch id); None, in evaluation, drops nothing. It drops
        whole channels of feature maps, so pooling may come first, and leaves it less to do.
        """
        if batch_id is None or self.spec.dropout == 0:
            return self._run(self._passed, h, None)
        return self._run(self._passed, h, self.dropout.mask(h, batch_id))

    def transfer_part(self, h: Tensor, rows: slice, whole: int, *, batch_id: int) -> Tensor:
        """As `transfer` in training, of these rows of a batch of `whole` examples, which h holds:
        they have the masks that they would have among all."""
        if self.spec.dropout == 0:
            return self._run(self._passed, h, None)
        like = h.detach().new_empty(()).expand(whole, *h.shape[1:])
        return self._run(self._passed, h, self.dropout.mask(like, batch_id)[rows])

    def _passed(self, h: Tensor, mask: Tensor | None) -> Tensor:
        passed = (pool if h.requires_grad else pool_values)(h, self.spec.pool)
        if mask is not None:
            passed = passed * mask if self.spec.pool is None else passed.mul_(mask)
            passed = passed.mul_(self.dropout.scale)
        return channels_last(passed)

    def local_loss(
        self,
        activation: Activation,
        batch: Batch,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> LossValue:
        """The loss of this block for its activation, by its rule.

        Args:
            batch: what arrived at the block, or at its group.
            x: what its rule made of that.
            generator: of this block and batch, for rules that are not built in.
        """
        if isinstance(self.rule, BuiltIn):
            return self._run(self._built_in_loss, activation, batch.y, x, self._has_similarity)
        assert self.calls is not None, "a block that learns has a rule"
        return self.calls.value(activation.h, x, batch, generator)

    @property
    def _has_similarity(self) -> bool:
        """Whether the batch at work has a similarity loss; in tests all have."""
        sim, batch_id = self.spec.sim, self._batch_id
        return sim is None or batch_id is None or sim.is_due(batch_id)

    def _built_in_loss(
        self, activation: Activation, targets: Tensor, x: Tensor, by_similarity: bool
    ) -> LossValue:
        assert isinstance(self.rule, BuiltIn), "asked of no other"
        if self.spec.passes_raw:
            activation = Activation(self.seen(activation.h))
        return self.rule.value(activation, targets, x, by_similarity=by_similarity)

    def scores(self, h: Tensor, onwards: Batch) -> Tensor | None:
        """(n, classes, …): what the block predicts by an activation; None: nothing.

        Args:
            onwards: what goes on from it.
        """
        if self.rule is None:
            return None
        if self.calls is not None:
            return self.calls.scores(h, onwards)
        with self.autocast():
            return self.rule.scores(self.seen(h), onwards)

    def seen(self, h: Tensor) -> Tensor:
        """An activation as heads see it: that of a sum which is passed on as it is is normed."""
        if not self.spec.passes_raw:
            return h
        with self.autocast():
            return self._normed(h, self.bn)

    def update(self, gradients: Sequence[Tensor | None], lr: float | Tensor) -> None:
        """Let the optimizer use `gradients`, one per parameter in order; None: no step for it."""
        assert self._optimizer is not None, "attach an optimizer before training"
        self._optimizer.step(gradients, lr)

    def release_optimizer(self) -> None:
        """The block learns no more, or not yet: its optimizer's state is forgotten."""
        if self._optimizer is not None:
            self._optimizer.release()

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the block by name: weights, heads, statistics, optimizer."""
        tensors = self.module_state()
        if self._optimizer is not None:
            named = self._optimizer.state().items()
            tensors.update({f"optimizer.{name}": tensor for name, tensor in named})
        return tensors

    def module_state(self) -> dict[str, Tensor]:
        """Of that, what belongs to modules: all but the optimizer's."""
        if self.spec.rule is not None:  # whose buffers need not be persistent
            return {name: tensor.detach() for name, tensor in self.named_tensors()}
        return dict(self.state_dict())

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Its parameters and buffers, each once."""
        return chain(self.named_parameters(), self.named_buffers())

    def persistent_names(self) -> set[str]:
        """Names of those that a state dict has."""
        return set(self.state_dict(keep_vars=True))

    def begin_with(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite a part of the state, before anything is trained.

        Raises:
            CheckpointError: as `load`.
        """
        self.load({**self.state(), **tensors})

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the whole state.

        Raises:
            CheckpointError: where names, shapes or dtypes are not this block's.
        """
        if self._optimizer is not None:
            self._optimizer.hold()
        own = Block.state(self)  # without what a user's modules add to it
        if own.keys() != tensors.keys():
            odd = sorted(own.keys() ^ tensors.keys())
            raise CheckpointError(
                f"block {self.spec.index}: checkpoint and network differ in {odd}"
            )
        for name, tensor in own.items():
            given = tensors[name]
            if tensor.shape != given.shape or tensor.dtype != given.dtype:
                raise CheckpointError(
                    f"block {self.spec.index}: {name} is {given.dtype} {tuple(given.shape)} in the "
                    f"checkpoint, {tensor.dtype} {tuple(tensor.shape)} in the network"
                )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def _activate(self, x: Tensor) -> Tensor:
        return activate(x, self.spec.nonlinearity)

    def autocast(self) -> torch.autocast:
        """Around whatever computes with layers."""
        return autocast(self.device, bf16=self.bf16)


def _layer(spec: LayerSpec) -> nn.Module:
    if spec.kind == "linear":
        return Linear(spec.in_features, spec.out_features)
    return nn.Conv2d(
        spec.in_features, spec.out_features, spec.kernel, stride=spec.stride, padding=spec.padding
    )


def _batch_norm(spec: BlockSpec, features: int) -> nn.Module:
    make = nn.BatchNorm1d if spec.layer.kind == "linear" else nn.BatchNorm2d
    return make(features)


def _shortcut(spec: BlockSpec) -> nn.Module | None:
    """What gives a residual connection the shape of the activation; None for the identity."""
    if spec.shortcut is None or spec.shortcut.layer is None:
        return None
    normed = spec.batch_norm and not spec.activates_input
    norm = [_batch_norm(spec, spec.layer.out_features)] if normed else []
    return nn.Sequential(_Pointwise(spec.shortcut.layer), *norm)


class _Pointwise(nn.Conv2d):
    """A 1×1 convolution that takes every stride-th pixel itself: where the convolution does and
    channels come last, oneDNN (PyTorch 2.15) writes beyond the gradient of few channels."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec.in_features, spec.out_features, 1)
        self._every = spec.stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(channels_last(x[:, :, :: self._every, :: self._every]))
