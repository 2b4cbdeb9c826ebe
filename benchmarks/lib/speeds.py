"""What the laps of benchmarks.throughput say: medians, ratios within rounds, what was asked for.

A ratio is the median over the rounds of the quotients within each: machines drift.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.lib.contenders import LOSSES, NETWORKS, PRECISIONS, Contender
from benchmarks.lib.report import Finding
from launch.display.format import NOTHING, markdown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.lib.contenders import Lap, Way

CORES = "global backprop in one process on several cores"
_SMALL = ("mlp", "vgg8b_quarter")
ASKED = {
    **{
        ("cpu", "mlp", "pipeline", loss, precision, "1F1B"): least
        for precision in PRECISIONS
        for loss, least in (("pred", 1.8), ("predsim", 0.95))
    },
    **{
        ("cpu", network, "single mode", loss, precision, "plain fp32"): least
        for network in _SMALL
        for loss in LOSSES
        for precision, least in (("fp32", 1.3), ("bf16", 3.0))
    },
    ("cuda", "vgg8b", "single mode", "predsim", "bf16", "plain fp32"): 5.0,
    ("cuda", "vgg8b", "single mode", "predsim", "bf16", "products alone"): 0.4,
}
"""At least so many times as fast as a rival: device, network, way, loss, precision, rival."""
BOUND = {"mlp": 0.88, "vgg8b_quarter": 0.92}
"""Least share of its bound that a pipeline of two stages on two cores reaches: the slowest stage
is to be busy for so much of the time."""


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
    """The rows that were kept as JSON, perhaps before contenders had all of their fields."""
    names = Contender.__dataclass_fields__
    return [Row(Contender(**{n: row[n] for n in names if n in row}), row["rounds"]) for row in tree]


def ratio(row: Row | None, other: Row | None) -> float | None:
    """How many times faster than another; None where either is missing."""
    if row is None or other is None:
        return None
    pairs = zip(row.speeds, other.speeds, strict=False)  # a round may be under way
    quotients = [ours / theirs for ours, theirs in pairs if ours and theirs]
    return median(quotients) if quotients else None


def fastest(rows: Sequence[Row], way: Way, loss: str, precision: str) -> Row | None:
    """Of the same way, loss and precision, whatever else differs: numbers of stages and of
    micro-batches, compiled or not."""
    wanted = (way, loss, precision)
    found = [
        row
        for row in rows
        if (row.contender.way, row.contender.loss, row.contender.precision) == wanted and row.speed
    ]
    return max(found, key=lambda row: row.speed or 0.0, default=None)


def findings(network: str, device: str, rows: Sequence[Row]) -> list[Finding]:
    """Ours, at its best, beside each rival at its best; how busy a pipeline's slowest stage is."""
    told: list[Finding] = []
    one_process = [row for row in rows if row.contender.cores > 1]
    for precision in PRECISIONS:
        onef1b = fastest(rows, "1f1b", "glob", precision)
        cores = fastest(one_process, "single", "glob", precision)
        for loss in LOSSES:
            pipeline, single, plain, products = (
                fastest(rows, "pipeline", loss, precision),
                fastest(rows, "single", loss, precision),
                fastest(rows, "plain", loss, "fp32"),
                fastest(rows, "products", loss, precision),
            )
            for way, ours, name, rival in (
                ("pipeline", pipeline, "1F1B", onef1b),
                ("pipeline", pipeline, CORES, cores),
                ("single mode", single, "plain fp32", plain),
                ("single mode", single, "products alone", products),
            ):
                if (found := ratio(ours, rival)) is not None:
                    least = ASKED.get((device, network, way, loss, precision, name))
                    told.append(_at_least(f"{way} {loss} {precision} / {name}", found, least))
        if (found := ratio(cores, onef1b)) is not None:
            told.append(_at_least(f"{CORES}, {precision} / 1F1B", found))
    for row in rows:
        shares = [max(lap["busy"]) for lap in row.laps if "busy" in lap]
        if shares and (row.contender.way, row.contender.stages) == ("pipeline", 2):
            what = f"{row.contender.name}: the slowest stage is busy"
            least = BOUND.get(network) if device == "cpu" else None
            told.append(_at_least(what, median(shares), least))
    return told


def _at_least(what: str, found: float, least: float | None = None) -> Finding:
    if least is None:
        return Finding(what, f"{found:.2f}")
    return Finding(what, f"{found:.2f}", f"≥ {least:g}", found >= least)


def network_text(tree: dict[str, Any]) -> str:
    """A network's table as Markdown: speeds and ratios, what failed."""
    rows = rows_of(tree["contenders"])
    text = f"**{NETWORKS[tree['network']].title}**\n\n{_speed_table(rows)}"
    if failed := {f"{row.contender.name}: {row.failure}" for row in rows if row.failure}:
        text += "\nFailed:\n\n" + "".join(f"- {line}\n" for line in sorted(failed))
    return text


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
    return markdown(columns, lines, ("trained by", "loss"))


def _cells(rows: Sequence[Row], kind: tuple[str, str], precision: str) -> list[str]:
    """Images/s, beside 1F1B of the same precision, beside the plain baseline of the same loss."""
    label, loss = kind
    for row in rows:
        same = _label(row.contender) == label and row.contender.precision == precision
        if same and row.contender.loss == loss:
            rivals = (
                fastest(rows, "1f1b", "glob", precision),
                fastest(rows, "plain", loss, "fp32"),
            )
            beside = [ratio(row, rival) for rival in rivals]
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
