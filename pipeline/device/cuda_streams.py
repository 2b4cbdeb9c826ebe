"""What goes on beside the compute stream of a CUDA device; on a CPU everything is done at once.

arrivals ──copy in──▶ compute stream: … step k … step k+1 … ──▶ copy out ──▶ next stage
                                  'done k ─▶ the slot of batch k is free
"""

from __future__ import annotations

from collections import deque
from time import sleep
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

LOOK_S = 50e-6
"""Between two looks at how far a device has come, while there is nothing else to do."""


class Incoming:
    """Brings tensors from host memory to a device without waiting for what it computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = side_stream(device)

    def bring(self, x: Tensor) -> Tensor:
        """x on the device; x itself where that is the CPU. x may change once this returns."""
        if self._stream is None:
            return x
        compute = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            here = x.to(self.device)
        compute.wait_stream(self._stream)
        here.record_stream(compute)  # its memory is not used again before compute is through
        return here


class Mark(Protocol):
    """A point in the order of a device's work; `torch.cuda.Event` is one."""

    def query(self) -> bool:
        """Whether the device has come so far."""


class Releases:
    """What may be done only when the device has done what it was given before: credits go back.

    Args:
        mark: makes a mark at the end of what the device was given; None: it does all at once.
    """

    def __init__(self, mark: Callable[[], Mark] | None) -> None:
        self._mark = mark
        self._waiting: deque[tuple[Mark, Callable[[], None]]] = deque()

    def after(self, release: Callable[[], None]) -> None:
        """Call it as soon as `look` finds that it may be."""
        if self._mark is None:
            release()
        else:
            self._waiting.append((self._mark(), release))

    @property
    def waiting(self) -> bool:
        """Whether anything is yet to be released."""
        return bool(self._waiting)

    def look(self) -> None:
        """Release what the device has come to by now."""
        while self._waiting and self._waiting[0][0].query():
            self._waiting.popleft()[1]()

    def watch(self, is_called: Callable[[], bool]) -> None:
        """Release everything, each as soon as it may be; returns early if called away."""
        while self._waiting and not is_called():
            sleep(LOOK_S)
            self.look()


class Glances:
    """Reads small tensors of a device as they were a while ago, without waiting for it.

    Args:
        mark: as of `Releases`; None: they are read where they lie.
    """

    def __init__(self, mark: Callable[[], Mark] | None) -> None:
        self._mark = mark
        self._landing: tuple[Mark, list[Tensor]] | None = None
        self._landed: list[list[Any]] | None = None

    def at(self, tensors: Sequence[Tensor]) -> list[list[Any]] | None:
        """Their numbers when the last copy was made that has landed; None before the first has."""
        if self._mark is None:
            return [x.tolist() for x in tensors]
        if self._landing is not None and self._landing[0].query():
            self._landed, self._landing = [x.tolist() for x in self._landing[1]], None
        if self._landing is None:
            copies = [x.to("cpu", non_blocking=True) for x in tensors]
            self._landing = self._mark(), copies
        return self._landed

    def forget(self) -> None:
        """Nothing is known of them: the tensors were set to other numbers."""
        self._landing = self._landed = None


def marks_of(device: torch.device) -> Callable[[], Mark] | None:
    """How to mark the end of what a device was given."""
    return recorded_event if device.type == "cuda" else None


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream beside that which computes; None on the CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def recorded_event(*, timed: bool = False) -> torch.cuda.Event:
    """A mark at the end of what the current device was given; a timed one also says when."""
    event = torch.cuda.Event(enable_timing=timed)  # type: ignore[no-untyped-call]
    event.record()
    return event
