"""What a user's own code is told while `pipeline.fit` trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.errors import ConfigError
from pipeline.run.events import EpochDone, RunStarted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.api.fitted import FittedRun
    from pipeline.run.events import Event


class Callback:
    """Called by the thread that called `pipeline.fit`, which waits for it after each epoch. What a
    method raises ends the run with a checkpoint, and then `fit` raises it."""

    def on_start(self) -> None:
        """Training begins."""

    def on_epoch(self, row: dict[str, Any]) -> bool | None:
        """An epoch is over; `row` is its entry of `FittedRun.history`. True ends the run with this
        epoch; of epoch 0, the test under `runtime.eval_before_training`, with the first one. After
        a lost worker an epoch may be trained, and told, again."""

    def on_end(self, run: FittedRun) -> None:
        """The run has ended by itself or by a callback; `run` is what `fit` gives."""


AnyCallback: TypeAlias = Callback | Callable[[dict[str, Any]], bool | None]
"""A function is its `on_epoch`."""


class Callbacks:
    """Those of one run, which are an observer of it."""

    def __init__(self, callbacks: Sequence[AnyCallback]) -> None:
        """
        Raises:
            ConfigError: where these are no list of such.
        """
        if not isinstance(callbacks, Iterable):
            raise ConfigError(f"callbacks: {callbacks!r:.60} is no list: give one, as [it]")
        self.given = [_as_callback(one) for one in callbacks]
        self._failure: BaseException | None = None
        self._last: int | None = None
        """The epoch that the run ends with, once one wants it."""

    def __call__(self, event: Event) -> None:
        """Tell each; what one raises is kept, since the run must end in order."""
        try:
            for callback in self.given:
                if isinstance(event, RunStarted):
                    callback.on_start()
                elif isinstance(event, EpochDone):
                    self._note(bool(callback.on_epoch(event.metrics)), event.metrics["epoch"])
        except BaseException as error:
            self._failure = self._failure or error

    def _note(self, ends: bool, epoch: int) -> None:
        if ends and self._last is None:
            self._last = epoch

    def is_enough(self, epoch: int) -> bool:
        """Whether one wanted the run to end with this epoch, or an earlier one."""
        return self._last is not None and epoch >= self._last

    def has_failed(self) -> bool:
        """Whether one has raised something."""
        return self._failure is not None

    def raise_failure(self) -> None:
        """Raises what a callback has raised."""
        if self._failure is not None:
            raise self._failure

    def on_end(self, run: FittedRun) -> None:
        """Tell each callback of the run that came of it."""
        for callback in self.given:
            callback.on_end(run)


def _as_callback(given: AnyCallback) -> Callback:
    if isinstance(given, Callback):
        return given
    if isinstance(given, type):
        raise ConfigError(f"callbacks: {given.__name__} is a class: call it")
    if not callable(given):
        raise ConfigError(f"callbacks: {given!r:.60} is neither a function nor a pipeline.Callback")
    callback = Callback()
    callback.on_epoch = given  # type: ignore[method-assign, assignment]
    return callback
