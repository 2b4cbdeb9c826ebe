"""When each stage worked and when it waited: the pipeline fills, runs, and drains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from launch.drawing import Sheet, css, ink
from launch.report.pieces import Card, Figure, Key, Section, Words
from launch.report.room import evenly

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from launch.report.pieces import Piece
    from launch.report.room import Room
    from launch.report.run import Run

DOINGS = {
    "read": "reads the data",
    "compute": "computes what it passes on",
    "learn": "learns",
    "copy": "copies",
    "send": "sends",
    "marker": "ends an epoch, tests or saves",
    "input": "waits for a batch",
    "room": "waits for room in the next stage",
}
"""What a stage does, by the category of an event, and how to say it."""
_WAITS = ("input", "room")
_BATCHES = 8
"""That a panel shows, of the slowest stage."""
_WIDTH, _ROW = 9.4, 0.3
"""Inches: of a picture, of a stage in it."""
_LEAD = (
    "Each row is a stage, time goes to the right; what is thin is waiting. The pipeline fills: "
    "stage after stage gets its first batch. It runs: nothing comes back from later stages, so "
    "none waits for a later one to learn. At the end it drains: the first stages are done while "
    "the last ones still learn."
)
_LOOK_FOR = (
    "gaps in the row of the slowest stage, which are lost time. Gaps in the others only show that "
    "they are faster."
)

_IN_TURN = "One process trained all stages in turn: the rows show whose turn it was."


@dataclass(frozen=True, slots=True)
class Span:
    """What a row did, in milliseconds from the begin of the trace; `batch`: a training batch."""

    row: int
    doing: str
    begin: float
    end: float
    batch: int | None

    @property
    def works(self) -> bool:
        """Whether the thread worked meanwhile, rather than waited."""
        return self.doing not in _WAITS


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans in order of time; `rows`: names of the rows that have some, as they are shown."""

    spans: tuple[Span, ...]
    rows: dict[int, str]

    @property
    def stages(self) -> list[int]:
        """Rows that are stages, and not who reads the data for them."""
        return [row for row, name in self.rows.items() if name.startswith("stage")]

    @property
    def end(self) -> float:
        """When the last span ends, in milliseconds."""
        return max(span.end for span in self.spans)

    def worked(self, row: int) -> float:
        """Milliseconds that a row did not wait."""
        return sum(span.end - span.begin for span in self.spans if span.row == row and span.works)

    def at_work(self, row: int) -> tuple[float, float]:
        """When a row first began to work, and when it ended."""
        spans = [span for span in self.spans if span.row == row and span.works]
        return min(s.begin for s in spans), max(s.end for s in spans)


def section(runs: Sequence[Run], room: Room) -> Section:
    """The section of timelines, with a card for each run."""
    cards = [Card(run.name, tuple(_of_run(run, room))) for run in runs]
    return Section("timeline", "Timeline", _LEAD, _LOOK_FOR, cards, one_column=True)


def timeline_of(events: Sequence[Any]) -> Timeline:
    """What is known of a trace's events; whatever else is among them is passed over."""
    found: list[Span] = []
    names: dict[int, str] = {}
    for event in events:
        try:
            row, kind = int(event["pid"]), event["ph"]
            details = event.get("args") or {}
            if kind == "M" and event["name"] == "process_name":
                names[row] = str(details["name"]).partition(" · ")[0]
            if kind == "X" and event.get("cat") in DOINGS:
                begin, lasts = float(event["ts"]) / 1e3, float(event["dur"]) / 1e3
                found.append(Span(row, event["cat"], begin, begin + lasts, details.get("batch")))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    start = min((span.begin for span in found), default=0.0)
    moved = (replace(span, begin=span.begin - start, end=span.end - start) for span in found)
    working = {span.row for span in found if span.works}
    rows = {row: names.get(row, f"stage {row}") for row in sorted(working)}
    feeds = {row: name for row, name in rows.items() if not name.startswith("stage")}
    known = (span for span in moved if span.row in working)
    return Timeline(tuple(sorted(known, key=lambda span: span.begin)), {**feeds, **rows})


def _of_run(run: Run, room: Room) -> Iterable[Piece]:
    if run.files.trace is None:
        yield Words(
            "This run has no trace.json. Train with pipeline-launch --trace 50 to see here when "
            "each stage worked and waited in its first 50 batches."
        )
        return
    found = timeline_of(run.files.trace)
    if not found.stages:
        yield Words("The trace of this run holds nothing of what stages did.")
        return
    width = _BATCHES * _period(found)
    if found.end <= 3 * width:
        yield _picture(run, found, (0.0, found.end), "All that was recorded", room)
    else:
        for title, begin in (
            ("It fills", 0.0),
            ("It runs", (found.end - width) / 2),
            ("The record ends", found.end - width),
        ):
            yield _picture(run, found, (begin, begin + width), title, room)
    yield Words(_IN_TURN if run.files.single else _sentence(found))
    if len(found.rows) > room.rows:
        yield Words(f"Of {len(found.rows)} rows {room.rows} are shown.")


def _slowest(found: Timeline) -> int:
    return max(found.stages, key=found.worked)


def _period(found: Timeline) -> float:
    """Milliseconds from batch to batch, of the stage that works most."""
    slowest = _slowest(found)
    batches = {span.batch for span in found.spans if span.row == slowest} - {None}
    return found.worked(slowest) / max(1, len(batches))


def _picture(run: Run, found: Timeline, at: tuple[float, float], title: str, room: Room) -> Figure:
    begin, end = at
    places = {row: place for place, row in enumerate(evenly(list(found.rows), room.rows))}
    shown = [
        span for span in found.spans if span.end > begin and span.begin < end and span.row in places
    ]
    # the shortest don't show
    shown = sorted(shown, key=lambda span: span.begin - span.end)[: room.bars]
    sheet = Sheet((_WIDTH, 0.5 + _ROW * len(places)))
    axes = sheet.axes
    for doing in DOINGS:
        for row, place in places.items():
            bars = [
                (span.begin, span.end - span.begin)
                for span in shown
                if span.doing == doing and span.row == row
            ]
            height = 0.16 if doing in _WAITS else 0.74
            low = place - height / 2
            axes.broken_barh(bars, (low, height), facecolors=ink(doing), linewidth=0)
    axes.set_xlim(begin, end)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_yticks(range(len(places)), [found.rows[row] for row in places])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("milliseconds")
    done = {span.doing for span in found.spans} if begin <= 0 else set()  # said once, of the first
    keys = tuple(
        Key(css(ink(each)), words, "box") for each, words in DOINGS.items() if each in done
    )
    said = f"{title}: what {len(places)} rows did from {begin:.0f} to {end:.0f} ms"
    return Figure(title, sheet.svg(f"{run.number}-{title}"), said, keys, wide=True)


def _sentence(found: Timeline) -> str:
    stages, slowest = found.stages, _slowest(found)
    begin, end = found.at_work(slowest)
    worked = 100 * found.worked(slowest) / max(1e-9, end - begin)
    if len(stages) == 1:
        return f"One stage, which works for {worked:.0f} % of the recorded time."
    first, last = found.at_work(stages[0]), found.at_work(stages[-1])
    return (
        f"The last stage begins {last[0] - first[0]:.0f} ms after the first, and ends "
        f"{last[1] - first[1]:.0f} ms after it. Stage {slowest} works most: from its first to its "
        f"last batch it is idle for {max(0.0, 100 - worked):.1f} % of the time."
    )
