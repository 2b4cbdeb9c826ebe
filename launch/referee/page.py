"""REFEREE.md: what all rules gave on the same networks, from the rows alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launch.display.format import NOTHING, markdown, size_text
from launch.grid.results import mean_and_sd
from launch.referee.rows import ROWS
from launch.referee.tasks import VALIDATION, Task, searching
from pipeline.storage.atomic import replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from launch.referee.rows import Row, Rows
    from launch.referee.table import Network, Rule
    from launch.referee.tasks import Request

PAGE = "REFEREE.md"
_INTRODUCTION = f"""\
# Every rule on the same networks

Written by `pipeline-referee` from the rows in [`{ROWS}/`]({ROWS}), and goes on from those that are
there. Every rule, and global backprop, is trained by the same program: the same images in the same
order, the same augmentation, Adam, a cosine, the same number of epochs, in one process. What
differs is what a rule's row of `launch/referee/referee.yaml` says (its loss and options; some rules
go without batch norm, some have a network of their own ¹), and the learning rate, or another key:
each has the one of a few values whose error was lowest on {100 * VALIDATION:.0f} % of the training
images, kept back in shorter trainings of seed 1. With it the network is trained anew on all
training images, once a seed; the test set is looked at once, after the last epoch.

**Trainings are short**: the tables say how rules do in so many epochs, not what they reach. A rule
that learns slowly, as Forward-Forward does, gains most by longer ones.

- *Error*: mean ± standard deviation (n − 1) of the test errors in percent. *By depth*: the mean
  error of what each block predicts by itself, from the first to the last.
- *Images/s*: of one process alone on the machine, measured once, for some seconds, with the letter
  of that machine (*made by*): to be compared only with others on the same. *Memory*: the peak of a
  process, the most of all seeds: the resident size of all of it, with PyTorch and the images; on a
  GPU what PyTorch's allocator has given out.
- *Local*: over ten steps each block was trained again alone, in a new process, from what had
  arrived at it, and came to the same bits (`pipeline-verify --locality`).
- A row in the folder has the whole config, and SHA-256 of every block at the end: the same config
  gives the same on the same machine (`pipeline-referee --repeat mlp/pred/seed=1`).
