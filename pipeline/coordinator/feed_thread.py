"""The thread that sends the feed to the first stage."""

from __future__ import annotations

import traceback
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING

from pipeline.errors import CalledOffError, PipelineError, StageFailedError, one_line
from pipeline.run.batch_reader import BatchReader
from pipeline.schedule.items import EndEpoch, EndEvaluation
from pipeline.timeline.spans import SpanRecorder
from pipeline.transport.payloads import ArrayPayload, timed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.run.batch_reader import Arrays
    from pipeline.run.events import Event as RunEvent
    from pipeline.run.run import Run
    from pipeline.schedule.items import Item
    from pipeline.transport.interfaces import Sender


class FeedThread(Thread):
    """Sends every item of the feed to the first stage, in order; remembers what went wrong.

    `called_off` is set by whoever wants it to end early; its link looks at it.
    """

    def __init__(self, run: Run, link: Sender, called_off: Event) -> None:
        super().__init__(name="feed", daemon=True)
        self._run, self._link, self._called_off = run, link, called_off
        self._error: Exception | None = None
        self._news: SimpleQueue[RunEvent] = SimpleQueue()
        self._spans = run.timeline.feed if run.timeline else SpanRecorder()

        def check_wanted() -> None:  # no method: a cycle would keep the link's memory for a while
            if called_off.is_set():
                raise CalledOffError("the feed is called off")

        self._check_wanted = check_wanted
        self._from_disk = BatchReader(run, check_wanted, self._news.put)
        self.reading = False
        """Whether it is about to send; else it waits for the first stage, or has ended."""

    def run(self) -> None:
        """Send stage 0 all batches and markers of the run, to its end or until it is stopped."""
        try:
            for item in self._run.feed:
                if self._spans.is_due(item):
                    self._spans.stop()
                self._spans.take_up(item, "read")
                self.reading = True
                arrays = self._from_disk.arrays(item)
                self.reading = False
                if arrays is not None:
                    self._send(item, arrays)
                if isinstance(item, EndEpoch | EndEvaluation):
                    self._spans.now("report")
                # should the report never come, the watchdog finds that nothing moves
                self._run.feed.wait_for_report(item, self._check_wanted)
            self._spans.stop()
            self._link.finish()
        except CalledOffError:
            pass
        except Exception as error:  # for the main thread, which checks
            self._error = error
        finally:
            self.reading = False
            self._from_disk.close()
            self._link.close()

    def _send(self, item: Item, arrays: Arrays) -> None:
        if arrays:
            self._spans.now("room")
            self._link.wait_for_room()
        self._spans.now("send")
        self._link.send(item, timed([ArrayPayload(array) for array in arrays], self._spans))

    def news(self) -> Iterator[RunEvent]:
        """What the person who watches should know, since this was asked last."""
        while not self._news.empty():
            yield self._news.get()

    def check(self) -> None:
        """Whether it still feeds, or has fed all that could be read.

        Raises:
            PipelineError: what went wrong with the link; what did with an item, the feed knows.
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
