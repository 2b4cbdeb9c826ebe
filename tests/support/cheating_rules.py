"""Rules that are not local, each in its own way: all but `Honest`, which the others begin from."""

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from pipeline import Batch, LocalRule
from pipeline.data.batches import Batches

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from pipeline import Place

left_behind = 0.0
"""A global variable."""


class Honest(LocalRule):
    """Cross-entropy of a linear classifier, times what others make a factor of."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.head = nn.Linear(torch.Size(place.shape).numel(), place.classes)

    def loss(self, h: Tensor, x: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(self.scores(h, batch), batch.y) * (1 + self.factor(h, batch))

    def factor(self, h: Tensor, batch: Batch) -> Any:
        return 0.0

    def scores(self, h: Tensor, batch: Batch) -> Tensor:
        scores: Tensor = self.head(h.flatten(1))
        return scores


# --- the six of the contract --------------------------------------------------------------


class Global(Honest):
    """Each block leaves a mean in a global variable, which the next one reads."""

    def factor(self, h: Tensor, batch: Batch) -> Any:
        global left_behind
        before, left_behind = left_behind, float(h.detach().mean())
        return before


class SharedModule(Honest):
    """One map for all blocks, made by whichever comes first."""

    shared: ClassVar[nn.Linear | None] = None

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        kind = type(self)
        kind.shared = kind.shared or nn.Linear(place.classes, place.classes)
        self.map = kind.shared

    def factor(self, h: Tensor, batch: Batch) -> Any:
        return self.map(self.scores(h, batch)).square().mean()


class Hook(Honest):
    """A hook of every module keeps what it gives: those upstream, too."""

    handles: ClassVar[list[RemovableHandle]] = []
    kept: ClassVar[list[Tensor]] = []

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        if not self.handles:
            self.handles.append(register_module_forward_hook(self._keep))

    @classmethod
    def _keep(cls, module: nn.Module, given: Any, gave: Any) -> None:
        cls.kept.append(gave.detach().mean())

    def factor(self, h: Tensor, batch: Batch) -> Any:
        return torch.stack(self.kept[-12:]).mean()


class KeepsTest(Honest):
    """An attribute that a test sets, and training reads."""

    seen = 0.0

    def leave(self, h: Tensor, batch: Batch) -> None:
        if not batch.training:
            self.seen = float(h.mean())

    def factor(self, h: Tensor, batch: Batch) -> Any:
        return self.seen


class CountsCalls(Honest):
    """The order of blocks in a process: of three calls one counts more, whichever block's it is."""

    calls = 0

    def factor(self, h: Tensor, batch: Batch) -> Any:
        CountsCalls.calls += 1
        return float(CountsCalls.calls % 3 == 0)


class CarriesGraph(Honest):
    """A carried tensor with its graph: what the next block makes of it would teach this one."""

    carries = ("hint",)

    @classmethod
    def expand(cls, batch: Batch, classes: int, training: bool, generator: Any) -> Batch:
        return Batch(batch.x, batch.y, {"hint": torch.zeros(len(batch.y), classes)}, training)

    def leave(self, h: Tensor, batch: Batch) -> None:
        with torch.enable_grad():
            batch.carry["hint"] = self.scores(h, batch)


# --- others -------------------------------------------------------------------------------


class MovesUpstream(Honest):
    """Each block moves the classifier of the one before it, which it knows from a list."""

    rules: ClassVar[dict[int, Honest]] = {}

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.rules[place.index] = self

    @torch.no_grad()
    def factor(self, h: Tensor, batch: Batch) -> Any:
        if self.place.index:
            self.rules[self.place.index - 1].head.bias.add_(0.01 * h.mean())
        return 0.0


class Tomorrow(Honest):
    """Looks for the data among all objects of the process, and reads the next batch."""

    step = 0

    def factor(self, h: Tensor, batch: Batch) -> Any:
        self.step += 1
        data = next((each for each in gc.get_objects() if type(each) is Batches), None)
        return 0.0 if data is None else float(data.train(1, self.step % 5)[1].mean())


class Clock(Honest):
    """The time of day."""

    def factor(self, h: Tensor, batch: Batch) -> Any:
        return time.time() % 1


class ProcessId(Honest):
    def factor(self, h: Tensor, batch: Batch) -> Any:
        return os.getpid() % 97 / 97


class SharedDraw(Honest):
    """It says that it draws nothing, and draws from the generator that all share."""

    static = True

    def factor(self, h: Tensor, batch: Batch) -> Any:
        return torch.rand(())


class File(Honest):
    """Blocks write to a file, and read it: LEFT_IN says where it is."""

    def factor(self, h: Tensor, batch: Batch) -> Any:
        file = Path(os.environ["LEFT_IN"])
        before = float(file.read_text()) if file.exists() else 0.0
        file.write_text(repr(float(h.detach().mean())))
        return before


class OnTensor(Honest):
    """A note on the tensor that goes on to the next block."""

    def leave(self, h: Tensor, batch: Batch) -> None:
        batch.x.note = float(h.mean())  # type: ignore[attr-defined]

    def factor(self, h: Tensor, batch: Batch) -> Any:
        return getattr(batch.x, "note", 0.0)


class ChangesSent(Honest):
    """It keeps what it has passed on, and changes it while it learns."""

    passed = torch.zeros(())

    def leave(self, h: Tensor, batch: Batch) -> None:
        self.passed = batch.x

    def factor(self, h: Tensor, batch: Batch) -> Any:
        self.passed.mul_(0.5)
        return 0.0


class ChangesSentByNumpy(ChangesSent):
    """The same, by a way on which no change of a tensor is counted."""

    def factor(self, h: Tensor, batch: Batch) -> Any:
        self.passed.numpy()[:] *= 0.5
        return 0.0


class Leaves(Honest):
    """What it carries on is what another block has left in a global variable."""

    carries = ("hint",)

    @classmethod
    def expand(cls, batch: Batch, classes: int, training: bool, generator: Any) -> Batch:
        return Batch(batch.x, batch.y, {"hint": torch.zeros(len(batch.y))}, training)

    def leave(self, h: Tensor, batch: Batch) -> None:
        global left_behind
        batch.carry["hint"] = torch.full((len(batch.y),), left_behind)
        left_behind = float(h.mean())


class Crashes(Honest):
    """Ends its process, where the block before it is not there."""

    trained: ClassVar[set[int]] = set()

    def factor(self, h: Tensor, batch: Batch) -> Any:
        if len(h) > 2:  # more than when shapes are found out
            self.trained.add(self.place.index)
            if self.place.index - 1 not in (-1, *self.trained):
                os.kill(os.getpid(), signal.SIGKILL)
        return 0.0
