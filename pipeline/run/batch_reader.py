"""Reads the batches of a feed. Neither a bad file nor a disk that hangs loses what was learned: the
feed then ends before that batch, with a snapshot, as if it were interrupted.
"""

from __future__ import annotations

import traceback
from concurrent.futures import wait
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

from pipeline.errors import CalledOffError, PipelineError, StageFailedError, TimedOutError, one_line
from pipeline.run.events import Waiting
from pipeline.schedule.items import EvaluationBatch, TrainBatch
from pipeline.system.daemon_pool import DaemonPool
from pipeline.transport.timeout import POLL_S, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.run.events import Observer
    from pipeline.run.run import Run
    from pipeline.schedule.items import Item

    Arrays: TypeAlias = "tuple[NDArray[np.generic], ...]"

LONGEST_WAIT_S = 600.0
"""For a disk that gives nothing; the same that one gets to take the last checkpoint."""
_ENDS_S = 5.0
"""For what is being read when the run is to end."""
_TELLS_EVERY_S = 2.0


class BatchReader:
    """Reads the batches of one feed.

    Args:
        look: called while it waits; may raise CalledOffError, or have the feed interrupted.
        tell: of long waits.
    """

    def __init__(self, run: Run, look: Callable[[], None], tell: Observer) -> None:
        self._run, self._look, self._tell = run, look, tell
        self._disk = DaemonPool(1, "reading")  # whose thread starts with the first batch read

    def close(self) -> None:
        """Nothing more will be asked for; what hangs in a disk is not waited for."""
        self._disk.shutdown()

    def arrays(self, item: Item) -> Arrays | None:
        """What the item holds; None where it can't be had: then the feed ends, and knows why.

        Raises:
            CalledOffError: as `look`.
        """
        try:
            return self._read(item)
        except CalledOffError:
            raise
        except PipelineError as error:
            self._run.feed.give_up(error)
        except Exception as error:  # of whatever kind: the stages are sound
            text = "".join(traceback.format_exception(error))
            self._run.feed.give_up(StageFailedError(f"the feed failed: {one_line(error)}", text))
        return None

    def _read(self, item: Item) -> Arrays | None:
        if self._run.batches.in_memory or not isinstance(item, TrainBatch | EvaluationBatch):
            return self._run.arrays(item)
        reading: Future[Arrays] = self._disk.submit(self._run.arrays, item)
        what = f"the images of batch {item.batch_id}"
        timeout, told, ends = Timeout(LONGEST_WAIT_S), monotonic(), False
        while not wait([reading], POLL_S).done:
            self._look()
            if self._run.feed.interrupted and not ends:
                ends, timeout = True, Timeout(_ENDS_S)
            if timeout.next_poll_s():
                if monotonic() - told > _TELLS_EVERY_S:
                    told = monotonic()
                    self._tell(Waiting((what,), timeout.used_s))
            elif ends:
                self._run.feed.give_up(None)
                return None
            else:
                raise TimedOutError(f"waited {LONGEST_WAIT_S:.0f} s for {what}: the disk gave none")
        return reading.result()
