"""Holds a run together: sockets, worker processes, coordinator; and leaves nothing behind."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.watchdog import Watchdog
from pipeline.protocol.credentials import Invitation, Keys
from pipeline.run.events import Note
from pipeline.transport.interfaces import LINK_TIMEOUT_S
from pipeline.transport.rejections import Rejections
from pipeline.transport.sockets import Sockets, make_keys, socket_folder
from pipeline.transport.zmq_control import ZmqControlServer
from pipeline.transport.zmq_link import ZmqSender

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.coordinator.engine import Engine
    from pipeline.protocol.addresses import Carrier, LinkAddress
    from pipeline.run.run import Run
    from pipeline.transport.interfaces import Sender

_SLOWEST_BYTES_PER_S = 1e6
"""Of a network that is still worth training over."""


def run_pipeline(run: Run, engine: Engine) -> None:
    """Train with one worker process per stage.

    Raises:
        PipelineError: as `Coordinator.run`; by then every process and socket file is gone.
        ConfigError: where `runtime.bind_address` is none of this machine's.
    """
    keys, watchdog = _keys(run), _watchdog(run)
    with (
        socket_folder(engine.socket_folder) as folder,
        closing(Sockets(Rejections("the control socket"), keys[0])) as sockets,
    ):
        control = ZmqControlServer(
            sockets, _bind(run, folder, "control"), run.id, most_bytes=run.most_file_bytes
        )
        named = tuple(run.config.user_code.values())
        workers = engine.start(
            [
                Invitation(run.id, stage, 0, control.endpoint, named, key)
                for stage, key in enumerate(keys[1:])
            ]
        )

        def connect(address: LinkAddress, cancelled: Callable[[], bool]) -> tuple[Sender, Carrier]:
            sender = ZmqSender(
                sockets,
                address,
                run.id,
                names=("the coordinator", "stage 0"),
                timeout_s=LINK_TIMEOUT_S,
                cancelled=cancelled,
            )
            return sender, sender.carrier

        coordinator = Coordinator(
            run,
            control,
            connect,
            lambda stage, attempt: _bind(run, folder, f"link-{stage}-{attempt}"),
            workers,
            watchdog,
        )
        try:
            coordinator.run()
            workers.leave()
        finally:
            workers.stop()
            coordinator.close()


def _watchdog(run: Run) -> Watchdog:
    """Over a network, what travels may take its time."""
    runtime = run.config.runtime
    transfer_s = 0.0 if runtime.transport == "ipc" else run.most_sent_bytes / _SLOWEST_BYTES_PER_S
    return Watchdog(
        heartbeat_timeout_s=runtime.heartbeat_timeout_s,
        stall_timeout_s=runtime.stall_timeout_s,
        transfer_s=transfer_s,
    )


def _keys(run: Run) -> tuple[Keys | None, ...]:
    """The coordinator's, then those of the stages."""
    transport = run.config.runtime.transport
    if transport == "tcp":
        return make_keys(run.plan.n_stages)
    if transport == "tcp-plain":
        run.observer(
            Note(
                "runtime.transport tcp-plain: nothing is encrypted, and whoever reaches "
                f"{run.config.runtime.bind_address} can read and write to this run; "
                "tcp is safe from that"
            )
        )
    return (None,) * (run.plan.n_stages + 1)


def _bind(run: Run, folder: Path, name: str) -> str:
    """Where the socket of a name is to listen."""
    runtime = run.config.runtime
    if runtime.transport == "ipc":
        return f"ipc://{folder}/{name}"
    address = runtime.bind_address
    return f"tcp://[{address}]:*" if ":" in address else f"tcp://{address}:*"
