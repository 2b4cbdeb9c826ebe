"""What similarity for less work costs in error and gains in speed:
python -m benchmarks.cheaper_similarity [OPTIONS of pipeline-referee]

`predsim` as in the paper, `pred` as the bound of what can be gained, and each variant that
`launch/referee/referee.yaml` has (`predsim-…`), by the referee: its rows, its table, its options.
"""

from __future__ import annotations

import sys

import torch

from launch.machine.gpus import devices
from launch.referee.command import main as referee
from launch.referee.table import read_table
from pipeline.learning.build import computes_bf16

NETWORKS = ("mlp", "vgg8b_quarter")


def words(*, bf16: bool) -> list[str]:
    """Of the referee's command; `bf16`: with the variants that compute in it."""
    variants = [
        name
        for name, rule in read_table().rules.items()
        if name.startswith("predsim-") and (bf16 or not rule.config["loss"].get("similarity_bf16"))
    ]
    rules = ["pred", "predsim", *variants]
    return ["--networks", ",".join(NETWORKS), "--rules", ",".join(rules)]


def main() -> None:
    """Options that are given come last, and so take the place of these."""
    bf16 = computes_bf16(torch.device(devices(None)[0]))
    if not bf16:  # a step would take minutes
        print("without g in bfloat16: this processor has no instructions for that", flush=True)
    given = [*words(bf16=bf16), *sys.argv[1:]]
    sys.argv = ["pipeline-referee", *given]  # of which the rows and the line to go on by tell
    referee(given)


if __name__ == "__main__":
    main()
