"""The thread that sends the feed to the first stage."""

from __future__ import annotations

import traceback
from threading import Event, Thread
from typing import TYPE_CHECKING

from pipeline.carriers import ArrayPayload
from pipeline.errors import CalledOffError, PipelineError, StageFailedError, one_line

if TYPE_CHECKING:
    from pipeline.links import Sender
    from pipeline.run import Run


class FeedThread(Thread):
    """Sends every item of the feed to the first stage, in order; remembers what went wrong.

    `called_off` is set by whoever wants it to end early; its link looks at it.
    """

    def __init__(self, run: Run, link: Sender, called_off: Event) -> None:
        super().__init__(name="feed", daemon=True)
        self._run, self._link, self._called_off = run, link, called_off
        self._error: Exception | None = None
        self.reading = False
        """Whether it is about to send; else it waits for the first stage, or has ended."""

    def run(self) -> None:
        """Thread body."""
        try:
            for item in self._run.feed:
                self.reading = True
                payloads = [ArrayPayload(array) for array in self._run.arrays(item)]
                self.reading = False
                self._link.send(item, payloads)
            self._link.finish()
        except CalledOffError:
            pass
        except Exception as error:  # for the main thread, which checks
            self._error = error
        finally:
            self.reading = False
            self._link.close()

    def check(self) -> None:
        """Whether it still feeds, or has fed all.

        Raises:
            PipelineError: what went wrong.
        """
        error = self._error
        if error is None:
            return
        if isinstance(error, PipelineError):
            raise error
        text = "".join(traceback.format_exception(error))
        raise StageFailedError(f"the feed failed: {one_line(error)}", text) from error

    def end(self, timeout_s: float) -> bool:
        """Call it off and wait; whether it has ended. A disk that hangs can keep it."""
        self._called_off.set()
        self.join(timeout_s)
        return not self.is_alive()
