"""The thread that sends the feed to the first stage."""

from __future__ import annotations

from threading import Event, Thread
from typing import TYPE_CHECKING

from pipeline.carriers import ArrayPayload
from pipeline.errors import CalledOffError

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
        self.error: Exception | None = None
        self.sending = False

    def run(self) -> None:
        """Thread body."""
        try:
            for item in self._run.feed:
                payloads = [ArrayPayload(array) for array in self._run.arrays(item)]
                self.sending = True
                self._link.send(item, payloads)
                self.sending = False
        except CalledOffError:
            pass
        except Exception as error:  # handed to the main thread, which raises it
            self.error = error
        finally:
            self._link.close()

    def end(self, timeout_s: float) -> bool:
        """Call it off and wait; whether it has ended. A disk that hangs can keep it."""
        self._called_off.set()
        self.join(timeout_s)
        return not self.is_alive()
