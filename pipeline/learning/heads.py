"""The layers that turn a block's activation into what its local losses compare.

State keys within a block: `pred.*` (local classifier D, its hidden layers `pred.hidden.0.*` and so
on, and `pred.feedback`), `sim.*` (the map g), `projection.weight` (label -> target of the bio
forms), `recon.*` (activation -> input).

Activations of other shapes than the paper's, as a user's own networks give them, are features
(their last dimension) at positions: (n, T, D), or (n, …, D). A classifier averages over runs of
neighbouring positions; the map g is a linear one of the features, the same at every position.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.kernels.linear import Linear, linear
from pipeline.kernels.memory_layout import flattened
from pipeline.kernels.nonlinearity import activate
from pipeline.kernels.pooling import pool
from pipeline.kernels.recompute import Activation
from pipeline.kernels.spatial_std import overwriting_pool, spatial_std
from pipeline.learning.losses import is_reduced
from pipeline.learning.precision import autocast
from pipeline.network.specs import SIMILARITY_KERNEL

if TYPE_CHECKING:
    from pipeline.network.specs import BlockSpec, LayerSpec, PredSpec, Shape, SimSpec


class _FedBack(torch.autograd.Function):
    """A linear layer whose error goes back through `feedback` instead of its weight.

    Forward: x Wᵀ + b. Backward: the gradients of W and b are the true ones; that of x is the
    error times `feedback`, of W's shape (Lillicrap et al. 2016).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, feedback: Tensor) -> Tensor:
        ctx.save_for_backward(x, feedback)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, feedback = ctx.saved_tensors
        return error @ feedback.to(error), error.T @ x.to(error), error.sum(dim=0), None


class PredHead(Linear):
    """The local classifier D(pool(h)): (n, outputs); the layer itself is its last one.

    The weight of a classifier that is trained starts at zero, but hidden layers of it at random
    as any other; one that is not trained keeps its random start. Biases start as PyTorch's do,
    but for the bio forms: at zero, as the authors' feedback alignment has it.
    """

    feedback: Tensor | None

    def __init__(self, spec: PredSpec) -> None:
        *hidden, last = spec.layers
        super().__init__(*last)
        self.spec = spec
        self.hidden = nn.ModuleList(Linear(*sizes) for sizes in hidden)
        self.register_buffer("feedback", self._draw_feedback(), persistent=True)
        if spec.feedback in ("learned", "aligned"):
            nn.init.zeros_(self.weight)
        else:
            self.requires_grad_(False)
        if spec.feedback == "aligned":
            nn.init.zeros_(self.bias)

    def forward(self, h: Tensor) -> Tensor:
        return self.classified(pool(_in_a_row(h), self.spec.pool))

    def classified(self, pooled: Tensor) -> Tensor:
        """D of the activation pooled already: (n, C, H, W), (n, T, D) or (n, D) to (n, outputs)."""
        x = flattened(pooled)
        for layer in self.hidden:
            x = activate(layer(x), self.spec.nonlinearity)
        if self.feedback is None:
            return linear(x, self.weight, self.bias)
        fed_back: Tensor = _FedBack.apply(x, self.weight, self.bias, self.feedback)
        return fed_back

    def _draw_feedback(self) -> Tensor | None:
        """Uniform within ±1/√fan_in, as the weight itself; None where the transpose serves."""
        if self.spec.feedback in ("learned", "transpose"):
            return None
        drawn = torch.empty_like(self.weight.detach())
        drawn.uniform_(-1, 1).div_(self.spec.features**0.5)
        if self.spec.feedback == "sign":
            return drawn.abs() * self.weight.detach().sign()
        return drawn


class SimilarityPool(nn.Module):
    """In place of g in the bio form: the activation, pooled as for a classifier."""

    def __init__(self, spec: SimSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, h: Tensor) -> Tensor:
        return pool(_in_a_row(h), self.spec.pool)


