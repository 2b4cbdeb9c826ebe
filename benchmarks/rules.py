"""How fast local rules train: python -m benchmarks.rules

Each rule in single mode, in pipelines, and in a plain loop of one process (`rivals/rule_loop.py`)
with one thread and with as many as there are cores; and `pred` as it is built in beside the same
written by a user. In turn, so that what the machine does falls on all of them; a ratio is that
within a round.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from benchmarks.lib.command_line import SECONDS, provenance_now, with_usage_errors
from benchmarks.lib.contenders import NEVER, finished, timed_epochs
from benchmarks.lib.report import Finding, Report, in_turn, range_text
from benchmarks.lib.result_files import RESULTS, make_writable, write_result
from launch.display.format import markdown
from pipeline.config.config_file import dump_config
from pipeline.config.sections import build_config

if TYPE_CHECKING:
    from benchmarks.lib.contenders import Lap
    from benchmarks.lib.report import Result

BATCH, LAYERS = 128, 3
_PUBLIC_PRED = "benchmarks.lib.public_pred:Pred"
RULES: dict[str, dict[str, Any]] = {
    "DGL": {"rule": "DGL"},
    "InfoPro": {"rule": "InfoPro"},
    "ForwardForward": {"rule": "ForwardForward"},
    "pred by a user": {"rule": _PUBLIC_PRED},
    "pred": {"name": "pred"},
}
"""What is timed: the `loss` section of each."""
_WITHOUT_BATCH_NORM = ("ForwardForward",)
_ALONE = "single"
"""Both forms of `pred` are timed in single mode alone."""
AT_LEAST, PUBLIC_AT_LEAST = 1.3, 0.9


def config_text(name: str, steps: int, epochs: int) -> str:
    """An MLP of three hidden layers of 1024 on made-up images of MNIST's shape, as YAML."""
    tree = {
        "model": {
            "name": "mlp", "hidden_layers": LAYERS, "hidden": 1024,
            "batch_norm": name not in _WITHOUT_BATCH_NORM,
        },
        "loss": RULES[name],
        "data": {
            "name": "synthetic", "channels": 1, "size": 28, "batch_size": BATCH,
            "train_images": steps * BATCH, "test_images": BATCH,
        },
        "schedule": {"epochs": epochs},
        "runtime": {"eval_every_epochs": 0, "checkpoint_every_steps": NEVER, "max_in_flight": 4},
    }  # fmt: skip
    return dump_config(build_config(tree, name))


def ways_of(name: str, cores: int) -> dict[str, list[str]]:
    """The ways to train that are timed, each as the words of a module."""
    ours = ["launch.cli", "--view", "quiet", "--gpus", "cpu"]
    if name.startswith("pred"):
        return {_ALONE: [*ours, "--single"]}
    loops = {f"loop, {n} thread{'s' * (n > 1)}": ["--threads", str(n)] for n in {1, cores}}
    return {
        **{way: ["benchmarks.rivals.rule_loop", *words] for way, words in loops.items()},
        _ALONE: [*ours, "--single"],
        **{f"pipeline {n}": [*ours, "--stages", str(n)] for n in (2, 3)},
    }


def lap(name: str, words: list[str], seconds: float, steps: int) -> Lap:
    """Images/s of one way to train, or why it failed."""
    with TemporaryDirectory(prefix="rules-") as folder:
        config, run = Path(folder) / "config.yaml", Path(folder) / "run"
        config.write_text(config_text(name, steps, 4), encoding="utf-8")
        if words[0] != "launch.cli":
            answer = finished([*words, "--seconds", str(seconds), str(config)], seconds)
            return answer if isinstance(answer, dict) else dict(json.loads(answer))
        answer = finished([*words, "--run-dir", str(run), str(config)], seconds)
        return answer if isinstance(answer, dict) else timed_epochs(run, steps * BATCH)


def ratio(result: Result, of: tuple[str, str], to: tuple[str, str]) -> list[float]:
    """Quotients, round by round, of two rules' ways."""
    pairs = zip(result["rules"][of[0]][of[1]], result["rules"][to[0]][to[1]], strict=True)
    return [one / other for one, other in pairs]


def best_pipeline(ways: dict[str, list[float]]) -> str:
    """The number of stages that is best in the median."""
    return max((way for way in ways if way.startswith("pipeline")), key=lambda w: median(ways[w]))


def findings(result: Result) -> list[Finding]:
    """The pipeline beside the plain loops, and the public way beside the built-in one."""
    found = []
    for name, ways in result["rules"].items():
        if _ALONE in ways and len(ways) == 1:
            continue
        best = best_pipeline(ways)
        for loop in (way for way in ways if way.startswith("loop")):
            ratios = ratio(result, (name, best), (name, loop))
            asked = loop.startswith("loop, 1 ")
            found.append(
                Finding(
                    f"{name}: {best} to {loop}", range_text(ratios),
                    f"≥ {AT_LEAST}" * asked, not asked or median(ratios) >= AT_LEAST,
                )
            )  # fmt: skip
    ratios = ratio(result, ("pred by a user", _ALONE), ("pred", _ALONE))
    found.append(
        Finding(
            "`pred` by a user's rule to the built-in one", range_text(ratios),
            f"≥ {PUBLIC_AT_LEAST}", median(ratios) >= PUBLIC_AT_LEAST,
        )
    )  # fmt: skip
    return found


def table(result: Result) -> str:
    """Images/s of all, medians."""
    rows = [
        [name, way, f"{median(speeds):,.0f}"]
        for name, ways in result["rules"].items()
        for way, speeds in ways.items()
    ]
    return markdown(["rule", "way", "images/s"], rows, ["rule", "way"])


REPORT = Report(
    "Local rules",
    "Images/s of an MLP of three hidden layers of 1024 on MNIST's shape, batches of 128, fp32; "
    "medians of the rounds, and ratios within them. The loops are plain PyTorch around the same "
    "rule, their batches lie ready; ours are fed.",
    findings,
    table,
)


@click.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=6.0, type=SECONDS, show_default=True, help="Of each plain loop.")
@click.option("--steps", default=60, show_default=True, help="Of each of our epochs.")
@with_usage_errors
def main(rounds: int, seconds: float, steps: int) -> None:
    """Measure, print and keep benchmarks/results/rules-….json."""
    make_writable(RESULTS)
    cores = len(os.sched_getaffinity(0))
    rules: dict[str, dict[str, list[float]]] = {
        name: {way: [] for way in ways_of(name, cores)} for name in RULES
    }
    result = {**provenance_now(), "batch_size": BATCH, "rules": rules}
    for number in range(1, rounds + 1):
        for name in RULES:
            for way, words in in_turn(ways_of(name, cores), number):
                found = lap(name, words, seconds, steps)
                if "failed" in found:
                    raise click.ClickException(f"{name}, {way}: {found['failed']}")
                rules[name][way].append(found["images_per_s"])
                said = f"{found['images_per_s']:9,.0f} images/s"
                print(f"{number}/{rounds}  {name:16} {way:18} {said}", flush=True)
    REPORT.show(result, write_result("rules", result))


if __name__ == "__main__":
    main()
