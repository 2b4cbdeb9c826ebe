"""`runtime.cuda_graphs`: a stage's step as two recorded graphs, replayed for every batch.

    x ──in a slot, or copied into memory of the recording ─┐
    labels ──copied────────────────────────────────────────┤
    batch id, learning rate ──▶ dials ─────────────────────┴─▶ [begin] ──passed──▶ send
                                                               [finish]  every block has learned

A step of hundreds of small kernels costs the processor more time than the device; replayed, it
costs two calls. A recording always reads the same memory: there is one for each slot of the ring
in which batches arrive, so that none has to be copied. What is recorded runs no Python and asks
the device nothing, so all that changes from batch to batch must lie in memory. That nothing was
forgotten is not believed but shown: the first replay is of a batch that was not recorded, and must
change weights, statistics and counters bit for bit as the plain step does, or there is no second
one.
"""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Send: TypeAlias = Callable[[Tensor], None]

PLAIN_STEPS = 2
"""Of each shape before one is recorded: kernels are chosen and memory is taken meanwhile."""


class Passing(Protocol):
    """A step between its two halves."""

    passed: Tensor


Half = TypeVar("Half", bound=Passing)


class Work(Protocol[Half]):
    """What is recorded: a `Stage`."""

    @property
    def sends(self) -> bool:
        """Whether what it passes on is sent."""

    def prepared(self, x: Tensor, batch_id: int) -> Tensor:
        """What arrived as input; may be different work for each batch."""

    def begin(self, x: Tensor, labels: Tensor, batch_id: int, *, is_prepared: bool = False) -> Half:
        """Up to what is sent, from what arrived, or from what is prepared."""

    def finish(self, pending: Half, labels: Tensor, batch_id: int) -> None:
        """After it was sent."""

    def step(self, x: Tensor, labels: Tensor, batch_id: int, send: Send) -> None:
        """Both, at once, from what arrived."""

    def memory(self) -> Sequence[Tensor]:
        """All that a step changes."""


class Recorder(Protocol):
    """Turns work on a device into something that does it again."""

    def record(self, work: Callable[[], None]) -> Callable[[], object]:
        """What does the same again, in the same memory. Raises RuntimeError where it can't be."""

    def tidy(self) -> None:
        """Give back the memory that only plain steps needed."""


