"""What a worker process is started with. It travels by the launcher's own private way, never by
a socket: whoever holds an invitation belongs to the run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Keys:
    """The CURVE keys of one process (Z85 text), and the public keys that it accepts.

    `coordinator`: the public key of the coordinator. `run`: those of all processes of the run.
    """

    public: str
    secret: str = field(repr=False)
    coordinator: str
    run: frozenset[str]


@dataclass(frozen=True, slots=True)
class Invitation:
    """To be a stage of a run.

    `attempt`: how often the run had begun again when the process was started. `control`: where
    the coordinator listens. `user_code`: what may be imported of a user's own, as
    `package.module:name`. `keys`: None where sockets are guarded by the file system, or not at all.
    """

    run: str
    stage: int
    attempt: int
    control: str
    user_code: tuple[str, ...] = ()
    keys: Keys | None = None
