"""Measured against predicted speed, by stages: does the simulation tell the truth?

    python -m benchmarks.scaling            # on the CPU: MLP and VGG8B x 0.25, 1 to 4 stages

Each round measures what the blocks cost, then trains with each number of stages; prediction and
measurement alternate, since other work on the machine slows both. Medians over rounds.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from benchmarks.contenders import NEVER
from benchmarks.figures import draw_scaling
from benchmarks.machine import (
    check_can_be_kept,
    keep_so_far,
    read_result,
    told_in_a_line,
    write_result,
)
from benchmarks.tables import README, counts_of, markdown, no_table, write_section
from launch.job import Options, make_job
from launch.launcher import launch
from launch.provenance import provenance
from pipeline.recorder import METRICS_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.machine import Extent

WORDS = (
    "Predicted and measured are medians over the rounds, each by itself; what predictions are off "
    "by is the median of the rounds' quotients."
)
WITHIN = 0.10
"""Asked of the prediction."""
EPOCHS = 3
"""The first one warms up, the median of the others counts."""
NETWORKS = {
    "mlp": """\
model: {name: mlp, hidden_layers: 4, hidden: 1024, dropout: 0.1}
loss: {name: predsim}
data: {name: synthetic, channels: 1, size: 28, classes: 10, train_images: IMAGES, test_images: 128}
""",
    "vgg8b": """\
model: {name: vgg8b, feat_mult: 0.25, dropout: 0.05}
loss: {name: predsim, dim_in_decoder: 2048}
data: {name: synthetic, channels: 3, size: 32, classes: 10, train_images: IMAGES, test_images: 128}
""",
}
COMMON = f"""\
schedule: {{epochs: {EPOCHS}, milestones: []}}
runtime: {{eval_every_epochs: 0, checkpoint_every_steps: {NEVER}}}
"""
"""Without snapshots, which a prediction knows nothing of."""


@dataclass(frozen=True)
class Round:
    """Images per second of one network with so many stages, in one round."""

    predicted: float
    measured: float


def predicted(config: Path, stages: int, *, measure: bool) -> float:
    """What the simulation says, from costs measured now or in this round."""
    job = make_job(Options(config, stages=stages, gpus="cpu", measure=measure))
    assert job.foresight, "the costs have been measured"
    found = job.foresight.timing.prospect(job.plan, job.config.runtime.max_in_flight)
    return found.images_per_s


def measured(config: Path, stages: int, folder: Path) -> float:
    """What a run reaches, the median of its later epochs."""
    run_dir = folder / f"run-{stages}"
    status = launch(Options(config, stages=stages, gpus="cpu", run_dir=run_dir, view="quiet"))
    if status:
        raise click.ClickException(f"a run with {stages} stages ended with status {status}")
    lines = (run_dir / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    return float(median(json.loads(line)["images_per_s"] for line in lines[1:]))


def one_round(network: str, counts: Sequence[int], images: int) -> dict[int, Round]:
    """Measure costs, then predict and train with each number of stages."""
    with TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        config, found = _written(network, images, folder), {}
        for number, stages in enumerate(counts):
            said = predicted(config, stages, measure=number == 0)
            found[stages] = Round(said, measured(config, stages, Path(folder)))
            print(_line(network, stages, found[stages]), flush=True)
        return found


def _written(network: str, images: int, folder: str) -> Path:
    """The config of a network whose epochs have so many images."""
    config = Path(folder) / f"{network}.yaml"
    config.write_text(NETWORKS[network].replace("IMAGES", str(images)) + COMMON)
    return config


def check(networks: Sequence[str], counts: Sequence[int], images: int) -> None:
    """Asked before anything is measured.

    Raises:
        ConfigError: where a network can't be divided into so many stages.
    """
    with TemporaryDirectory() as folder:
        for network in networks:
            make_job(Options(_written(network, images, folder), stages=max(counts), gpus="cpu"))


def _line(network: str, stages: int, one: Round) -> str:
    error = 100 * (one.predicted / one.measured - 1)
    return (
        f"{network:6} {stages} stages: predicted {one.predicted:8.0f}, measured "
        f"{one.measured:8.0f} images/s ({error:+.1f} %)"
    )


def summary(rounds: Sequence[dict[int, Round]]) -> list[dict[str, Any]]:
    """Medians of each number of stages; the error is that of the medians of ratios."""
    rows = []
    for stages in rounds[0]:
        ratios = [one[stages].predicted / one[stages].measured for one in rounds]
        rows.append(
            {
                "stages": stages,
                "predicted": round(median(one[stages].predicted for one in rounds), 1),
                "measured": round(median(one[stages].measured for one in rounds), 1),
                "predicted_over_measured": round(median(ratios), 4),
                "within": abs(median(ratios) - 1) <= WITHIN,
                "rounds": [asdict(one[stages]) for one in rounds],
            }
        )
    return rows


def table(networks: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Images/s predicted and measured, by network and stages."""
    rows = [
        [
            network,
            f"{row['stages']}",
            f"{row['predicted']:,.0f}",
            f"{row['measured']:,.0f}",
            f"{row['predicted_over_measured'] - 1:+.1%}",
            _spread(row["rounds"]),
            "yes" if row["within"] else "**no**",
        ]
        for network, found in networks.items()
        for row in found
    ]
    columns = ["network", "stages", "predicted", "measured", "off by", "single rounds"]
    return markdown([*columns, f"within {WITHIN:.0%}"], rows, texts={"network"})


