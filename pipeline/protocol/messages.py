"""What travels between processes: frozen classes that refuse to be built wrong.

Two kinds of socket carry them. A link carries `OpenLink`, then `Header`s downstream and
`Credit`s upstream, in the end `CloseLink`; control carries everything else. No message holds a
number that a weight depends on and travels upstream (invariant 3): upstream go permissions and
observations.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from pipeline.data.facts import DataFacts
from pipeline.dtypes import ITEM_BYTES
from pipeline.errors import ProtocolError
from pipeline.protocol.addresses import WAYS, Carrier, LinkAddress
from pipeline.schedule.items import (
    EndEpoch,
    EndEvaluation,
    EvaluationBatch,
    Found,
    PassedBatch,
    Snapshot,
    StartEvaluation,
    Stop,
    TrainBatch,
)
from pipeline.schedule.reports import Fingerprint, PassReport, StageState, Tally, Timeline

PROTOCOL_VERSION = 16
EXAMPLE_TYPES, TARGET_TYPES = ("uint8", "float32", "int64"), ("int64", "float32")
MAX_DIMENSIONS = 8
_FEATURE_MAPS = 4  # dimensions: (n, C, H, W)
MAX_TENSORS = 16
"""Of one batch: it has an activation, targets, and what a rule carries."""
MAX_TENSOR_BYTES = 1 << 36
ACTIVITIES = ("starting", "waiting", "working", "blocked")
"""What a worker may be doing: waiting for input; blocked where the next stage has no room."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type and shape of a tensor whose bytes travel beside the header: in order of its
    dimensions, or feature maps (n, C, H, W) pixel by pixel."""

    dtype: str
    shape: tuple[int, ...]
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ProtocolError(
                f"tensor type {self.dtype[:40]!r} is none of {', '.join(ITEM_BYTES)}"
            )
        if len(self.shape) > MAX_DIMENSIONS or min(self.shape, default=0) < 0:
            raise ProtocolError(f"tensor shape {self.shape[: MAX_DIMENSIONS + 1]} is not one")
        if self.channels_last and len(self.shape) != _FEATURE_MAPS:
            raise ProtocolError(f"tensor shape {self.shape} has no channels to be last")
        if self.nbytes > MAX_TENSOR_BYTES:
            raise ProtocolError(f"tensor of {self.nbytes} bytes: at most {MAX_TENSOR_BYTES} travel")

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def _check_way(way: str) -> None:
    if way not in WAYS:
        raise ProtocolError(f"way {way[:40]!r} is none of {', '.join(WAYS)}")


@dataclass(frozen=True, slots=True)
class Header:
    """The batch header, or a marker. `slot` is the credit that a batch uses up; `way`, of `WAYS`,
    says whether its tensors lie in that slot, and of which ring, come into it by the stream, or
    follow as frames.
    """

    item: (
        TrainBatch
        | EvaluationBatch
        | PassedBatch
        | StartEvaluation
        | EndEvaluation
        | EndEpoch
        | Snapshot
        | Found
        | Stop
    )
    tensors: tuple[TensorSpec, ...] = ()
    slot: int | None = None
    way: str = "shared"

    def __post_init__(self) -> None:
        batch = isinstance(self.item, TrainBatch | EvaluationBatch | Found)
        if batch != bool(self.tensors) or batch != (self.slot is not None):
            raise ProtocolError(
                f"{type(self.item).__name__} with {len(self.tensors)} tensors in slot {self.slot}: "
                "a batch has tensors and a slot, a marker has neither"
            )
        _check_way(self.way)
        if len(self.tensors) > MAX_TENSORS:
            raise ProtocolError(f"{len(self.tensors)} tensors: at most {MAX_TENSORS} travel")


@dataclass(frozen=True, slots=True)
class OpenLink:
    """First message on a link: which run, which protocol, and how tensors will come, of `WAYS`.
    Answered by credits."""

    run: str
    protocol: int
    way: str = "frames"

    def __post_init__(self) -> None:
        _check_way(self.way)


@dataclass(frozen=True, slots=True)
class Credit:
    """Permission to send one batch, into ring slot `slot` if the sender can reach the ring."""

    slot: int


@dataclass(frozen=True, slots=True)
class CloseLink:
    """Last message on a link, upstream: the stop marker has arrived, and so has all before it."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Worker: I am here. The first message on control. `code`: what `sources.running_code` says."""

    run: str
    protocol: int
    pid: int
    code: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setup:
    """Coordinator: become this stage, or begin again as this stage.

    If `resumed`, there is a state to start from, that of step `last_batch_id`: block files in
    the order of `blocks`, attached or, if `kept`, in the worker's own memory. Else tensors are
    attached that blocks `initial` begin with, a file each. `attempt` counts how often the run has
    begun again. The state is looked at after each batch to `check_until`; what the stage does is
    recorded to batch `record_until`, and handed over as a `Timeline`.
    `config`: the tree of the configuration, but for where images lie; a stage checks it again.
    `member`: which it is of a team; `team`: where it is to listen for each other member, in order;
    `in_rounds`: its members take batches by turns.
    """

    attempt: int
    config: dict[str, Any]
    facts: DataFacts
    blocks: tuple[int, ...]
    device: str
    bind: str
    resumed: bool
    kept: bool
    last_batch_id: int
    epoch: int
    tallies: tuple[Tally, ...]
    max_in_flight: int
    progress_interval_s: float
    check_until: int = 0
    record_until: int = 0
    initial: tuple[int, ...] = ()
    member: int = 0
    team: tuple[str, ...] = ()
    in_rounds: bool = False

    def __post_init__(self) -> None:
        # refused here, where types and shapes of all that travels are known
        facts = self.facts
        examples = TensorSpec(facts.dtype, (1, *facts.shape))
        targets = TensorSpec(facts.target_dtype, (1, *facts.target_shape))
        if examples.dtype not in EXAMPLE_TYPES or targets.dtype not in TARGET_TYPES:
            raise ProtocolError(f"examples are {examples.dtype}, targets {targets.dtype}")


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker: built, and listening for the stage before me at `address`.

    `own_code`: of the user's modules that I have imported, as `sources.own_code` gives it.
    `initial`: of the blocks of a user's own network, as they were before a state was loaded.
    `team`: where I listen for each other member of my team, in order.
    """

    attempt: int
    address: LinkAddress
    own_code: tuple[str, ...] = ()
    initial: tuple[Fingerprint, ...] = ()
    team: tuple[LinkAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class Connect:
    """Coordinator: the stage after you listens at `address`; None: you are the last. `before`: the
    public key of who will connect to you, None where links are not encrypted. It is told last of
    all, because the stage before may have moved to another host meanwhile. `team`: where each other
    member of your team listens for you, in order."""

    address: LinkAddress | None
    before: str | None = None
    team: tuple[LinkAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class Complete:
    """Coordinator: the state of every stage after `step` has arrived; forget what is older."""

    step: int


@dataclass(frozen=True, slots=True)
class Connected:
    """Worker: I can send; `carrier`: how tensors will travel, None from the last stage."""

    carrier: Carrier | None


@dataclass(frozen=True, slots=True)
class ProgressNow:
    """Worker: a look at how it goes, for the person who watches."""

    batch_id: int
    busy: float
    queue: int
    tallies: tuple[Tally, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Worker: alive. `handled` counts items and `cpu_s` is the processor time of the thread that
    trains, so that alive but stuck can be told apart from slow. `doing`, of `ACTIVITIES`."""

    handled: int
    batch_id: int
    doing: str
    cpu_s: float

    def __post_init__(self) -> None:
        if self.doing not in ACTIVITIES:
            raise ProtocolError(f"activity {self.doing[:40]!r} is none of {', '.join(ACTIVITIES)}")


