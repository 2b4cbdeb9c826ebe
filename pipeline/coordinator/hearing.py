"""Whether what a stage says can be so: a message may be well formed and yet speak for others."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from pipeline.errors import ProtocolError
from pipeline.protocol.messages import (
    PROTOCOL_VERSION,
    Hello,
    Report,
    WorkerMessage,
    name_of_run,
)
from pipeline.schedule.reports import StageState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.run.run import Run
    from pipeline.schedule.reports import Tally
    from pipeline.transport.interfaces import Said

_WORKERS_SAY = get_args(WorkerMessage)


def check_contents(said: Said, run: Run) -> None:
    """A stage speaks of its own blocks, and of epochs and steps that the run has.

    Raises:
        ProtocolError: saying what does not fit.
    """
    message = said.message
    _check(isinstance(message, _WORKERS_SAY), type(message).__name__)
    blocks = run.plan.stages[said.stage].blocks
    if isinstance(message, Hello):
        _check_run(message, run)
    elif isinstance(message, Report):
        report = message.report
        _check(report.stage == said.stage, f"a report of stage {report.stage}")
        _check(0 <= report.epoch <= run.feed.course.all_epochs, f"a report of epoch {report.epoch}")
        _check_tallies(report.tallies, blocks)
    elif isinstance(message, StageState):
        _check(message.blocks == blocks, f"a state of blocks {message.blocks[:20]}")
        _check(0 <= message.step <= run.feed.course.steps, f"a state after step {message.step}")
        _check_tallies(message.tallies, blocks)
    files = len(blocks) if isinstance(message, StageState) else 0
    _check(len(said.attached) == files, f"{len(said.attached)} files where {files} belong")


def _check_run(hello: Hello, run: Run) -> None:
    _check(
        (hello.run, hello.protocol) == (run.id, PROTOCOL_VERSION),
        f"a hello of {name_of_run(hello.run, hello.protocol)}, this is {name_of_run(run.id)}",
    )


def _check_tallies(tallies: Iterable[Tally], blocks: tuple[int, ...]) -> None:
    found = {tally.block for tally in tallies}
    _check(found <= set(blocks), f"counters of blocks {sorted(found)[:20]}, it has {blocks}")


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ProtocolError(f"it sent {what}")
