"""What the laps of benchmarks.throughput say: medians, ratios within rounds, what was asked for.

A ratio is the median over the rounds of the quotients within each: machines drift. From the kept
JSON alone, so a table can be written again at any time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.lib.contenders import NETWORKS, Contender
from benchmarks.lib.tables import NOTHING, markdown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from benchmarks.lib.contenders import Lap, Way

_LEFT = ("trained by", "loss", "asked", "met")


@dataclass(frozen=True, slots=True)
class Row:
    """A contender and what it gave, round by round."""

    contender: Contender
    laps: list[Lap] = field(default_factory=list)

    @property
    def speeds(self) -> list[float | None]:
        """Images/s of each round; None where it failed."""
        return [lap.get("images_per_s") for lap in self.laps]

    @property
    def speed(self) -> float | None:
        """The median of those there are."""
        there = [speed for speed in self.speeds if speed is not None]
        return median(there) if there else None

    @property
    def failure(self) -> str | None:
        """Why it failed the first time."""
        return next((lap["failed"] for lap in self.laps if "failed" in lap), None)

    def tree(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self.contender), "images_per_s": self.speed, "rounds": self.laps}


def rows_of(tree: Iterable[dict[str, Any]]) -> list[Row]:
    """The rows that were kept as JSON."""
    return [Row(contender_of(row), row["rounds"]) for row in tree]


def contender_of(row: Mapping[str, Any]) -> Contender:
    """Of a row that was kept as JSON, perhaps before there was every field."""
    return Contender(**{name: row[name] for name in Contender.__dataclass_fields__ if name in row})


def ratio(row: Row | None, other: Row | None) -> float | None:
    """How many times faster than another; None where either is missing."""
    if row is None or other is None:
        return None
    pairs = zip(row.speeds, other.speeds, strict=False)  # a round may be under way
    quotients = [ours / theirs for ours, theirs in pairs if ours and theirs]
    return median(quotients) if quotients else None


def plain(rows: Sequence[Row], loss: str) -> Row | None:
    """The plain baseline that learns from this loss."""
    return _fastest(rows, "plain", loss, "fp32")


def products(rows: Sequence[Row], loss: str, precision: str) -> Row | None:
    """The bound of one process that learns from this loss."""
    return _fastest(rows, "products", loss, precision)


def onef1b(rows: Sequence[Row], precision: str) -> Row | None:
    """1F1B with the numbers of stages and micro-batches that are best."""
    return _fastest(rows, "1f1b", "glob", precision)


def _fastest(rows: Sequence[Row], way: Way, loss: str, precision: str) -> Row | None:
    """Of the same way, loss and precision, with whatever numbers of stages were tried."""
    wanted = (way, loss, precision)
    found = [
        row
        for row in rows
        if (row.contender.way, row.contender.loss, row.contender.precision) == wanted and row.speed
    ]
    return max(found, key=lambda row: row.speed or 0.0, default=None)


@dataclass(frozen=True, slots=True)
class Asked:
    """At least so many times as fast as a rival, for each of these losses; a pipeline with the
    number of stages that is best, as its rival."""

    networks: tuple[str, ...]
    way: Way
    losses: tuple[str, ...]
    precision: str
    rival: Way
    least: float
    device: str = "cpu"


_SMALL, _ALL = ("mlp", "vgg8b_quarter"), ("pred", "sim", "predsim")
ASKED = (
    Asked(("mlp",), "pipeline", ("pred",), "fp32", "1f1b", 1.8),
    Asked(("mlp",), "pipeline", ("predsim",), "fp32", "1f1b", 0.95),
    Asked(("mlp",), "pipeline", ("pred",), "bf16", "1f1b", 1.8),
    Asked(("mlp",), "pipeline", ("predsim",), "bf16", "1f1b", 0.95),
    Asked(_SMALL, "single", _ALL, "fp32", "plain", 1.3),
    Asked(_SMALL, "single", _ALL, "bf16", "plain", 3.0),
    Asked(("vgg8b",), "single", ("predsim",), "bf16", "plain", 5.0, "cuda"),
    Asked(("vgg8b",), "single", ("predsim",), "bf16", "products", 0.4, "cuda"),
)


BOUND = {"mlp": 0.88, "vgg8b_quarter": 0.92}
"""Least share of its bound that a pipeline of two stages on two cores reaches: the slowest stage
is to be busy for so much of the time."""


class Answer(NamedTuple):
    """What was asked for, in words, and what was found."""

    asked: str
    least: float
    found: float

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.found >= self.least


def answers(network: str, device: str, rows: Sequence[Row]) -> list[Answer]:
    """All that was asked for of what was measured; `device` is `cpu` or `cuda`."""
    found: list[Answer] = []
    for asked in ASKED:
        if network not in asked.networks or device != asked.device:
            continue
        for loss in asked.losses:
            found += _answer(asked, loss, rows)
    if device == "cpu" and network in BOUND:
        found += [_share(row, BOUND[network]) for row in rows if _is_bounded(row)]
    return found


def _is_bounded(row: Row) -> bool:
    return (row.contender.way, row.contender.stages) == ("pipeline", 2) and bool(row.speed)


def _share(row: Row, least: float) -> Answer:
    shares = [max(lap["busy"]) for lap in row.laps if "busy" in lap]
    words = f"{row.contender.name}: slowest stage busy for ≥ {least:g} of the time"
    return Answer(words, least, median(shares))


def _answer(asked: Asked, loss: str, rows: Sequence[Row]) -> list[Answer]:
    row = _fastest(rows, asked.way, loss, asked.precision)
    rival, name = _rival(asked, loss, rows)
    quotient = ratio(row, rival)
    if quotient is None or row is None:
        return []
    words = f"{row.contender.name} ≥ {asked.least:g} × {name}"
    return [Answer(words, asked.least, quotient)]


def _rival(asked: Asked, loss: str, rows: Sequence[Row]) -> tuple[Row | None, str]:
    if asked.rival == "1f1b":
        return onef1b(rows, asked.precision), f"1F1B at its best, {asked.precision}"
    if asked.rival == "products":
        return products(rows, loss, asked.precision), f"products alone, {asked.precision}"
    return plain(rows, loss), "plain, fp32"


def network_text(tree: dict[str, Any], device: str) -> str:
    """A network's tables as Markdown: speeds and ratios, what was asked for, what failed."""
    rows = rows_of(tree["contenders"])
    parts = [f"### {NETWORKS[tree['network']].title}\n", _speed_table(rows)]
    given = answers(tree["network"], device, rows)
    if given:
        parts.append(_asked_table(given))
    failed = {f"{row.contender.name}: {row.failure}" for row in rows if row.failure}
    if failed:
        parts.append("Failed:\n\n" + "".join(f"- {line}\n" for line in sorted(failed)))
    return "\n".join(parts)