def _in_a_row(h: Tensor) -> Tensor:
    """(n, …, D) as (n, T, D): all positions in one dimension. (n, D) and feature maps stay."""
    return h if h.dim() in (2, 4) else h.flatten(1, -2)


class SimilarityConv(nn.Conv2d):
    """g of feature maps: (n, C, H, W) to as many maps, or, where it is not the paper's, from pooled
    maps or to fewer."""

    def __init__(self, spec: SimSpec) -> None:
        kernel = SIMILARITY_KERNEL
        super().__init__(
            spec.features, spec.out_features, kernel, padding=1, bias=False, groups=spec.groups
        )
        self.spec = spec

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(pool(h, self.spec.pool))


def similarity_map(spec: SimSpec) -> nn.Module:
    """g of the similarity loss, without bias: of the paper, the activation mapped onto its own
    shape."""
    if not spec.features:
        return SimilarityPool(spec)
    if spec.kind == "conv":
        return SimilarityConv(spec)
    return Linear(spec.features, spec.out_features, bias=False)


def heads_of(
    activation: Activation,
    pred: PredHead | None,
    sim: nn.Module | None,
    sim_spec: SimSpec | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Logits of the classifier, and g(h) or, of feature maps, its standard deviation over space;
    None where there is no such head."""
    h, recompute = activation
    if sim is not None and sim_spec and sim_spec.features and not sim_spec.is_own_shape:
        return pred(h) if pred is not None else None, _mapped(h, sim, sim_spec)
    pooling = pred.spec.pool if pred is not None else None
    mapped: Tensor | None
    pooled: Tensor | None = None
    by_hand = not torch.compiler.is_compiling()
    if by_hand and isinstance(sim, nn.Conv2d) and is_reduced(h):
        if pred is not None and pooling is None:
            activation = Activation(h)  # the classifier reads h itself, after the map
        mapped, pooled = spatial_std(activation, sim.weight, pooling)
    else:
        mapped = sim(h) if sim is not None else None
        if by_hand and mapped is None and pooling is not None and recompute is not None:
            pooled = overwriting_pool(h, pooling)
    if pred is None:
        return None, mapped
    return pred(h) if pooled is None else pred.classified(pooled), mapped


def _mapped(h: Tensor, sim: nn.Module, spec: SimSpec) -> Tensor:
    """As `heads_of`, of a map that is not the paper's: h stays as it is."""
    with autocast(h.device, bf16=True) if spec.bf16 else nullcontext():
        if not isinstance(sim, SimilarityConv):
            mapped: Tensor = sim(h)
            return mapped
        seen = pool(h, spec.pool)
        is_reduced_by_hand = spec.out_features > 3 and seen.size(2) > 1
        if torch.compiler.is_compiling() or not is_reduced_by_hand:
            return F.conv2d(seen, sim.weight, padding=1, groups=spec.groups)
        std, _ = spatial_std(Activation(seen), sim.weight, None)
        return std


def label_projection(spec: BlockSpec) -> nn.Module | None:
    """The fixed random projection of the one-hot label, None where the label serves itself."""
    if not spec.projection:
        return None
    return nn.Linear(spec.classes, spec.projection, bias=False).requires_grad_(False)


def reconstruction(spec: BlockSpec) -> nn.Module | None:
    """The layer backwards: activation -> the block's input. The first block has none."""
    if spec.unsupervised != "recon" or spec.index == 0:
        return None
    layer = spec.layer
    if layer.kind == "linear":
        return nn.Linear(layer.out_features, layer.in_features)
    return _transposed(layer, spec.in_shape)


def _transposed(layer: LayerSpec, in_shape: Shape) -> nn.Module:
    """A strided layer leaves out a last row where it does not fit; `output_padding` is that."""
    height, width = (
        (side + 2 * layer.padding - layer.kernel) % layer.stride for side in in_shape[1:]
    )
    return nn.ConvTranspose2d(
        layer.out_features,
        layer.in_features,
        layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        output_padding=(height, width),
    )