@dataclass(frozen=True, slots=True)
class Failure:
    """Worker: an error as data. `block` is None where no block was at work.

    `attempt`: in which it happened. `final`: it would come back, there is no use in beginning
    again. `nonfinite`: begin again, without the batch that is to blame. `misused`: what the user
    gave can't be used, as a function that makes no network in this process.
    """

    summary: str
    block: int | None
    batch_id: int
    traceback: str
    final: bool = False
    nonfinite: bool = False
    misused: bool = False
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Remark:
    """Worker: something that the person who watches should know."""

    text: str


@dataclass(frozen=True, slots=True)
class Bye:
    """Worker: the stop marker has passed through me; I am leaving."""


def name_of_run(run: str, protocol: int = PROTOCOL_VERSION) -> str:
    """As people are told of it, with the protocol that it speaks."""
    return f"run {run[:40]} (protocol {protocol})"


LinkMessage: TypeAlias = Header | OpenLink | Credit | CloseLink
WorkerMessage: TypeAlias = (
    Hello
    | Ready
    | Connected
    | PassReport
    | StageState
    | Timeline
    | ProgressNow
    | Remark
    | Heartbeat
    | Failure
    | Bye
)
CoordinatorMessage: TypeAlias = Setup | Connect | Complete
Message: TypeAlias = LinkMessage | WorkerMessage | CoordinatorMessage
