"""Holds a run together: sockets, worker processes, coordinator; and leaves nothing behind."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.watchdog import SILENCE_BETWEEN_HOSTS_S, SILENCE_S, Watchdog
from pipeline.errors import ConfigError
from pipeline.planning.hosts import host_of
from pipeline.protocol.credentials import Invitation
from pipeline.run.events import Note
from pipeline.transport.interfaces import LINK_TIMEOUT_S
from pipeline.transport.rejections import Rejections
from pipeline.transport.sockets import Sockets, make_keys, socket_folder
from pipeline.transport.tcp_port import endpoint_at
from pipeline.transport.zmq_control import ZmqControlServer
from pipeline.transport.zmq_link import ZmqSender

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.coordinator.engine import Engine
    from pipeline.protocol.addresses import Carrier, LinkAddress
    from pipeline.protocol.credentials import KeyPair
    from pipeline.run.run import Run
    from pipeline.transport.interfaces import Sender

_SLOWEST_BYTES_PER_S = 1e6
"""Of a network that is still worth training over."""


def run_pipeline(run: Run, engine: Engine) -> None:
    """Train with one worker process per stage.

    Raises:
        PipelineError: as `Coordinator.run`; by then every process and socket file is gone.
        ConfigError: where `runtime.bind_address` is none of this machine's, or none of
            `runtime.ports` is free.
    """
    keys, watchdog = _keys(run), _watchdog(run)
    with (
        socket_folder(engine.socket_folder) as folder,
        closing(Sockets(Rejections("the control socket"), keys)) as sockets,
    ):
        control = ZmqControlServer(
            sockets,
            _bind(run, folder, "control", engine.address),
            run.id,
            most_bytes=run.most_file_bytes,
        )
        named = tuple(run.config.user_code.values())

        def invite(stage: int, attempt: int, key: str | None) -> Invitation:
            if keys is not None:
                if key is None:
                    raise _no_curve()
                control.admit(stage, attempt, key)
            return Invitation(run.id, stage, attempt, control.endpoint, named, sockets.key)

        workers = engine.start(run.plan, invite)

        def connect(
            address: LinkAddress, cancelled: Callable[[], bool], tell: Callable[[str], None]
        ) -> tuple[Sender, Carrier]:
            sender = ZmqSender(
                sockets,
                address,
                run.id,
                names=("the coordinator", "stage 0"),
                timeout_s=LINK_TIMEOUT_S,
                cancelled=cancelled,
                tell=tell,
            )
            return sender, sender.carrier

        def bind(stage: int, attempt: int, *member: int) -> str:
            place = workers.home(stage)
            address = place.host.address if place and place.host.name else None
            name = "-".join(map(str, ("link", stage, attempt, *member)))
            return _bind(run, folder, name, address)

        coordinator = Coordinator(
            run,
            control,
            connect,
            bind,
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
    """Over a network, what travels may take its time; between hosts a cable may be out for a while,
    in which nobody hears of anybody."""
    runtime = run.config.runtime
    between_hosts = any(host_of(stage.device) for stage in run.plan.stages)
    silence_s = runtime.heartbeat_timeout_s or (
        SILENCE_BETWEEN_HOSTS_S if between_hosts else SILENCE_S
    )
    transfer_s = 0.0 if runtime.transport == "ipc" else run.most_sent_bytes / _SLOWEST_BYTES_PER_S
    return Watchdog(
        heartbeat_timeout_s=silence_s,
        stall_timeout_s=runtime.stall_timeout_s,
        transfer_s=transfer_s + (silence_s if between_hosts else 0.0),
    )


def _keys(run: Run) -> KeyPair | None:
    """Of the coordinator; None: nothing is encrypted."""
    transport = run.config.runtime.transport
    if transport == "tcp":
        keys = make_keys()
        if keys is None:
            raise _no_curve()
        return keys
    if transport == "tcp-plain":
        run.observer(
            Note(
                "runtime.transport tcp-plain: nothing is encrypted, and whoever reaches its ports "
                "can read and write to this run; tcp is safe from that"
            )
        )
    return None


def _no_curve() -> ConfigError:
    return ConfigError(
        "runtime.transport tcp: this libzmq has no CURVE; install pyzmq's own wheel, or use ipc"
    )


def _bind(run: Run, folder: Path, name: str, address: str | None) -> str:
    """Where the socket of a name is to listen; `address`: of its host in a cluster."""
    runtime = run.config.runtime
    if runtime.transport == "ipc":
        return f"ipc://{folder}/{name}"
    if runtime.bind_address != "auto" or address is None:
        address = runtime.bind_address
    return endpoint_at(address, runtime.ports or "*")
