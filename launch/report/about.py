"""What a run was: its results in a row, plan, data, configuration, and where it was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launch.display.format import NOTHING, count_text, number_text, size_text
from launch.report.pieces import Card, Code, Fact, Section, Table, Words
from launch.report.room import evenly
from launch.report.speed import median_speed
from pipeline.errors import cut
from pipeline.run.metrics import last_phase, tested

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from launch.report.pieces import Piece
    from launch.report.room import Room
    from launch.report.run import Run

_RESULTS = (
    "Errors of the last and the best epoch are of the runs' own tests. The error here is that of "
    "the checkpoint whose pictures follow, on the examples that are named above."
)
_PLAN = (
    "Which blocks each stage trained, and what that costs: multiply-adds are all that training "
    "does for one example, of a team each process's part of it; sent is what crosses the link to "
    "the next stage with each batch."
)
_UNEVEN = "stages that have much more of the work than others."
_SETTINGS = "What the run was told, what it was trained on, on which machine, by which versions."
_OF_DATA = {
    "name": "data",
    "training_images": "training examples",
    "test_images": "examples to test on",
    "digest": "digest of the data",
}


def facts(run: Run) -> Iterable[Fact]:
    """The numbers on top of a page about one run."""
    lines, costs, plan = run.files.lines, run.files.costs, run.files.plan
    part, last, best = _tests(run)
    if last is not None:
        when = "last epoch" if last[0] == lines[-1]["epoch"] else f"epoch {last[0]}"
        yield Fact(f"{last[1]:.2f} %", f"{part} error, {when}")
    if best is not None:
        yield Fact(f"{best[1]:.2f} %", f"lowest, epoch {best[0]}")
    if lines:
        yield Fact(str(lines[-1]["epoch"]), "epochs")
    if (speed := median_speed(run)) is not None:
        yield Fact(number_text(speed, ",.0f", 1e9), "examples/s")
    if plan:
        n = 1 if run.files.single else plan.n_stages
        yield Fact(str(n), "process" if n == 1 else "processes")
    if costs:
        yield Fact(count_text(sum(cost.parameters for cost in costs)), "parameters, without heads")


def results(runs: Sequence[Run]) -> Section:
    """Several runs, a row each."""
    headings = (
        "run", "loss", "epochs", "error, last, %", "error, lowest, %", "error here, %",
        "examples/s", "parameters",
    )  # fmt: skip
    table = Table(headings, tuple(map(_result, runs)), words=2)
    return Section("results", "Results", _RESULTS, "", [Card("", (table,))])


def _result(run: Run) -> tuple[str, ...]:
    _, last, best = _tests(run)
    lines = run.files.lines
    told = "" if last is None or last[0] == lines[-1]["epoch"] else f" (epoch {last[0]})"
    costs, looked = run.files.costs, run.looks.evaluation
    return (
        run.name,
        run.files.loss,
        str(lines[-1]["epoch"]) if lines else "0",
        NOTHING if last is None else f"{last[1]:.2f}{told}",
        NOTHING if best is None else f"{best[1]:.2f} (epoch {best[0]})",
        NOTHING if isinstance(looked, str) else number_text(looked.error_pct, ".2f"),
        number_text(median_speed(run), ",.0f", 1e9),
        count_text(sum(cost.parameters for cost in costs)) if costs else NOTHING,
    )


def _tests(run: Run) -> tuple[str, tuple[int, float] | None, tuple[int, float] | None]:
    """What was tested on, the last epoch that was, with its error, and that of the lowest."""
    part = "test"
    found: list[tuple[int, float]] = []
    for line in last_phase(run.files.lines):
        part, values = tested(line)
        if (error := values.get("error_pct")) is not None:
            found.append((line["epoch"], error))
    if not found:
        return part, None, None
    return part, found[-1], min(found, key=lambda pair: pair[1])


def plan_section(runs: Sequence[Run], rows: int) -> Section:
    """By run, of so many stages at most."""
    cards = [Card(run.name, tuple(_plan(run, rows))) for run in runs]
    return Section("plan", "Plan", _PLAN, _UNEVEN, cards)


def _plan(run: Run, most: int) -> Iterable[Piece]:
    plan, costs = run.files.plan, run.stage_costs
    if plan is None:
        yield Words("This run has kept no plan.")
        return
    headings: tuple[str, ...] = ("stage", "device", "blocks")
    if costs:
        headings += ("parameters", "of heads", "multiply-adds", "sent per batch")
    rows = []
    for stage in evenly(plan.stages, most):
        cells: tuple[str, ...] = (str(stage.stage), stage.device, run.blocks_of(stage.stage))
        if costs:
            cost = costs[stage.stage]
            numbers = (cost.parameters, cost.head_parameters, cost.train_macs)
            sent = cost.sent_bytes * run.files.batch_size
            cells += (*map(count_text, numbers), size_text(sent) if sent else NOTHING)
        rows.append(cells)
    yield Table(headings, tuple(rows), words=3)
    if plan.n_stages > len(rows):
        yield Words(f"Of {plan.n_stages} stages {len(rows)} are shown.")
    if run.files.single:
        yield Words("One process trained all stages of this plan in turn.")


def settings_section(runs: Sequence[Run], room: Room) -> Section:
    """The section of settings, with a card for each run."""
    cards = [Card(run.name, tuple(_settings(run, room))) for run in runs]
    return Section("settings", "Settings", _SETTINGS, "", cards)


def _settings(run: Run, room: Room) -> Iterable[Piece]:
    files = run.files
    known = [(words, str(files.data[key])) for key, words in _OF_DATA.items() if key in files.data]
    about = [("folder", str(files.path)), ("loss", files.loss), *known]
    shown = "none: there is no complete one" if files.step is None else f"step {files.step}"
    yield Table((), (*about, ("checkpoint shown", shown)), words=2)
    if not files.starts:
        yield Words("On which machine this run was trained is not recorded.")
    for start in evenly(files.starts, room.rows):
        yield Table((), tuple(_machine(start)), words=2)
    if files.config:
        yield Code("Configuration", cut(files.config, room.characters))


def _machine(start: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "command", start["command"]
    yield "processor", f"{start['processor']}, {start['cores']} cores"
    if start.get("gpus"):
        yield "GPUs", ", ".join(start["gpus"])
    yield "versions", ", ".join(f"{name} {number}" for name, number in start["versions"].items())
    if start["commit"]:
        changed = ", with uncommitted changes" if start["uncommitted_changes"] else ""
        yield "commit", f"{start['commit']}{changed}"
