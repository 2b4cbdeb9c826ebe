"""`runtime.cuda_graphs`: a stage's step captured as two CUDA graphs, replayed for every batch.

    x ──in a slot, or copied into memory of the graphs ─┐
    targets, carried ──copied───────────────────────────┤
    batch id, learning rate ──▶ StepScalars ────────────┴─▶ [begin] ──passed──▶ send
                                                            [finish]  every block has learned

A step of hundreds of small kernels costs the processor more time than the device; replayed, it
costs two calls. Graphs always read the same memory: there is a captured step for each slot of the
ring in which batches arrive, so that none has to be copied. A graph runs no Python and asks the
device nothing, so all that changes from batch to batch must lie in memory. Whether something was
forgotten is tested: the first replay is of a batch that was not captured, and must change weights,
statistics and counters bit for bit as the plain step does, or there is no second one.
"""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Tensors: TypeAlias = tuple[Tensor, ...]
    """Of a batch: x, its targets, and what is carried beside them; or what is sent of these."""
    Send: TypeAlias = Callable[..., None]
    """Takes what is passed on, and what is carried on."""

PLAIN_STEPS = 2
"""Of each shape before one is captured: kernels are chosen and memory is taken meanwhile."""


class StepScalars:
    """Batch id and learning rate, where kernels can read them; set before each step of a stage.

    On a CUDA device both lie in memory there, where a replayed step reads them. So does every other
    step, which so rounds alike: fused optimizers take a rate in memory as float32. On a CPU the
    learning rate stays a Python number, float64.
    """

    def __init__(self, device: torch.device) -> None:
        self.batch_id = torch.zeros((), dtype=torch.int64, device=device)
        self.lr: float | Tensor = 0.0
        if device.type == "cuda":
            self.lr = torch.zeros((), dtype=torch.float32, device=device)

    def set(self, batch_id: int, lr: float) -> None:
        """To those of the next batch, without waiting for the device."""
        self.batch_id.fill_(batch_id)
        if isinstance(self.lr, Tensor):
            self.lr.fill_(lr)
        else:
            self.lr = lr


class Passing(Protocol):
    """A step between its two halves."""

    @property
    def sent(self) -> Tensors:
        """What is passed on and carried on."""


Half = TypeVar("Half", bound=Passing)


class Steps(Protocol[Half]):
    """Whose steps are captured: a `Stage`."""

    @property
    def sends(self) -> bool:
        """Whether what it passes on is sent."""

    def prepared(self, given: Tensors, batch_id: int) -> Tensors:
        """What arrived as input; may be different work for each batch."""

    def begin(self, given: Tensors, batch_id: int, *, is_prepared: bool = False) -> Half:
        """Up to what is sent, from what arrived, or from what is prepared."""

    def finish(self, pending: Half, batch_id: int) -> None:
        """After it was sent."""

    def step(self, given: Tensors, batch_id: int, send: Send) -> None:
        """Both halves at once, from what arrived."""

    def mutated_tensors(self) -> Sequence[Tensor]:
        """All that a step changes."""


class GraphCapture(Protocol):
    """Turns work on a device into a call that repeats it."""

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        """A call that does the same in the same memory. Raises RuntimeError where it can't be."""

    def release_unused(self) -> None:
        """Give back the memory that only plain steps needed."""