class CudaRecorder:
    """CUDA graphs that share one pool of memory: they are replayed in turn, never at once. In
    single mode those of all stages do, so that memory does not grow with depth."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None  # whatever PyTorch calls one

    def record(self, work: Callable[[], None]) -> Callable[[], object]:
        """Captures without running. Raises RuntimeError where CUDA refuses."""
        gc.collect()  # what is left of a plain step would tie the recording to its stream
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # the outer stream comes back also where the end of a failed capture raises
            with torch.cuda.stream(torch.cuda.current_stream(self._device)):  # noqa: SIM117
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    work()
        except RuntimeError:
            self._leave_pool()
            raise
        return graph.replay

    def _leave_pool(self) -> None:
        """PyTorch 2.11 forgets to, and would keep what is freed for a capture that is over."""
        with suppress(RuntimeError):  # it has not forgotten
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)

    def tidy(self) -> None:
        """Back to the device, for others on it."""
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class _Place:
    """What a recording is good for. `address`: of the slot that it reads; None: it has memory of
    its own, into which other batches are copied."""

    shape: torch.Size
    strides: tuple[int, ...]
    address: int | None


@dataclass(slots=True)
class _Recording(Generic[Half]):
    """The two halves of a step, and the memory that they read and write.

    `x`: the slot's, or its own; `labels`: its own.
    """

    x: Tensor
    labels: Tensor
    batch_id: int
    begin: Callable[[], object] | None = None
    finish: Callable[[], object] | None = None
    pending: Half | None = None
    passed: Tensor | None = None
    proved: bool = False

    def replay(self, x: Tensor, labels: Tensor, batch_id: int, send: Send) -> None:
        assert self.begin is not None, "recorded before it is replayed"
        assert self.finish is not None, "recorded before it is replayed"
        if x.data_ptr() != self.x.data_ptr():
            self.x.copy_(x)
        self.labels.copy_(labels)
        self.batch_id = batch_id
        self.begin()
        if self.passed is not None:
            send(self.passed)
        self.finish()


class Graphs(Generic[Half]):
    """Trains as `work.step` does: the first batches of each shape by it, later ones by replay."""

    def __init__(self, work: Work[Half], recorder: Recorder, tell: Callable[[str], None]) -> None:
        self._work, self._recorder, self._tell = work, recorder, tell
        self._plain_steps: Counter[torch.Size] = Counter()
        self._recordings: dict[_Place, _Recording[Half]] = {}
        self._given_up = False

    def train(
        self, x: Tensor, labels: Tensor, batch_id: int, send: Send, *, in_slot: bool = False
    ) -> None:
        """One step; its learning rate and batch id have been dialled.

        Args:
            in_slot: whether x lies where later batches will lie, too, and stays there until the
                device has done the step.
        """
        place = _Place(x.shape, x.stride(), x.data_ptr() if in_slot else None)
        recording = self._recordings.get(place)
        if recording is None or self._given_up:
            self._plainly(place, x, labels, batch_id, send)
        elif recording.proved:
            self._replay(recording, x, labels, batch_id, send)
        else:
            self._prove(recording, x, labels, batch_id, send)

    def _replay(
        self, recording: _Recording[Half], x: Tensor, labels: Tensor, batch_id: int, send: Send
    ) -> None:
        recording.replay(self._work.prepared(x, batch_id), labels, batch_id, send)

    def _plainly(self, place: _Place, x: Tensor, labels: Tensor, batch_id: int, send: Send) -> None:
        self._work.step(x, labels, batch_id, send)
        self._plain_steps[x.shape] += 1
        if self._plain_steps[x.shape] >= PLAIN_STEPS and not self._given_up:
            self._record(place, x, labels, batch_id)

    def _record(self, place: _Place, x: Tensor, labels: Tensor, batch_id: int) -> None:
        """Of the batch that was just trained; recording it changes nothing."""
        given = self._work.prepared(x, batch_id)
        given = given.clone() if place.address is None else given
        recording: _Recording[Half] = _Recording(given, labels.clone(), batch_id)
        try:
            recording.begin = self._recorder.record(lambda: self._begin(recording))
            recording.finish = self._recorder.record(lambda: self._finish(recording))
        except RuntimeError as error:
            self._give_up(f"recording failed: {str(error).strip().partition(chr(10))[0]:.200}")
        else:
            self._recordings[place] = recording

    def _begin(self, recording: _Recording[Half]) -> None:
        recording.pending = self._work.begin(
            recording.x, recording.labels, recording.batch_id, is_prepared=True
        )
        recording.passed = recording.pending.passed if self._work.sends else None

    def _finish(self, recording: _Recording[Half]) -> None:
        pending, recording.pending = recording.pending, None
        assert pending is not None, "a step begins before it is finished"
        self._work.finish(pending, recording.labels, recording.batch_id)

    def _prove(
        self, recording: _Recording[Half], x: Tensor, labels: Tensor, batch_id: int, send: Send
    ) -> None:
        """Replay the batch, take it back, train it plainly, and compare."""
        before = _copies(self._work.memory())
        sent: list[Tensor] = []
        self._replay(recording, x, labels, batch_id, sent.append)
        replayed = _copies([*self._work.memory(), *sent])
        for live, copy in zip(self._work.memory(), before, strict=True):
            live.detach().copy_(copy)
        sent.clear()

        def keep_and_send(passed: Tensor) -> None:
            sent.append(passed)
            send(passed)

        self._work.step(x, labels, batch_id, keep_and_send)
        recording.proved = _alike(_copies([*self._work.memory(), *sent]), replayed)
        self._recorder.tidy()
        if not recording.proved:
            self._give_up("a replayed step did not equal a plain one bit for bit")

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._recordings.clear()
        self._tell(without_graphs(reason))


def without_graphs(reason: str) -> str:
    """What people are told where steps are not recorded."""
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
