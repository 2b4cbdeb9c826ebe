"""What `benchmarks.scaling` found, as a table and a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from benchmarks.lib.figures import draw_scaling
from benchmarks.lib.machine import machine
from benchmarks.lib.tables import README, markdown, write_section

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Rows: TypeAlias = Sequence[Mapping[str, Any]]

WORDS = (
    "Predicted and measured are medians over the rounds, each by itself; what predictions are off "
    "by is the median of the rounds' quotients."
)
WITHIN = 0.10
"""Asked of the prediction."""


class Division(NamedTuple):
    """So many stages on these devices, as `--gpus` names them."""

    stages: int
    gpus: str = "cpu"

    @property
    def name(self) -> str:
        """As people say."""
        where = "the CPU" if self.gpus == "cpu" else f"GPUs {self.gpus}"
        return f"{self.stages} {'stage' if self.stages == 1 else 'stages'} on {where}"


def division_of(row: Mapping[str, Any]) -> Division:
    """That a row of a result is of."""
    return Division(row["stages"], row["gpus"])


def rows_in(result: Mapping[str, Any], names: Iterable[str]) -> dict[str, Rows]:
    """Those of the networks that have these names; the first results were on the CPU and don't
    say it."""
    return {
        network: [{"gpus": "cpu", **row} for row in result[network]]
        for network in names
        if network in result
    }


@dataclass(frozen=True)
class Round:
    """Images per second of one network, divided in one way, in one round."""

    predicted: float
    measured: float


Found: TypeAlias = dict[Division, Round]
"""In one round."""


def summary(rounds: Sequence[Found]) -> list[dict[str, Any]]:
    """Medians of each division; the error is that of the medians of ratios."""
    return [_row(one, [found[one] for found in rounds]) for one in rounds[0]]


def _row(one: Division, rounds: Sequence[Round]) -> dict[str, Any]:
    ratio = median(found.predicted / found.measured for found in rounds)
    return {
        **one._asdict(),
        "predicted": round(median(found.predicted for found in rounds), 1),
        "measured": round(median(found.measured for found in rounds), 1),
        "predicted_over_measured": round(ratio, 4),
        "within": abs(ratio - 1) <= WITHIN,
        "rounds": [asdict(found) for found in rounds],
    }


def table(networks: Mapping[str, Rows]) -> str:
    """Images/s predicted and measured, by network, devices and stages."""
    rows = [_cells(network, row) for network, found in networks.items() for row in found]
    columns = ["network", "devices", "stages", "predicted", "measured", "off by", "single rounds"]
    return markdown([*columns, f"within {WITHIN:.0%}"], rows, texts={"network", "devices"})


def _cells(network: str, row: Mapping[str, Any]) -> list[str]:
    stages, gpus = division_of(row)
    return [
        network,
        gpus,
        f"{stages}",
        f"{row['predicted']:,.0f}",
        f"{row['measured']:,.0f}",
        f"{row['predicted_over_measured'] - 1:+.1%}",
        _spread(row["rounds"]),
        "yes" if row["within"] else "**no**",
    ]


def _spread(rounds: Sequence[Mapping[str, float]]) -> str:
    errors = [one["predicted"] / one["measured"] - 1 for one in rounds]
    return f"{min(errors):+.1%} to {max(errors):+.1%}"


def report(result: Mapping[str, Any], names: Iterable[str], name: str, *, table_too: bool) -> None:
    """Print the table of the networks that have these names, and write it into README.md, with the
    picture."""
    networks = rows_in(result, names)
    print(table(networks))
    if not table_too:
        return
    where = machine(result, "cuda" if _on_gpus(networks.values()) else "cpu")
    source = f"`{result['command']}`, {where}, commit {result['commit']}"
    picture = f"![Images/s over stages](figures/{draw_scaling(networks, name).name})"
    write_section(README, name, f"{table(networks)}\n{source}. {WORDS}\n\n{picture}")


def _on_gpus(networks: Iterable[Rows]) -> bool:
    return any(division_of(row).gpus != "cpu" for rows in networks for row in rows)
