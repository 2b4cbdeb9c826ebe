"""What a run tells the person who watches it; `launch` draws these, `pipeline` makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.schedule.reports import Tally


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Training begins after step `step`; `stages` holds (device, blocks) per stage, of each block
    (index, name), `received_bytes` what crosses the link to each with a batch (empty in single
    mode)."""

    config_name: str
    run_dir: Path
    stages: tuple[tuple[str, tuple[tuple[int, str], ...]], ...]
    epochs: int
    steps_per_epoch: int
    step: int
    received_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Start-up is not over: `missing` says for whom, `seconds` how long so far."""

    missing: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class StageProgress:
    """One stage, now: its last batch, busy share since the last look, batches waiting for it."""

    stage: int
    batch_id: int
    activity: str
    busy: float
    queue: int
    tallies: tuple[Tally, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """A look at the run: `step` of `steps_per_epoch` per epoch have left the last stage."""

    epoch: int
    step: int
    lr: float
    images_per_s: float
    stages: tuple[StageProgress, ...]


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch is complete; `metrics` is its line of metrics.jsonl. `confusion`: how many of each
    class (rows) its test took for each (columns); empty where that was not counted."""

    metrics: dict[str, Any]
    confusion: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """A complete checkpoint lies in `path`."""

    path: Path
    step: int


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth one line: a fallback, a resume, a warning."""

    text: str


@dataclass(frozen=True, slots=True)
class Detail:
    """A line for the log alone."""

    text: str


Event: TypeAlias = RunStarted | Waiting | Progress | EpochDone | CheckpointWritten | Note | Detail
Observer: TypeAlias = Callable[[Event], None]
"""Called in the order of events, from one thread at a time; must not block."""


class Watcher(Protocol):
    """Who is told of a run as an observer is, and may end it."""

    def __call__(self, event: Event) -> None: ...

    def is_enough(self, epoch: int) -> bool:
        """Whether the run ends with an epoch, of which `EpochDone` has told."""

    def has_failed(self) -> bool:
        """Whether the run is to end at once, with a checkpoint."""


def ignore(event: Event) -> None:
    """The observer of a run that nobody watches."""
