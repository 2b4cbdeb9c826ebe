"""Local rules of tests' own: one that uses every hook, and one for each thing that can be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.rules.rule import Batch, LocalRule, OwnOptimizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.rules.rule import Place


class Plain(LocalRule):
    """Cross-entropy of a linear classifier, as `pred` has it."""

    static = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.head = nn.Linear(torch.Size(place.shape).numel(), place.classes)
        nn.init.zeros_(self.head.weight)

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        scores = self.head(h.flatten(1))
        return F.cross_entropy(scores, batch.y), scores

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        scores: Tensor = self.head(h.flatten(1))
        return scores


class EveryHook(LocalRule):
    """Copies, noise, carried tensors that change in value and width, a buffer, directions beside
    gradients, optimizers of its own."""

    carries = ("seen", "label")
    output_layer = False
    layer_optimizer = OwnOptimizer("sgd", lr=0.02, momentum=0.5)
    rule_optimizer = OwnOptimizer("adamw", lr=0.01)

    def __init__(self, place: Place, noise: float = 0.1) -> None:
        super().__init__(place)
        self.noise = noise
        self.head = nn.Linear(torch.Size(place.shape).numel(), place.classes)
        self.drop: nn.Module = nn.Identity()
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64), persistent=False)

    @classmethod
    def expand(
        cls, batch: Batch, classes: int, training: bool, generator: Any, noise: float = 0.1
    ) -> Batch:
        copies = 2 if training else 3
        x = batch.x.repeat_interleave(copies, 0)
        x = x + noise * torch.randn(x.shape, generator=generator)
        carry = {"seen": x.flatten(1)[:, :2], "label": batch.y.repeat_interleave(copies)}
        return Batch(x, batch.y, carry)

    def enter(self, x: Tensor, batch: Batch, generator: Any) -> Tensor:
        return x + self.noise * torch.randn(x.shape, generator=generator) if batch.training else x

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Tensor:
        self.batches += 1
        noise = 1 + self.noise * torch.rand(len(h), 1, generator=generator)
        scores = self.head(self.drop(h.flatten(1).float() * noise))
        seen = batch.carry["seen"].mean(1, keepdim=True)
        loss = F.cross_entropy(scores + seen, batch.carry["label"])
        return loss * (1 + 1 / self.batches)

    def update(self, layer: nn.Module, h: Tensor, x: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        own = dict(layer.named_parameters())
        name = min(name for name in own if name.endswith("bias"))
        return {name: own[name] - h.float().mean()}

    def leave(self, h: Tensor, batch: Batch) -> None:
        mean = h.float().flatten(1).mean(1, keepdim=True)
        batch.carry["seen"] = torch.cat([batch.carry["seen"], mean], 1)

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        rows = self.head(h.float().flatten(1)) + batch.carry["seen"].mean(1, keepdim=True)
        return rows.view(len(batch.y), -1, rows.shape[1]).mean(1)


class WithDropout(EveryHook):
    """Draws from the generator that all of a process share, too: not for stages in threads."""

    def __init__(self, place: Place, noise: float = 0.1) -> None:
        super().__init__(place, noise)
        self.drop = nn.Dropout(0.3)


class NotARule(nn.Module):
    """No LocalRule."""


class Raising(LocalRule):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        raise RuntimeError(f"no rule for {place.shape}")


class Needy(LocalRule):
    def __init__(self, place: Place, width: int) -> None:
        super().__init__(place)


class ManyLosses(Plain):
    """Not a scalar."""

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        return F.cross_entropy(self.head(h.flatten(1)), batch.y, reduction="none")


class Infinite(Plain):
    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        return h.sum() / 0


class Detached(Plain):
    """Its classifier learns, its block would not."""

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        return super().loss(h.detach(), x, batch, generator)


class Silent(LocalRule):
    """Neither a loss nor directions."""


class Unset(Plain):
    carries = ("image",)


class Unnamed(Plain):
    """Carries what it does not name."""

    @classmethod
    def expand(cls, batch: Batch, classes: int, training: bool, generator: Any) -> Batch:
        return Batch(batch.x, batch.y, {"image": batch.x})


class Image(Plain):
    carries = ("image",)

    @classmethod
    def expand(cls, batch: Batch, classes: int, training: bool, generator: Any) -> Batch:
        return Batch(batch.x, batch.y, {"image": batch.x})


class Number(Image):
    """Carries what is no tensor."""

    @classmethod
    def expand(cls, batch: Batch, classes: int, training: bool, generator: Any) -> Batch:
        image: Any = 5
        return Batch(batch.x, batch.y, {"image": image})


class Half(Image):
    """Of a type that does not travel."""

    @classmethod
    def expand(cls, batch: Batch, classes: int, training: bool, generator: Any) -> Batch:
        return Batch(batch.x, batch.y, {"image": batch.x.half()})


class Retyped(Image):
    def leave(self, h: Tensor, batch: Batch) -> None:
        batch.carry["image"] = batch.carry["image"].double()


class Flattening(Plain):
    """`enter` gives another shape than it says."""

    def enter(self, x: Tensor, batch: Batch, generator: Any) -> Tensor:
        return torch.cat([x.flatten(1), x.flatten(1)], 1)


class Copying(Plain):
    """Rows for which an output layer has no labels."""

    @classmethod
    def expand(cls, batch: Batch, classes: int, training: bool, generator: Any) -> Batch:
        return Batch(batch.x.repeat_interleave(2, 0), batch.y)

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        return F.cross_entropy(self.scores(h, batch), batch.y)

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        return super().scores(h, batch)[::2]


class Growing(Image):
    """What is carried changes its shape from batch to batch."""

    @classmethod
    def expand(cls, batch: Batch, classes: int, training: bool, generator: Any) -> Batch:
        wide = len(batch.y) > 2
        return Batch(batch.x, batch.y, {"image": batch.x.flatten(1)[:, : 2 + wide]})


class InPlace(Image):
    def leave(self, h: Tensor, batch: Batch) -> None:
        batch.carry["image"].add_(1)


class InPlaceLater(Image):
    """Changes what has been passed on already."""

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        batch.carry["image"].mul_(0.5)
        return super().loss(h, x, batch, generator)


class InPlaceByData(Image):
    """As `InPlaceLater`, by a way on which no change is counted."""

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        batch.carry["image"].data.mul_(0.5)
        return super().loss(h, x, batch, generator)


class InPlaceByNumpy(Image):
    """What it gives goes on as it is, so that the next block would compute on other numbers."""

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        h.detach().numpy()[:] *= 0.5
        return super().loss(h, x, batch, generator)


class OtherTargets(Image):
    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        batch.y.fill_(0)
        return super().loss(h, x, batch, generator)


class OwnActivation(Image):
    def update(self, layer: Any, h: Tensor, x: Tensor, batch: Batch) -> Any:
        h.mul_(0.5)
        return {}


class Last(Image):
    """Carries the activation, and changes what it has received."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.seen: list[Tensor] = []

    @classmethod
    def expand(cls, batch: Batch, classes: int, training: bool, generator: Any) -> Batch:
        return Batch(batch.x, batch.y, {"image": torch.zeros(len(batch.x), 6)})

    def enter(self, x: Tensor, batch: Batch, generator: Any) -> Tensor:
        return x.mul_(0.5)

    def leave(self, h: Tensor, batch: Batch) -> None:
        batch.carry["image"] = h

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        self.seen = [x.clone(), batch.carry["image"]]
        return super().loss(h, x, batch, generator)


