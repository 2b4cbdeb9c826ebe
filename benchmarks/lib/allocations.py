"""The most memory that tensors take at a time: from PyTorch's profiler, which records every piece.

    a ──────────────────────           time goes to the right; each line is a piece of memory,
         b ────────                    from where it is taken to where it is given back
               c ─────────────
                  ▲ the peak: a + b + c bytes

Pieces that become gradients of weights are marked as such when the optimizer is given them, so
that the same record also says what the peak is without them: the activations'.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch._C._profiler import _ExtraFields_Allocation
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor
    from torch._C._profiler import _ProfilerEvent

    from pipeline.learning.optimizers import Optimizer

_MARK = "gradients at "


class Change(NamedTuple):
    """Memory is taken at an address, or, with `nbytes` below 0, given back."""

    address: int
    nbytes: int


class Gradients(NamedTuple):
    """Now the optimizer is given gradients, which lie at these addresses."""

    addresses: tuple[int, ...]


Event: TypeAlias = Change | Gradients


@dataclass(slots=True)
class Piece:
    """A piece of memory, taken at one event of a record and given back at another."""

    nbytes: int
    taken: int
    given_back: float = inf
    is_gradient: bool = False


@dataclass(frozen=True, slots=True)
class Peaks:
    """Most bytes at a time beyond what was held before; `activations` leaves out the gradients
    of weights wherever they lived. `held`: weights, statistics and the optimizer's state; None in
    results from before they were counted."""

    total: int
    activations: int
    held: int | None = None


class MarkingOptimizer:
    """Another optimizer, whose gradients are marked in the record."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.state, self.hold, self.release = optimizer.state, optimizer.hold, optimizer.release

    def step(self, gradients: Sequence[Tensor | None], lr: float | Tensor) -> None:
        """Step as the wrapped optimizer does; note the gradients' addresses in the record."""
        addresses = (g.untyped_storage().data_ptr() for g in gradients if g is not None)
        with record_function(_MARK + " ".join(map(str, addresses))):
            self._optimizer.step(gradients, lr)


def measure(work: Callable[[], None], device: torch.device) -> Peaks:
    """Do some work once; on CUDA the total is the allocator's own peak."""
    on_cuda = device.type == "cuda"
    held = torch.cuda.memory_allocated(device) if on_cuda else 0
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    pieces = pieces_of(recorded(work, device))
    total = torch.cuda.max_memory_allocated(device) - held if on_cuda else peak(pieces)
    return Peaks(total, peak(piece for piece in pieces if not piece.is_gradient))


def recorded(work: Callable[[], None], device: torch.device) -> list[Event]:
    """Everything that is taken and given back on the device meanwhile, in order of time."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else each start and stop is told
    recording = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    # on a GPU a thread of its own would go backward, and what it gives back would not be recorded
    with torch.autograd.set_multithreading_enabled(False), recording as profiler:
        work()
    assert profiler.profiler is not None, "it has just run"
    assert profiler.profiler.kineto_results is not None, "it has just run"
    found = list(_flat(profiler.profiler.kineto_results.experimental_event_tree()))
    found.sort(key=lambda event: event.start_time_ns)
    return [event for one in found if (event := _event(one, device)) is not None]


def pieces_of(events: Iterable[Event]) -> list[Piece]:
    """The pieces taken in a record; what was taken before it began is none of them."""
    pieces: list[Piece] = []
    at: dict[int, Piece] = {}
    for moment, event in enumerate(events):
        if isinstance(event, Gradients):
            for address in event.addresses:
                if address in at:
                    at[address].is_gradient = True
        elif event.nbytes > 0:
            at[event.address] = Piece(event.nbytes, moment)
            pieces.append(at[event.address])
        elif event.address in at:
            at.pop(event.address).given_back = moment
    return pieces


def peak(pieces: Iterable[Piece]) -> int:
    """Most bytes at a time."""
    changes: list[tuple[float, int]] = []
    for piece in pieces:
        changes += [(piece.taken, piece.nbytes), (piece.given_back, -piece.nbytes)]
    return max(accumulate(nbytes for _, nbytes in sorted(changes)), default=0)


def _flat(events: Iterable[_ProfilerEvent]) -> Iterator[_ProfilerEvent]:
    for event in events:
        yield event
        yield from _flat(event.children)


def _event(event: _ProfilerEvent, device: torch.device) -> Event | None:
    """What matters of a profiler's event."""
    _, fields = event.typed
    if isinstance(fields, _ExtraFields_Allocation):
        return Change(fields.ptr, fields.alloc_size) if fields.device.type == device.type else None
    if event.name.startswith(_MARK):
        return Gradients(tuple(map(int, event.name.removeprefix(_MARK).split())))
    return None
