"""Config -> a stage that can train; and the settings that make two runs equal bit for bit."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import torch

from pipeline.device.cuda_graphs import CudaGraphCapture, without_graphs
from pipeline.device.host import keep_freed_memory
from pipeline.learning.augment import Preprocess
from pipeline.learning.backprop import FrugalBackprop
from pipeline.learning.block import Block
from pipeline.learning.optimizers import Clipped, ParameterGroup, ParameterGroups, make_optimizer
from pipeline.learning.precision import Between
from pipeline.learning.stage import Stage
from pipeline.learning.user_block import CustomBlock
from pipeline.learning.whole_batch import WholeBatch
from pipeline.network.from_config import network_specs
from pipeline.network.rule_shapes import rule_class
from pipeline.network.user_network import build_parts, naming_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from pipeline.config.recipe import OptimizerConfig
    from pipeline.config.sections import Config, ParallelConfig
    from pipeline.data.facts import DataFacts
    from pipeline.device.cuda_graphs import GraphCapture
    from pipeline.learning.exchange import Exchange
    from pipeline.learning.optimizers import Optimizer
    from pipeline.network.specs import BlockSpec
    from pipeline.rules.rule import LocalRule, OwnOptimizer

WITHOUT_BF16 = (
    "runtime.precision: this device has no bf16 instructions, and may train several times slower "
    "than with fp32"
)


def prepare_process(device: torch.device, threads: int) -> None:
    """Fix what could make this process round differently from another: call before anything else.

    Threads change how sums are split; TensorFloat-32 and non-deterministic kernels change bits.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    keep_freed_memory()
    # as use_deterministic_algorithms(True), which would also import torch._inductor: 2 s, 80 MB
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    without_tf32()
    if device.type == "cuda":
        torch.cuda.set_device(device)


def without_tf32() -> None:
    """On GPUs convolutions in fp32 would be TensorFloat-32 by default."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def build_stage(
    config: Config,
    facts: DataFacts,
    indices: Sequence[int],
    device: torch.device,
    graphs: GraphCapture | None = None,
    specs: Sequence[BlockSpec] | None = None,
    exchange: Exchange | None = None,
    *,
    in_rounds: bool = False,
) -> Stage:
    """The stage that holds the blocks `indices` (consecutive) of the configured network.

    `graphs`: captures CUDA graphs, shared with other stages of this process; None: one of its own.
    `specs`: those of the whole network, where they are known: a user's network or rule is traced
    for them. `exchange`, `in_rounds`: as for `Stage`.
    """
    specs = network_specs(config, facts) if specs is None else specs
    blocks = build_blocks(config, specs, indices, device)
    return stage_of(config, facts, blocks, device, graphs, exchange, in_rounds=in_rounds)


def stage_of(
    config: Config,
    facts: DataFacts,
    blocks: Sequence[Block],
    device: torch.device,
    graphs: GraphCapture | None = None,
    exchange: Exchange | None = None,
    *,
    in_rounds: bool = False,
) -> Stage:
    """The stage that trains consecutive blocks as the config has it; arguments as `build_stage`."""
    is_first = blocks[0].spec.index == 0
    preprocess = build_preprocess(config, facts, device) if is_first else None
    kind: Callable[..., Stage] = Stage
    if config.saves_memory:
        of_a_batch = {"accumulate": config.optimizer.accumulate}
        kind = partial(FrugalBackprop, recompute=config.runtime.recompute, **of_a_batch)
    stage = kind(
        blocks,
        preprocess,
        config.runtime.on_nonfinite,
        tests_every_depth=config.runtime.eval_depths,
        between=_between(config),
        exchange=exchange,
        in_rounds=in_rounds,
        whole=_whole_batch(config.parallel, exchange, blocks),
    )
    if config.runtime.compile:
        stage.compile()
    if config.runtime.cuda_graphs and device.type == "cuda":
        reason = graphs_prevented_by(config)
        if reason is None:
            stage.capture(graphs or CudaGraphCapture(device))
        elif is_first:  # once for the run
            stage.remark(without_graphs(reason))
    if config.runtime.precision == "bf16" and is_first and not computes_bf16(device):
        stage.remark(WITHOUT_BF16)
    return stage


def _whole_batch(
    parallel: ParallelConfig, exchange: Exchange | None, blocks: Sequence[Block]
) -> WholeBatch | None:
    """What blocks see of others' shares, where they are to."""
    in_norms, in_similarities = parallel.batch_norm == "batch", parallel.similarity == "batch"
    if exchange is None or not (in_norms or in_similarities):
        return None
    whole = WholeBatch(exchange)
    for block in blocks:
        block.see_whole_batches(whole, in_norms=in_norms, in_similarities=in_similarities)
    return whole