"""
_TEXTS = ("rule", "by depth, %", "local", "searched", "made by")


def write_page(request: Request, rows: Rows, missing: Mapping[Task, str]) -> Path:
    """Write it below `request.out`.

    Args:
        missing: why tasks have no row.

    Raises:
        OSError: where the disk refuses.
    """
    path = request.out / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page_text(request, rows, missing).encode())
    return path


def page_text(request: Request, rows: Rows, missing: Mapping[Task, str]) -> str:
    """The page as Markdown: a table for each network of which there is a row, or that was asked
    for."""
    makers = _Makers()
    known = {row.network for row in rows.all()} | {task.network.name for task in missing}
    parts = [_INTRODUCTION]
    parts += [
        _section(network, request, rows, missing, makers)
        for network in request.table.networks.values()
        if network.name in known
    ]
    return "\n".join([*parts, makers.text()])


def _section(
    network: Network,
    request: Request,
    rows: Rows,
    missing: Mapping[Task, str],
    makers: _Makers,
) -> str:
    trained = rows.trainings(network.name)
    shown = [rule for rule in request.table.rules.values() if trained.get(rule.name)]
    others = sorted(trained.keys() - request.table.rules.keys())
    most = max(map(len, trained.values()), default=0)
    at_an_end = {
        rule.name
        for rule in shown
        if _is_at_an_end(rule, trained[rule.name], searching(rule, request.table).values)
    }
    lines = [
        _cells(network, rule, trained[rule.name], most, rows, makers, rule.name in at_an_end)
        for rule in shown
    ]
    columns = [
        "rule", "error, %", "n", "by depth, %", "images/s", "memory", "local", "searched", "made by"
    ]  # fmt: skip
    epochs = {row.result["epochs"] for own in trained.values() for row in own}
    length = f", {', '.join(map(str, sorted(epochs)))} epochs" if epochs else ""
    parts = [f"## {network.title}{length}\n"]
    if lines:
        parts.append(markdown(columns, lines, _TEXTS))
    if any(rule.own_networks for rule in shown):
        parts.append("¹ On a network of its own: the rule does not fit a plain stack of layers.\n")
    if at_an_end:
        parts.append(
            "² The largest or the smallest value that was tried: one beyond it may be better.\n"
        )
    if others:
        parts.append(
            f"Rows of rules that the table of this command has not: {', '.join(others)}.\n"
        )
    if lacking := _lacking(network, missing):
        parts.append("Missing:\n\n" + "".join(f"- {line}\n" for line in lacking))
    return "\n".join(parts)


def _cells(
    network: Network,
    rule: Rule,
    own: Sequence[Row],
    most: int,
    rows: Rows,
    makers: _Makers,
    is_at_an_end: bool,
) -> list[str]:
    errors = mean_and_sd(row.error_pct for row in own)
    speed, proof = (rows.of(Task(network, rule, kind)) for kind in ("speed", "locality"))
    peak = max(row.result["peak_memory_bytes"] for row in own)
    text = NOTHING if errors.mean is None else f"{errors.mean:.2f}"
    text += "" if errors.sd is None else f" ± {errors.sd:.2f}"
    values = {str(_value(row, rule.key)) for row in own}
    made_by = makers.of([*own, *([speed] if speed else [])])
    return [
        f"[{rule.title}]({ROWS}/{network.name}/{rule.name}.jsonl){' ¹' * bool(rule.own_networks)}",
        text,
        str(len(own)) if len(own) == most else f"{len(own)} of {most}",
        " · ".join(_by_depth(own)),
        NOTHING if speed is None else f"{_images(speed)} {makers.of([speed])}",
        size_text(peak),
        _local(rule, own[0], proof),
        f"{rule.key} {', '.join(sorted(values))}{' ²' * is_at_an_end}",
        made_by,
    ]


def _images(speed: Row) -> str:
    """A second, where so many steps were long enough to tell."""
    per_s = speed.result["images_per_s"]
    return NOTHING if per_s is None else f"{per_s:,.0f}"


def _is_at_an_end(rule: Rule, own: Sequence[Row], tried: Sequence[Any]) -> bool:
    """Whether the best of several numbers was the smallest or the largest; words have no ends."""
    if len(tried) == 1 or not all(isinstance(value, int | float) for value in tried):
        return False
    return any(_value(row, rule.key) in (min(tried), max(tried)) for row in own)


def _by_depth(own: Sequence[Row]) -> list[str]:
    """Mean error of each block that predicts, in every run."""
    found: dict[int, list[float]] = {}
    for row in own:
        for depth in row.result["depths"]:
            found.setdefault(depth["block"], []).append(depth["error_pct"])
    means = [sum(errors) / len(errors) for _, errors in sorted(found.items())]
    return [f"{mean:.2f}" for mean in means]


def _local(rule: Rule, row: Row, proof: Row | None) -> str:
    if row.checked_config().loss.is_global:
        return "no: backprop"
    if proof is None:
        return "not tried"
    return "proven" if proof.result["is_local"] else f"**no**: {proof.result['said']}"


def _value(row: Row, key: str) -> Any:
    """Of a dotted key in the row's config."""
    value: Any = row.config
    for name in key.split("."):
        value = value[name]
    return value


def _lacking(network: Network, missing: Mapping[Task, str]) -> list[str]:
    """A line for each rule and reason: what is missing, and why."""
    found: dict[tuple[str, str], list[Task]] = {}
    for task, why in missing.items():
        if task.network.name == network.name:
            found.setdefault((task.rule.name, why), []).append(task)
    return [f"{rule}, {_named(tasks)}: {why}" for (rule, why), tasks in found.items()]


def _named(tasks: Sequence[Task]) -> str:
    """By their names, but for several searches, which have long ones."""
    searches = sum(task.kind == "search" for task in tasks)
    names = [task.name for task in tasks if task.kind != "search" or searches == 1]
    return ", ".join([f"{searches} searches"] * (searches > 1) + names)


class _Makers:
    """Machines, versions and commits, each with a letter."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}
        self._any_changed = False

    def of(self, rows: Sequence[Row]) -> str:
        """The letters of all that had a part in some rows."""
        starts = [start for row in rows for start in row.starts]
        self._any_changed |= any(start["uncommitted_changes"] for start in starts)
        texts = dict.fromkeys(map(self._text, starts))
        self._found.update(texts)
        order = list(self._found)
        return " ".join(sorted(self._letter(order.index(text)) for text in texts))

    def text(self) -> str:
        """What the letters mean."""
        lines = [f"- {self._letter(k)}: {text}\n" for k, text in enumerate(self._found)]
        if not lines:
            return ""
        note = "\n+: beside changes that were not committed yet, as new rows themselves are.\n"
        return "Made by:\n\n" + "".join(lines) + note * self._any_changed

    def _letter(self, number: int) -> str:
        return chr(ord("A") + number) if number < 26 else str(number)

    def _text(self, start: Mapping[str, Any]) -> str:
        changed = "+" * bool(start["uncommitted_changes"])
        gpus = f", {', '.join(start['gpus'])}" if start.get("gpus") else ""
        versions = f"torch {start['versions'].get('torch', '?')}"
        machine = f"{start['processor']}, {start['cores']} cores{gpus}"
        return f"commit {start['commit'] or '?'}{changed}, {versions}, {machine}"
