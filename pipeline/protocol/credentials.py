"""What a worker process is started with. An invitation holds nothing secret; the key pair beside
it comes from the host that the process runs on, and never leaves that host."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class KeyPair:
    """CURVE keys (Z85 text): of the coordinator, or of a host, whose stages all hold them."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Invitation:
    """To be a stage of a run.

    `attempt`: how often the run had begun again when the process was started. `control`: where
    the coordinator listens. `user_code`: what may be imported of a user's own, as
    `package.module:name`. `coordinator`: the public key that the coordinator proves to hold; None
    where sockets are guarded by the file system, or not at all.
    """

    run: str
    stage: int
    attempt: int
    control: str
    user_code: tuple[str, ...] = ()
    coordinator: str | None = None