class CudaGraphCapture:
    """CUDA graphs that share one pool of memory: they are replayed in turn, never at once. In
    single mode those of all stages do, so that memory does not grow with depth."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None  # whatever PyTorch calls one

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        """Captures without running. Raises RuntimeError where CUDA refuses."""
        gc.collect()  # what is left of a plain step would tie the graph to its stream
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # the outer stream comes back also where the end of a failed capture raises
            with torch.cuda.stream(torch.cuda.current_stream(self._device)):  # noqa: SIM117
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    work()
        except RuntimeError:
            # PyTorch 2.11 does not leave the pool then, and would keep what is freed for a capture
            # that is over; where it does, this raises
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
            raise
        return graph.replay

    def release_unused(self) -> None:
        """Back to the device, for other processes on it."""
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class _Place:
    """What a captured step is good for. `address`: of the slot that it reads; None: it has memory
    of its own, into which other batches are copied. `others`: shapes of what comes beside x."""

    shape: torch.Size
    strides: tuple[int, ...]
    address: int | None
    others: tuple[torch.Size, ...]


@dataclass(slots=True)
class _CapturedStep(Generic[Half]):
    """The two halves of a step, and the memory that they read and write.

    `given`: x in the slot or in memory of its own, the others always so; `proved`: a replay has
    equalled a plain step.
    """

    given: Tensors
    batch_id: int
    begin: Callable[[], object] | None = None
    finish: Callable[[], object] | None = None
    pending: Half | None = None
    sent: Tensors | None = None
    proved: bool = False

    def replay(self, given: Tensors, batch_id: int, send: Send) -> None:
        assert self.begin is not None, "captured before it is replayed"
        assert self.finish is not None, "captured before it is replayed"
        for own, new in zip(self.given, given, strict=True):
            if own.data_ptr() != new.data_ptr():
                own.copy_(new)
        self.batch_id = batch_id
        self.begin()
        if self.sent is not None:
            send(*self.sent)
        self.finish()


class CapturedSteps(Generic[Half]):
    """Trains as `stage.step` does: the first batches of each shape by it, later ones by replay."""

    def __init__(
        self, stage: Steps[Half], graphs: GraphCapture, tell: Callable[[str], None]
    ) -> None:
        self._stage, self._graphs, self._tell = stage, graphs, tell
        self._plain_steps: Counter[torch.Size] = Counter()
        self._captured: dict[_Place, _CapturedStep[Half]] = {}
        self._given_up = False

    def train(self, given: Tensors, batch_id: int, send: Send, *, in_slot: bool = False) -> None:
        """One step; its `StepScalars` are set.

        Args:
            in_slot: whether x lies where later batches will lie, too, and stays there until the
                device has done the step.
        """
        x, *others = given
        address = x.data_ptr() if in_slot else None
        place = _Place(x.shape, x.stride(), address, tuple(other.shape for other in others))
        captured = self._captured.get(place)
        if captured is None:
            self._stage.step(given, batch_id, send)
            self._plain_steps[x.shape] += 1
            if self._plain_steps[x.shape] >= PLAIN_STEPS and not self._given_up:
                self._capture(place, given, batch_id)
        elif captured.proved:
            captured.replay(self._stage.prepared(given, batch_id), batch_id, send)
        else:
            self._prove(captured, given, batch_id, send)

    def _capture(self, place: _Place, given: Tensors, batch_id: int) -> None:
        """The step of the batch that was just trained; capturing it changes nothing."""
        x, *others = self._stage.prepared(given, batch_id)
        x = x.clone() if place.address is None else x
        step: _CapturedStep[Half] = _CapturedStep(
            (x, *(other.clone() for other in others)), batch_id
        )

        def begin() -> None:
            step.pending = self._stage.begin(step.given, step.batch_id, is_prepared=True)
            step.sent = step.pending.sent if self._stage.sends else None

        def finish() -> None:
            pending, step.pending = step.pending, None
            assert pending is not None, "a step begins before it is finished"
            self._stage.finish(pending, step.batch_id)

        try:
            step.begin, step.finish = self._graphs.capture(begin), self._graphs.capture(finish)
        except RuntimeError as error:
            self._give_up(f"recording failed: {str(error).strip().partition(chr(10))[0]:.200}")
        else:
            self._captured[place] = step

    def _prove(
        self, captured: _CapturedStep[Half], given: Tensors, batch_id: int, send: Send
    ) -> None:
        """Replay the batch, take it back, train it plainly, and compare."""
        before = _copies(self._stage.mutated_tensors())
        sent: list[Tensor] = []
        captured.replay(
            self._stage.prepared(given, batch_id), batch_id, lambda *passed: sent.extend(passed)
        )
        replayed = _copies([*self._stage.mutated_tensors(), *sent])
        for live, copy in zip(self._stage.mutated_tensors(), before, strict=True):
            live.detach().copy_(copy)
        sent.clear()

        def keep_and_send(*passed: Tensor) -> None:
            sent.extend(passed)
            send(*passed)

        self._stage.step(given, batch_id, keep_and_send)
        captured.proved = _alike(_copies([*self._stage.mutated_tensors(), *sent]), replayed)
        self._graphs.release_unused()
        if not captured.proved:
            self._give_up("a replayed step did not equal a plain one bit for bit")

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._captured.clear()
        self._tell(without_graphs(reason))


def without_graphs(reason: str) -> str:
    """The note to the user where steps are not captured."""
    return f"runtime.cuda_graphs: training goes on without them ({reason})"


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """In host memory: the device may have no room for all of it twice."""
    return [tensor.detach().cpu().clone() for tensor in tensors]


def _alike(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(
        torch.equal(_bytes(one), _bytes(other)) for one, other in zip(some, others, strict=True)
    )


def _bytes(x: Tensor) -> Tensor:
    """What is not a number equals nothing, not even itself: its bytes do."""
    return x.contiguous().view(-1).view(torch.uint8)