def _spread(rounds: Sequence[Mapping[str, float]]) -> str:
    errors = [one["predicted"] / one["measured"] - 1 for one in rounds]
    return f"{min(errors):+.1%} to {max(errors):+.1%}"


def report(result: Mapping[str, Any], name: str, *, table_too: bool) -> None:
    """Print the table, and write it into README.md, with the picture."""
    networks = {network: result[network] for network in NETWORKS if network in result}
    print(table(networks))
    if not table_too:
        return
    source = f"`{result['command']}`, {result['processor']}, commit {result['commit']}"
    picture = f"![Images/s over stages](figures/{draw_scaling(networks, name).name})"
    write_section(README, name, f"{table(networks)}\n{source}. {WORDS}\n\n{picture}")


@click.command()
@click.option("--network", "networks", multiple=True, type=click.Choice(list(NETWORKS)))
@click.option("--stages", default="1,2,3,4", show_default=True, callback=counts_of, metavar="N,M")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--images", default=12_800, show_default=True, type=click.IntRange(128))
@click.option("--name", default="scaling", show_default=True, help="Of the file in results/.")
@click.option("--report", "only_report", is_flag=True, help="Write the table again from the file.")
@no_table
@told_in_a_line
def main(
    networks: tuple[str, ...],
    stages: tuple[int, ...],
    rounds: int,
    images: int,
    name: str,
    only_report: bool,
    no_table: bool,
) -> None:
    """Compare predicted with measured images/s on the CPU; an epoch has so many IMAGES."""
    if not only_report:
        chosen = networks or tuple(NETWORKS)
        check(chosen, stages, images)
        extent = {_case(network, n): rounds for network in chosen for n in stages}
        check_can_be_kept(name, "scaling", extent, _extent_of_kept, table=not no_table)
        print(f"kept in {write_result(name, measure(chosen, stages, rounds, images, name))}")
    report(read_result(name, "scaling"), name, table_too=not no_table)


def _extent_of_kept(result: Mapping[str, Any]) -> Extent:
    rows = [(network, row) for network in NETWORKS for row in result.get(network, ())]
    return {_case(network, row["stages"]): len(row["rounds"]) for network, row in rows}


def _case(network: str, stages: int) -> str:
    return f"{network}, {stages} stages"


def measure(
    networks: Sequence[str], stages: Sequence[int], rounds: int, images: int, name: str
) -> dict[str, Any]:
    """Every network, round by round; what was found so far is kept after each."""
    result = provenance("python -m benchmarks.scaling " + " ".join(sys.argv[1:]))
    for network in networks:
        found: list[dict[int, Round]] = []
        for _ in range(rounds):
            found.append(one_round(network, stages, images))
            result[network] = summary(found)
            keep_so_far(name, result)
    return result


if __name__ == "__main__":
    main()
