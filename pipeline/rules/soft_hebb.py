"""SoftHebb: soft winner-take-all layers that learn without labels, each from its input alone.

Journé, Garcia Rodriguez, Guo & Moraitis, "Hebbian Deep Learning Without Feedback" (ICLR 2023): its
plasticity, anti-Hebbian for all neurons but the winner, and a learning rate for each neuron that
depends on the norm of its weights. `networks.hebbian` is a network for it.

What differs: a step is the mean over examples and positions, by one learning rate for all layers;
zeros pad maps. Readouts, and the output layer, learn while the layers do, not after them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from pipeline.dtypes import wide
from pipeline.rules.auxiliary import Readout, check_place, cross_entropy
from pipeline.rules.options import check_number
from pipeline.rules.rule import LocalRule, OwnOptimizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from pipeline.rules.rule import Batch, Place


class SoftHebb(LocalRule):
    """A block is one layer without bias and what follows it; what arrives is standardised. Beside
    it a linear classifier, for `scores`, learns from the activation without teaching the block.

    Options:
        lr: of the layer at the begin of the run, by plain gradient descent; `optimizer` is for
            the classifiers.
        temperature: of the softmax over neurons.
        power: each neuron's rate is multiplied by |‖w‖ − 1|^power; 0: all have the same.
    """

    static = True

    def __init__(
        self, place: Place, lr: float = 0.1, temperature: float = 1.0, power: float = 0.5
    ) -> None:
        super().__init__(place)
        check_place(place)
        check_number("lr", lr, above=0)
        check_number("temperature", temperature, above=0)
        check_number("power", power, least=0, most=4)
        self.layer_optimizer = OwnOptimizer("sgd", lr)
        self.temperature, self.power = temperature, power
        norm = nn.BatchNorm2d if len(place.in_shape) == 3 else nn.BatchNorm1d
        self.norm = norm(place.in_shape[0], affine=False)
        self.readout = Readout(place.shape, place.classes)

    def enter(self, x: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """Each channel or feature standardised by batch norm without gain and bias."""
        normed: Tensor = self.norm(wide(x))
        return normed

    def update(self, layer: nn.Module, h: Tensor, x: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Δw_k = y_k (x − u_k w_k), with −y_k for all k but the largest u_k."""
        name, linear = _linear_of(layer)
        w = linear.weight
        if isinstance(linear, nn.Conv2d):
            how = {key: getattr(linear, key) for key in ("stride", "padding", "dilation")}
            u = wide(F.conv2d(x, w, **how))
        else:
            u = wide(F.linear(x.flatten(1), w))
        y = (u / self.temperature).softmax(1)
        y = y.where(F.one_hot(u.argmax(1), u.size(1)).movedim(-1, 1) > 0, -y)
        if isinstance(linear, nn.Conv2d):
            yx = conv2d_weight(x, w.shape, y.to(x.dtype), **how)  # type: ignore[no-untyped-call]
        else:
            yx = y.T @ x.flatten(1)
        yu = (y * u).transpose(0, 1).flatten(1)
        rows = w.flatten(1)
        change = (yx.flatten(1) - yu.sum(1, keepdim=True) * rows) / yu.size(1)
        rate = (rows.norm(dim=1, keepdim=True) - 1).abs() ** self.power
        return {name: -(rate * change).view_as(w)}

    def loss(
        self, h: Tensor, x: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Teaches the classifier beside the block only."""
        scores = self.scores(h, batch)
        return cross_entropy(scores, batch.y), scores

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        scores: Tensor = self.readout(h)
        return scores


def _linear_of(layer: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The one layer of a block, and its weight's name.

    Raises:
        ValueError: where it is none that the rule can teach.
    """
    found = [part for part in layer.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    if len(found) != 1 or len(list(layer.parameters())) != 1:
        raise ValueError(
            "each block must hold one linear or convolutional layer without bias and nothing else "
            "that learns, as pipeline.rules.networks:hebbian makes them"
        )
    (part,) = found
    if isinstance(part, nn.Conv2d) and (
        part.groups > 1 or part.padding_mode != "zeros" or isinstance(part.padding, str)
    ):
        raise ValueError("convolutions must be of one group, padded with a number of zeros")
    return next(name for name, _ in layer.named_parameters()), part