class TargetsInEnter(Image):
    def enter(self, x: Tensor, batch: Batch, generator: Any) -> Tensor:
        batch.y.fill_(0)
        return x


class TargetsInLeave(Image):
    def leave(self, h: Tensor, batch: Batch) -> None:
        batch.y = batch.y * 0


class OneText(Image):
    carries: Any = "image"


class Twice(Image):
    carries = ("image", "image")


class ListCarried(Image):
    @classmethod
    def expand(cls, batch: Batch, classes: int, training: bool, generator: Any) -> Batch:
        carry: Any = ["image"]
        return Batch(batch.x, batch.y, carry)


class NoModule(LocalRule):
    def __init__(self, place: Place) -> None:
        self.place = place


class NamedOptimizer(Plain):
    layer_optimizer: Any = "sgd"


class WithGraph(Image):
    def leave(self, h: Tensor, batch: Batch) -> None:
        batch.carry["image"] = batch.carry["image"] * self.head.bias.sum().requires_grad_()
        batch.carry["image"].requires_grad_()


class OddScores(Plain):
    output_layer = False

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        return super().scores(h, batch)[:1]


class OddDirections(Plain):
    def update(self, layer: nn.Module, h: Tensor, x: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {"wait": torch.zeros(1)}


class WholeScores(Plain):
    output_layer = False

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        return super().scores(h, batch).long()


class WideScores(Plain):
    """More columns than classes, in training already."""

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        return h.square().mean(), h


class Narrowing(Image):
    """Another shape at the next block than its loss takes."""

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        return h.mean() + batch.carry["image"].mean(3).mean()

    def leave(self, h: Tensor, batch: Batch) -> None:
        batch.carry["image"] = batch.carry["image"].flatten(1)


class OddOptimizer(Plain):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        name: Any = "banana"
        self.layer_optimizer = OwnOptimizer(name, lr=0.1)


class Numbers(LocalRule):
    """Predicts a number for each example."""

    output_layer = False

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.head = nn.Linear(torch.Size(place.shape).numel(), 1)

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        scores: Tensor = self.head(h.flatten(1))
        return scores.squeeze(1)

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: Any) -> Any:
        scores = self.scores(h, batch)
        return F.smooth_l1_loss(scores, batch.y), scores
