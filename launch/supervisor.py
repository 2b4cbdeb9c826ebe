"""Holds a run together: sockets, worker processes, coordinator; and leaves nothing behind."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.coordinator import Coordinator
from pipeline.transport import (
    Context,
    ZmqControlServer,
    ZmqSender,
    close_context,
    make_context,
)
from pipeline.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from launch.engine import Engine
    from pipeline.links import Sender
    from pipeline.messages import LinkAddress
    from pipeline.run import Run

_LONGEST_SOCKET_PATH = 90  # the kernel takes 107 bytes; names of sockets are added to the folder
_CREDIT_TIMEOUT_S = 3600.0  # the watch ends a stalled run long before


def run_pipeline(run: Run, engine: Engine) -> None:
    """Train with one worker process per stage.

    Raises:
        PipelineError: as `Coordinator.run`; by then every process and socket file is gone.
    """
    runtime = run.config.runtime
    watch = Watch(
        heartbeat_timeout_s=runtime.heartbeat_timeout_s, stall_timeout_s=runtime.stall_timeout_s
    )
    with _socket_folder() as folder, _open_context() as context:
        control = ZmqControlServer(context, f"ipc://{folder}/control")

        def connect(address: LinkAddress, cancelled: Callable[[], bool]) -> tuple[Sender, str]:
            sender = ZmqSender(
                context,
                address,
                run.id,
                names=("the coordinator", "stage 0"),
                timeout_s=_CREDIT_TIMEOUT_S,
                cancelled=cancelled,
            )
            return sender, sender.carrier

        def bind(stage: int, attempt: int) -> str:
            return f"ipc://{folder}/link-{stage}-{attempt}"

        workers = engine.start(
            run.plan.n_stages, run.id, folder, f"ipc://{folder}/control", run.config.model.factory
        )
        coordinator = Coordinator(run, control, connect, bind, workers, watch)
        try:
            coordinator.run()
            workers.leave()
        finally:
            workers.stop()
            coordinator.close()


@contextmanager
def _open_context() -> Iterator[Context]:
    context = make_context()
    try:
        yield context
    finally:
        close_context(context)


@contextmanager
def _socket_folder() -> Iterator[Path]:
    """A folder that only its owner can enter, with a path short enough for sockets."""
    default = tempfile.gettempdir()
    base = default if len(default) < _LONGEST_SOCKET_PATH - 20 else "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="pipeline-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
