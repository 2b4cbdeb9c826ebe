"""What the command says when a run has ended: what was reached, where it lies, how to go on."""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from launch.display.format import number_text
from launch.run_directory import LOG
from pipeline.run.metrics import METRICS_FILE, epoch_lines_in, tested
from pipeline.storage.checkpoint import BEST
from pipeline.storage.checkpoint_writer import CHECKPOINTS, checkpoints_of

if TYPE_CHECKING:
    from pipeline.schedule.best import BestSoFar
    from pipeline.storage.checkpoint import RunState
    from pipeline.storage.folder import Folder


def last_lines(run: Folder, state: RunState) -> list[str]:
    """Three lines about a run that is done; `state`: what it ended with."""
    # under `runtime.keep_best last` no test has told which is there
    path, has_best = str(run.path), state.kept.epoch > 0 and _has_best(run)
    best = ["--checkpoint", BEST] if has_best else []
    # how good it is, all of it to look at, and the network for other programs
    commands = [
        ["pipeline-eval", path, *best],
        ["pipeline-report", path],
        ["pipeline-export", path, *best],
    ]
    if state.data is not None and not state.data.test.images:
        del commands[0]  # there is nothing to evaluate it on
    return [
        _reached(_last_line(run), state.kept if has_best else None),
        f"{path}: weights in {CHECKPOINTS}/, epochs in {METRICS_FILE}, all that was said in {LOG}",
        f"to go on: {'   '.join(map(shlex.join, commands))}",
    ]


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
