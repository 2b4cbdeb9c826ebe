"""What the coordinator tells a stage to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config.sections import config_tree
from pipeline.protocol.messages import Setup

if TYPE_CHECKING:
    from pipeline.run.run import Run


def setup_of(run: Run, stage: int, attempt: int, bind: str, *, kept: bool) -> Setup:
    """Everything a stage needs to know to begin, but for its block files.

    Args:
        attempt: how often the run has begun again.
        bind: where the stage is to listen for the one before it.
        kept: whether it has the block files of the start itself.
    """
    plan, start = run.plan.stages[stage], run.start
    config = config_tree(run.config)
    del config["data"]["root"]  # a stage reads no images, and a path need not be UTF-8
    return Setup(
        attempt=attempt,
        config=config,
        facts=run.batches.facts,
        blocks=plan.blocks,
        device=plan.device,
        bind=bind,
        resumed=bool(start.files),
        kept=kept,
        last_batch_id=start.position.step,
        epoch=run.feed.course.epoch_of(start.position.step),
        tallies=tuple(tally for tally in start.tallies if tally.block in plan.blocks),
        max_in_flight=run.config.runtime.max_in_flight,
        progress_interval_s=run.progress_interval_s,
        check_until=run.bad_batches.check_until,
    )
