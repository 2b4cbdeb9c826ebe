"""A local rule in one process as one would write it at first: the baseline of benchmarks.rules.

    batch = rule.expand(batch)
    for each block:  x = rule.enter(x)
                     h = activation(x)
                     rule.loss(h, x, batch).backward()
                     optimizer.step()             torch.optim.Adam, as it comes
                     rule.leave(h, batch)
                     x = pool(dropout(h.detach()))

The same rule's own functions as in the pipeline, plain layers of PyTorch around them, fp32; batches
lie ready.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.lib.command_line import SECONDS
from benchmarks.lib.laps import made_up_batches, timed
from benchmarks.rivals.plain import Layer
from pipeline.config.config_file import load_config
from pipeline.data.facts import data_facts
from pipeline.network.from_config import network_specs
from pipeline.network.rule_shapes import expander, make_rule, rule_class
from pipeline.rules.rule import Batch

if TYPE_CHECKING:
    from pipeline.config.sections import Config


class RuleLoop:
    """All blocks of a configured network, each with an optimizer of its own."""

    def __init__(self, config: Config) -> None:
        facts = data_facts(config.data)
        specs = network_specs(config, facts)
        assert config.loss.rule is not None, "a config with a rule"
        kind = rule_class(config.loss.rule)
        self._expand = expander(kind, config.loss.options, facts.classes)
        self._layers = [Layer(spec) for spec in specs]
        self._rules = [make_rule(spec) if spec.rule else None for spec in specs]
        self._generator = torch.Generator().manual_seed(config.runtime.seed)
        self._optimizers = [
            torch.optim.Adam(
                [*layer.parameters(), *(rule.parameters() if rule else ())], lr=config.optimizer.lr
            )
            for layer, rule in zip(self._layers, self._rules, strict=True)
        ]

    def step(self, x: Tensor, labels: Tensor) -> list[float]:
        """Train a batch; the loss of every block."""
        draws, losses = self._generator, []
        given = Batch(x, labels, training=True)
        batch = self._expand(given, draws)
        x = batch.x
        for layer, rule, optimizer in zip(self._layers, self._rules, self._optimizers, strict=True):
            arrived = Batch(x, labels, dict(batch.carry))
            entered = x if rule is None else rule.enter(x, arrived, draws)
            h = layer.activation(entered)
            if rule is None:
                loss = F.cross_entropy(h, labels)
            else:
                told = rule.loss(h, entered, arrived, draws)
                assert told is not None, "the rules that are timed have losses"
                loss = told[0] if isinstance(told, tuple) else told
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            with torch.no_grad():
                x = layer.passed(h.detach())
                if rule is not None:
                    rule.leave(h.detach(), batch)
        return losses


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--seconds", type=SECONDS, default=10.0, show_default=True)
def main(config: Path, threads: int, seconds: float) -> None:
    """Train CONFIG's rule in a plain loop; prints images/s as JSON."""
    torch.set_num_threads(threads)
    loaded, device = load_config(config), torch.device("cpu")
    torch.manual_seed(loaded.runtime.seed)
    loop = RuleLoop(loaded)
    print(json.dumps(timed(loop.step, made_up_batches(loaded, device), seconds, device)))


if __name__ == "__main__":
    main()
