"""What the command says when a run has ended: what was reached, where it lies, how to go on."""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from launch.display.format import number_text
from launch.run_directory import LOG, epoch_lines_in
from pipeline.run.metrics import METRICS_FILE, tested
from pipeline.storage.checkpoint import BEST
from pipeline.storage.checkpoint_writer import CHECKPOINTS, checkpoints_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.schedule.best import BestSoFar
    from pipeline.storage.checkpoint import RunState
    from pipeline.storage.folder import Folder


def last_lines(
    run: Folder, config: Config, facts: DataFacts, state: RunState, resume: Sequence[str]
) -> list[str]:
    """Three lines about a run that is done.

    Args:
        facts: of its data; state: what it ended with; resume: the command that resumes it.
    """
    # under `runtime.keep_best last` no test has told which is there
    path, has_best = str(run.path), state.kept.epoch > 0 and _has_best(run)
    best = ["--checkpoint", BEST] if has_best else []
    commands = [["pipeline-eval", path, *best], ["pipeline-report", path]]
    if not facts.target_shape:
        images = len(facts.shape) == 3 and facts.dtype == "uint8"
        commands.append(["pipeline-predict", path, "IMAGE" if images else "FILE.npz", *best])
    if longer := _longer(config, state):
        commands.append([*resume, "--set", longer])
    return [
        _reached(_last_line(run), state.kept if has_best else None),
        f"{path}: weights in {CHECKPOINTS}/, epochs in {METRICS_FILE}, all that was said in {LOG}",
        f"to go on: {'   '.join(map(shlex.join, commands))}",
    ]


def _longer(config: Config, state: RunState) -> str:
    """What to change to train longer; empty where that can't be done."""
    schedule = config.schedule
    if schedule.greedy:  # its phases would move
        return ""
    if schedule.patience is not None and state.best.epochs_since >= schedule.patience:
        return "schedule.patience=null"
    return f"schedule.epochs={2 * schedule.epochs}"


def _reached(line: dict[str, Any], kept: BestSoFar | None) -> str:
    part, test = tested(line)
    if not test:
        return f"trained {line.get('epoch', 0)} epochs, the last of which was not tested"
    predicts = test["error_pct"] is not None
    what, unit = ("error", " %") if predicts else ("loss", "")
    form = ".2f" if predicts else ".4f"
    last = number_text(test["error_pct" if predicts else "loss"], form)
    said = f"{part} {what} {last}{unit} after epoch {line['epoch']}"
    if kept is None:
        return said
    best = number_text(kept.error, form)
    return f"{said}; best {best}{unit} after epoch {kept.epoch}, in {CHECKPOINTS}/{BEST}"


def _last_line(run: Folder) -> dict[str, Any]:
    with suppress(OSError, IndexError):
        return epoch_lines_in(run)[-1]
    return {}


def _has_best(run: Folder) -> bool:
    with suppress(OSError), checkpoints_of(run) as checkpoints:
        return checkpoints.has(BEST)
    return False