def _between(config: Config) -> Between:
    runtime = config.runtime
    computed = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
    return Between(runtime.wire_dtype == "bf16", computed)


def build_blocks(
    config: Config, specs: Sequence[BlockSpec], indices: Sequence[int], device: torch.device
) -> list[Block]:
    """The blocks `indices` of the network that `specs` describe, each with its optimizer."""
    parts = None
    if config.model.factory:
        has_output = specs[-1].is_output
        parts = build_parts(config.model, config.runtime.seed, has_output=has_output)
    blocks = []
    with naming_factory(config.model):
        for index in indices:
            of_its_kind = partial(CustomBlock, part=parts[index]) if parts else Block
            block = of_its_kind(
                specs[index],
                seed=config.runtime.seed,
                device=device,
                dtype=torch.float32,
                bf16=config.runtime.precision == "bf16",
            )
            block.attach(partial(block_optimizer, config.optimizer, index, block.rule))
            blocks.append(block)
    return blocks


def block_optimizer(
    settings: OptimizerConfig, block: int, rule: LocalRule | None, learned: Mapping[str, Tensor]
) -> Optimizer:
    """The optimizer of a block, for the parameters that it learns: the configured one, but for what
    its rule wants others for."""
    of_rule = {name: tensor for name, tensor in learned.items() if name.startswith("rule.")}
    of_layer = {name: tensor for name, tensor in learned.items() if name not in of_rule}
    asked = [
        (of_layer, rule.layer_optimizer if rule else None),
        (of_rule, rule.rule_optimizer if rule else None),
    ]
    if any(wanted for _, wanted in asked):
        parts = [
            _asked_for(settings, wanted, tensors)
            if wanted
            else _configured(settings, block, tensors)
            for tensors, wanted in asked
            if tensors
        ]
    else:
        parts = [_configured(settings, block, learned)]
    alone = len(parts) == 1 and parts[0].factor == 1.0
    optimizer = parts[0].optimizer if alone else ParameterGroups(learned, parts)
    return optimizer if settings.clip_norm is None else Clipped(optimizer, settings.clip_norm)


def _configured(
    settings: OptimizerConfig, block: int, learned: Mapping[str, Tensor]
) -> ParameterGroup:
    own = settings.blocks.get(block)
    own_decay = own.weight_decay if own else None
    optimizer = make_optimizer(
        settings.name,
        learned,
        weight_decay=settings.weight_decay if own_decay is None else own_decay,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
    )
    # the rate that arrives is the common one, as the schedule has changed it
    factor = own.lr / settings.lr if own and own.lr is not None else 1.0
    return ParameterGroup(list(learned), optimizer, factor)


def _asked_for(
    settings: OptimizerConfig, wanted: OwnOptimizer, learned: Mapping[str, Tensor]
) -> ParameterGroup:
    optimizer = make_optimizer(wanted.name, learned, weight_decay=0.0, momentum=wanted.momentum)
    return ParameterGroup(list(learned), optimizer, wanted.lr / settings.lr)


def computes_bf16(device: torch.device) -> bool:
    """Whether it has instructions for bf16; a processor without converts number by number."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return device.type != "cpu" or known is None or bool(known())


def graphs_prevented_by(config: Config) -> str | None:
    """What of a config asks for more in a step than CUDA graphs can do; None for nothing."""
    if config.loss.rule and not rule_class(config.loss.rule).static:
        return f"loss.rule {config.loss.rule} does not say that it is static"
    if config.model.factory:
        return "model.factory: a user's own modules may do anything from batch to batch"
    if config.saves_memory:
        return "runtime.recompute and optimizer.accumulate take a step in parts"
    if config.loss.similarity_batches < 1:
        return "loss.similarity_batches: batches differ in what they learn from"
    if config.schedule.greedy:
        return "schedule.greedy: what learns changes from phase to phase"
    if config.parallel.members > 1 or config.parallel.replicas:
        return "parallel: a step waits for other processes"
    if config.runtime.on_nonfinite == "skip_batch":
        return "runtime.on_nonfinite skip_batch looks at each loss before it learns"
    return None


def build_preprocess(config: Config, facts: DataFacts, device: torch.device) -> Preprocess:
    """What turns examples into the input of the first block."""
    data = config.data
    return Preprocess(
        facts.mean,
        facts.std,
        crop_padding=data.crop_padding,
        flip=data.flip,
        cutout=data.cutout,
        seed=config.runtime.seed,
        device=device,
    )