def _speed_table(rows: Sequence[Row]) -> str:
    precisions = list(dict.fromkeys(row.contender.precision for row in rows))
    columns = ["trained by", "loss"]
    for precision in precisions:
        columns += [f"{precision}, images/s", "× 1F1B", "× plain fp32"]
    kinds = dict.fromkeys((_label(row.contender), row.contender.loss) for row in rows)
    lines = [
        [label, loss, *(cell for precision in precisions for cell in _cells(rows, kind, precision))]
        for kind in kinds
        for label, loss in [kind]
    ]
    return markdown(columns, lines, _LEFT)


def _cells(rows: Sequence[Row], kind: tuple[str, str], precision: str) -> list[str]:
    """Images/s, beside 1F1B of the same precision, beside the plain baseline of the same loss."""
    label, loss = kind
    for row in rows:
        same = _label(row.contender) == label and row.contender.precision == precision
        if same and row.contender.loss == loss:
            beside = (ratio(row, onef1b(rows, precision)), ratio(row, plain(rows, loss)))
            speed = "failed" if row.speed is None else f"{row.speed:,.0f}"
            return [speed, *(NOTHING if q is None else f"{q:.2f}" for q in beside)]
    return [NOTHING] * 3


def _label(contender: Contender) -> str:
    if contender.way == "pipeline":
        return f"pipeline, {contender.stages} stage{'s' * (contender.stages > 1)}"
    if contender.way == "1f1b":
        return f"1F1B, {contender.stages} stages, micro-batches: {contender.micro_batches}"
    if contender.compiled:
        return "single mode, compiled"
    if contender.cores > 1:
        return f"single mode on {contender.cores} cores"
    names = {"single": "single mode", "plain": "plain baseline", "products": "products alone"}
    return names[contender.way]


def _asked_table(given: Iterable[Answer]) -> str:
    lines = [
        (answer.asked, f"{answer.found:.2f}", "yes" if answer.met else "**no**") for answer in given
    ]
    return markdown(("asked", "found", "met"), lines, _LEFT)
