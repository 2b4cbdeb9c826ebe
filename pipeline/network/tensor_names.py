"""What the tensors of a block's file are, by their names: the network's own, heads, or optimizers'.

encoder.weight  bn.running_mean  tail.0.bias        the network
pred.weight  sim.weight  rule.readout               heads: what a block learns by
optimizer.encoder.weight.exp_avg                    how it learns
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.network.specs import BlockSpec

PRED = "pred."
HEADS = (PRED, "sim.", "projection.", "recon.")
"""How names of the built-in losses' heads begin."""
RULE = "rule."
OPTIMIZER = "optimizer."


def is_learned_by(name: str) -> bool:
    """Whether a tensor belongs to what a block learns by, and not to the network."""
    return name.startswith((*HEADS, RULE))


def is_weight(spec: BlockSpec, name: str) -> bool:
    """Whether the network computes with a tensor of a block: not one of the optimizer, nor of heads
    that only teach."""
    asked = spec.as_frozen
    if name.startswith(RULE):
        return asked.rule is not None
    if name.startswith("bn."):  # of a pre-activation network, heads may be all that reads it
        return spec.custom is not None or asked.norms_output
    return not name.startswith((*HEADS, OPTIMIZER))
