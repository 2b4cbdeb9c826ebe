"""The process around a worker: its heartbeat, and its errors as data.

The heartbeat has a thread and a socket of its own, so that it goes on while the worker computes.
"""

from __future__ import annotations

import os
import time
import traceback
from threading import Event, Thread, get_ident
from typing import TYPE_CHECKING

from pipeline.activity import Activity
from pipeline.endpoints import ZmqEndpoints
from pipeline.errors import NonFiniteLossError, one_line
from pipeline.messages import Failure, Heartbeat
from pipeline.transport import ZmqControlClient, close_context
from pipeline.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

HEARTBEAT_INTERVAL_S = 0.5


def run_worker(
    stage: int,
    attempt: int,
    run: str,
    control_endpoint: str,
    launcher_gone: Callable[[], bool],
    factory: str | None = None,
) -> int:
    """The whole process of a stage: 0 after a stop marker, 1 after an error, which is reported.

    Args:
        attempt: how often the run had begun again when this process was started.
        factory: the `model.factory` that may be imported, if any.
    """
    endpoints, activity, done = ZmqEndpoints(run, stage), Activity(), Event()
    control = ZmqControlClient(endpoints.context, control_endpoint, stage, attempt)
    cpu_clock = time.pthread_getcpuclockid(get_ident())
    heart = Thread(
        target=_beat,
        args=(
            endpoints,
            control_endpoint,
            stage,
            attempt,
            activity,
            done,
            launcher_gone,
            cpu_clock,
        ),
        daemon=True,
    )
    heart.start()
    worker = Worker(stage, run, control, endpoints, activity, factory)
    worker.attempt = attempt
    try:
        worker.live()
    except Exception as error:  # the process boundary: errors cross it as data
        control.send(failure_of(error, worker))
        return 1
    finally:
        done.set()
        heart.join()
        close_context(endpoints.context)
    return 0


def _beat(
    endpoints: ZmqEndpoints,
    control_endpoint: str,
    stage: int,
    attempt: int,
    activity: Activity,
    done: Event,
    launcher_gone: Callable[[], bool],
    cpu_clock: int,
) -> None:
    """Say that the process lives; end it where nobody is left to care."""
    socket = ZmqControlClient(endpoints.context, control_endpoint, stage, attempt, "heartbeat")
    while not done.wait(HEARTBEAT_INTERVAL_S):
        if launcher_gone():
            os._exit(1)  # the main thread may hang; the kernel frees the ring
        cpu_s = time.clock_gettime(cpu_clock)
        socket.send(Heartbeat(activity.handled, activity.batch_id, activity.phase, cpu_s))
    socket.close()


def failure_of(error: Exception, worker: Worker) -> Failure:
    """What the coordinator is told of an error that ends a worker."""
    runner = worker.runner
    block = runner.stage.at_work if runner else None
    batch_id = runner.at_batch if runner else 0
    spoilt = isinstance(error, NonFiniteLossError)
    if isinstance(error, NonFiniteLossError):
        block, batch_id = error.block, error.batch_id
    return Failure(
        summary=one_line(error),
        block=block,
        batch_id=batch_id,
        traceback="" if spoilt else "".join(traceback.format_exception(error))[-20_000:],
        final=spoilt and worker.on_nonfinite == "stop",
        attempt=worker.attempt,
        leave_out=spoilt and worker.on_nonfinite == "rollback",
    )
