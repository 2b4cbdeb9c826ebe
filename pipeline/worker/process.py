"""The process around a worker; its errors cross to the coordinator as data."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, NonFiniteLossError
from pipeline.protocol.messages import Failure
from pipeline.system.limits import cure_of, with_cure
from pipeline.transport.zmq_control import ZmqControlClient
from pipeline.transport.zmq_endpoints import ZmqEndpoints
from pipeline.worker.heartbeat import Activity, HeartbeatThread
from pipeline.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.protocol.credentials import Invitation, KeyPair


def run_worker(
    invitation: Invitation, keys: KeyPair | None, launcher_gone: Callable[[], bool]
) -> int:
    """The whole process of a stage: 0 after a stop marker, 1 after an error, which is reported.

    Args:
        keys: of this host; None: nothing is encrypted.
    """
    endpoints, activity = ZmqEndpoints(invitation, keys), Activity()
    control = ZmqControlClient(endpoints.sockets, invitation, tell=_print)
    heartbeat = HeartbeatThread(endpoints.sockets, invitation, activity, launcher_gone)
    heartbeat.start()
    worker = Worker(invitation, control, endpoints, activity)
    try:
        worker.live()
    except Exception as error:  # the process boundary: errors cross it as data
        control.send(failure_of(error, worker))
        return 1
    finally:
        heartbeat.stop()
        endpoints.sockets.close()
    return 0


def _print(text: str) -> None:
    """Where nobody else can be told; who started the process may see it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def failure_of(error: Exception, worker: Worker) -> Failure:
    """What the coordinator is told of an error that ends a worker."""
    runner = worker.runner
    block = runner.stage.at_work if runner else None
    batch_id = runner.at_batch if runner else 0
    spoilt = isinstance(error, NonFiniteLossError)
    misused = isinstance(error, ConfigError)
    explained = spoilt or misused or cure_of(error) is not None
    if isinstance(error, NonFiniteLossError):
        block, batch_id = error.block, error.batch_id
    return Failure(
        summary=_sendable(with_cure(error)),
        block=block,
        batch_id=batch_id,
        traceback="" if explained else _sendable("".join(traceback.format_exception(error))),
        final=spoilt and worker.on_nonfinite == "stop",
        attempt=worker.attempt,
        nonfinite=spoilt and worker.on_nonfinite == "rollback",
        misused=misused,
    )


def _sendable(text: str) -> str:
    """The end of it, as UTF-8 can carry it: names of files need not be."""
    return text[-20_000:].encode(errors="replace").decode()
