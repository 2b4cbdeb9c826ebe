"""The command line of pipeline-launch. Imports nothing heavy: --help answers at once."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from launch.command import PathType, command, run_command
from launch.completion import complete_setting

if TYPE_CHECKING:
    from collections.abc import Callable

_LAUNCH_OPTIONS = (
    click.option(
        "--stages",
        type=int,
        metavar="N",
        help="Number of worker processes; blocks are divided into N consecutive groups. "
        "[default: one per hidden layer, or per group that can't be divided]",
    ),
    click.option(
        "--gpus",
        metavar="SPEC",
        help="Devices: 0-3, or 0,2,5, or cpu; on a cluster: how many of each host. [default: every "
        "visible GPU, else cpu]",
    ),
    click.option(
        "--single",
        is_flag=True,
        help="Train all blocks in one process, on one device; stages take turns there.",
    ),
    click.option(
        "--data-parallel",
        type=click.IntRange(1),
        metavar="N",
        help="Train the whole network in each of N processes, on a share of every batch; sets "
        "parallel.members, which changes results. With --single one process does all shares.",
    ),
    click.option(
        "--replicas",
        multiple=True,
        metavar="STAGE:N",
        help="Train a stage in N processes, which take batches by turns and make one step of N; "
        "sets parallel.replicas, which changes results. auto: where and how many the plan says. "
        "Repeatable.",
    ),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        shell_complete=complete_setting,
        help="Override one value of the config, as data.batch_size=64. Repeatable.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where workers run: this machine, or the hosts of a Ray cluster (docs/cluster.md).",
    ),
    click.option(
        "--view",
        type=click.Choice(["auto", "live", "plain", "quiet"]),
        default="auto",
        show_default=True,
        help="What is shown: a live picture, plain lines, nothing; auto: live on a terminal.",
    ),
)


def launch_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that trains, under the names that `job.Options` has."""
    for option in reversed(_LAUNCH_OPTIONS):
        command = option(command)
    return command


@command
@click.argument("config", metavar="CONFIG.yaml", required=False, type=PathType())
@launch_options
@click.option(
    "--run-dir",
    metavar="DIR",
    help="The folder that the run writes everything into. [default: runs/<config>-<date>-<time>]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Resume from the newest complete checkpoint in the run directory, with any number of "
    "stages or devices.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and what to expect; start nothing.")
@click.option(
    "--plan",
    metavar="FILE",
    type=PathType(dir_okay=False),
    help="Follow this plan: blocks and device of each stage, as in a run's plan.json.",
)
@click.option(
    "--measure",
    is_flag=True,
    help="First measure what each block costs on its device, and keep it for later plans; then "
    "train on synthetic images for some seconds and print the speed.",
)
@click.option(
    "--assume",
    metavar="FILE",
    type=PathType(dir_okay=False),
    help="With --dry-run: predict for imagined devices, whose speed, memory and links are in FILE.",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="With --engine ray: the cluster, as 10.0.0.1:6379, on a node of which this runs. "
    "[default: $RAY_ADDRESS, else Ray is started on this machine for the run]",
)
@click.option(
    "--ray-insecure",
    is_flag=True,
    help="With --engine ray: use a cluster that asks nobody for a token.",
)
@click.option(
    "--trace",
    type=int,
    metavar="N",
    help="Record what each stage does with the first N batches, 1 to 1000, and write it to "
    "trace.json in the run directory, for https://ui.perfetto.dev.",
)
@click.option(
    "--list",
    "listing",
    type=click.Choice(["models", "data", "losses", "rules"]),
    help="Print what a config may name as network, data set, loss or local rule; start nothing.",
)
def main(**options: Any) -> None:
    """Train a network with local losses, one worker process per group of hidden layers.

    A first config for one's own data: pipeline-init. What CONFIG.yaml may say: docs/config.md.

    \b
    Exit status: 0 done; 1 the run failed; 2 wrong usage or config;
    130 interrupted (a checkpoint was written).
    """

    def body() -> int:
        if listing := options.pop("listing"):
            from launch.command import DONE
            from launch.listings import print_listing

            print_listing(listing)
            return DONE
        from launch.job import Options
        from launch.launcher import launch
        from launch.run_directory import folder_named

        given = options.pop("run_dir")
        run_dir = None if given is None else folder_named("--run-dir", given)
        command = shlex.join(["pipeline-launch", *sys.argv[1:]])
        return launch(Options(run_dir=run_dir, command=command, **options))

    run_command(body)


if __name__ == "__main__":
    main()
