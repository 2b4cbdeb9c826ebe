"""Threads that read and decode images, and that the end of the process does not wait for.

Python joins the threads of its own pools before it ends: one that reads from a disk which hangs
would keep the process, whatever signal it gets.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import finalize

if TYPE_CHECKING:
    from collections.abc import Callable

_Asked: TypeAlias = "tuple[Callable[[], None], Future[Any]]"
"""What a thread is to do, and whose future that is."""


class DaemonPool(Executor):
    """So many daemon threads, started with the first work. They end with the pool: where nobody has
    it any more, too."""

    def __init__(self, threads: int, name: str) -> None:
        self._work: SimpleQueue[_Asked | None] = SimpleQueue()
        self._threads, self._to_start = threads, [f"{name}-{number}" for number in range(threads)]
        finalize(self, _end, self._work, threads)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As every executor does it; the first call starts the threads."""
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # for whoever asks for the result, or waits for it
                future.set_exception(error)

        self._work.put((work, future))
        while self._to_start:
            # of the queue alone: a thread that knew the pool would keep it for good
            name = self._to_start.pop()
            Thread(target=_carry_out, args=(self._work,), name=name, daemon=True).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Have the threads end when they are done, or, with `cancel_futures`, as soon as they can;
        nobody waits for them. Futures of what isn't begun are cancelled then."""
        while cancel_futures and not self._work.empty():
            with suppress(Empty):
                if asked := self._work.get_nowait():
                    asked[1].cancel()
        _end(self._work, self._threads)


def _carry_out(queue: SimpleQueue[_Asked | None]) -> None:
    while asked := queue.get():
        asked[0]()
        del asked  # and with it the result, which may be large, until more is asked for


def _end(asked: SimpleQueue[_Asked | None], threads: int) -> None:
    for _ in range(threads):
        asked.put(None)
