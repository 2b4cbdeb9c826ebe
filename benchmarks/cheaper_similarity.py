"""What similarity for less work costs in error and gains in speed:
python -m benchmarks.cheaper_similarity [OPTIONS of pipeline-referee]

`predsim` as in the paper, `pred` as the bound of what can be gained, and each variant that
`launch/referee/referee.yaml` has (`predsim-…`), by the referee: its rows, its table, its options.
"""

from __future__ import annotations

import sys

from launch.referee.command import main as referee
from launch.referee.table import read_table

NETWORKS = ("mlp", "vgg8b_quarter")


def words() -> list[str]:
    """Of the referee's command."""
    variants = [name for name in read_table().rules if name.startswith("predsim-")]
    rules = ["pred", "predsim", *variants]
    return ["--networks", ",".join(NETWORKS), "--rules", ",".join(rules)]


def main() -> None:
    """Options that are given come last, and so take the place of these."""
    given = [*words(), *sys.argv[1:]]
    sys.argv = ["pipeline-referee", *given]  # of which the rows and the line to go on by tell
    referee(given)


if __name__ == "__main__":
    main()
