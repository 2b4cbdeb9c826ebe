"""What a user's own code is told while `pipeline.fit` trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.run.events import EpochDone, RunStarted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.run.events import Event


class Callback:
    """Called by the thread that called `pipeline.fit`, between batches. What a method raises ends
    the run with a checkpoint, and then `fit` raises it."""

    def on_start(self) -> None:
        """Training begins."""

    def on_epoch(self, row: dict[str, Any]) -> bool | None:
        """An epoch is over; `row` is its entry of `FittedRun.history`. True ends the run, with a
        checkpoint."""

    def on_end(self, run: Any) -> None:
        """The run has ended by itself or by a callback; `run` is what `fit` gives."""


AnyCallback: TypeAlias = Callback | Callable[[dict[str, Any]], bool | None]
"""A function is its `on_epoch`."""


class Callbacks:
    """Those of one run, which are an observer of it."""

    def __init__(self, callbacks: Sequence[AnyCallback]) -> None:
        self._callbacks = [_as_callback(one) for one in callbacks]
        self._failure: BaseException | None = None
        self._ended = False

    def __call__(self, event: Event) -> None:
        """Tell each; what one raises is kept, since the run must end in order."""
        try:
            for callback in self._callbacks:
                if isinstance(event, RunStarted):
                    callback.on_start()
                elif isinstance(event, EpochDone):
                    self._ended |= bool(callback.on_epoch(event.metrics))
        except BaseException as error:
            self._failure = self._failure or error

    def ended(self) -> bool:
        """Whether one wants the run to end, or has failed."""
        return self._ended or self._failure is not None

    def raise_failure(self) -> None:
        """Raises what a callback has raised."""
        if self._failure is not None:
            raise self._failure

    def on_end(self, run: Any) -> None:
        """Tell each."""
        for callback in self._callbacks:
            callback.on_end(run)


def _as_callback(given: AnyCallback) -> Callback:
    if isinstance(given, Callback):
        return given
    callback = Callback()
    callback.on_epoch = given  # type: ignore[method-assign, assignment]
    return callback
