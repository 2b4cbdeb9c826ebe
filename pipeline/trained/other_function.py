"""What no tensor shows of blocks that have learned elsewhere: that their weights were learned for
other pooling, strides, shortcuts or another non-linearity than they meet.

Of built-in networks; of modules of a user's own only the tensors are known.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.config.loss import LossConfig
from pipeline.config.sections import build_config
from pipeline.errors import ConfigError
from pipeline.network.from_config import network_specs
from pipeline.trained.run_folder import facts_in

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from pipeline.config.sections import Config
    from pipeline.network.specs import BlockSpec, PoolSpec
    from pipeline.storage.checkpoint import Checkpoint
    from pipeline.storage.folder import Folder


def other_function(
    run: Folder,
    checkpoint: Checkpoint,
    config: Config,
    specs: Sequence[BlockSpec],
    taken: Container[int],
    with_classifier: Container[int],
) -> Iterator[tuple[str, list[int]]]:
    """What other than before is computed with weights from another run: in words, and by which
    blocks. Nothing of that run's own code is executed.

    Args:
        taken: the blocks whose weights are from there; with_classifier: those that have taken
            their local classifier, too.
    """
    with suppress(ConfigError):  # an earlier version's, or a later one's
        before = build_config(checkpoint.config, str(checkpoint.path))
        if config.model.factory is not None or before.model.factory is not None:
            return
        there, here = before.nonlinearity, config.nonlinearity
        if there != here:
            yield (
                f"the non-linearity is {here} here, {there} there: to keep it, set "
                f"model.nonlinearity {there}",
                [spec.index for spec in specs if spec.index in taken and not spec.is_output],
            )
        found: dict[str, list[int]] = {}
        for old, new in zip(_specs(run, before), specs, strict=False):
            if new.index in taken:
                for words in _differences(old, new, classifier=new.index in with_classifier):
                    found.setdefault(words, []).append(new.index)
        yield from found.items()


def _specs(run: Folder, config: Config) -> Sequence[BlockSpec]:
    """Of another run; as without its rule, which may be a user's."""
    if config.loss.rule is not None:
        config = config.model_copy(update={"loss": LossConfig(name="predsim")})
    return network_specs(config, facts_in(run, config))


def _differences(before: BlockSpec, now: BlockSpec, *, classifier: bool) -> Iterator[str]:
    pairs = list(zip(_computed(before), _computed(now), strict=True))
    if classifier and before.pred and now.pred:
        pools = (f"{_pooling(spec.pool)} before its classifier" for spec in (now.pred, before.pred))
        here, there = pools
        pairs.append((there, here))
    for there, here in pairs:
        if there != here:
            yield f"{here} here, {there} there"


def _computed(spec: BlockSpec) -> Iterator[str]:
    """With a block's weights; for all blocks in the same order."""
    yield f"stride {spec.layer.stride}"
    yield f"padding {spec.layer.padding}"
    yield _pooling(spec.pool)
    shortcut = spec.shortcut
    yield "no shortcut" if shortcut is None else f"a shortcut from block {shortcut.source}"
    order = "before" if spec.activates_input else "after"
    yield f"batch norm and non-linearity {order} the layer"


def _pooling(pool: PoolSpec | None) -> str:
    if pool is None:
        return "no pooling"
    kernel, stride = ("×".join(map(str, pair)) for pair in (pool.kernel, pool.stride))
    return f"{pool.kind} pooling of {kernel}, stride {stride}"
