"""The YAML schema, declared once: typed sections with a sentence under each field.

Here are `runtime` and the whole; `model.py`, `loss.py`, `recipe.py` and `data.py` have the others.

Checked before any process starts. Unknown keys, wrong types and impossible combinations are
`ConfigError`s that name file, key, value and what is allowed. Each stage is sent the resolved
config and checks it again. `config_file.py` reads and writes the YAML.
"""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import IPv6Address, ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pipeline.config.data import MAX_COUNT, DataConfig
from pipeline.config.loss import LossConfig  # noqa: TC001  pydantic reads it at run time
from pipeline.config.model import MAX_LAYERS, RESIDUAL_NAMES, ModelConfig
from pipeline.config.recipe import (
    MAX_EPOCHS,
    BlockIndex,
    OptimizerConfig,
    ScheduleConfig,
)
from pipeline.config.schema import (
    BeforeValidator,
    Field,
    Misfit,
    MisfitsError,
    Origins,
    Section,
    brief,
    checked,
    choices,
    field_validator,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_S = 1e6
"""Seconds of a time-out, some 11 days: more milliseconds than this don't go into 32 bits."""

_BROADCAST, _LAST_PORT = "255.255.255.255", 65535
_RANGE = re.compile("([0-9]{1,5})-([0-9]{1,5})")


def _which_best(value: Any) -> Any:
    if not isinstance(value, bool) and value not in ("test", "validation", "last"):
        raise ValueError(
            f"{brief(value)} is not allowed: use true, false, test, validation or last"
        )
    return value


def _of_address(text: str) -> str:
    """The rule that an address breaks, or nothing."""
    try:
        address = ip_address(text)
    except ValueError:
        usable = False
    else:
        usable = not isinstance(address, IPv6Address) or address.ipv4_mapped is None
        usable &= not (address.is_unspecified or address.is_multicast or text == _BROADCAST)
    if usable:
        return ""
    return (
        "give auto, a network, or the one IP address of this machine that others are to connect "
        "to, as `ip address` shows it: no name, port, broadcast, multicast or mapped address"
    )


def _of_a_network(text: str) -> str:
    """The rule that a network or an address breaks, or nothing."""
    with suppress(ValueError):
        ip_network(text)
        return ""
    with suppress(ValueError):
        both = ip_interface(text)
        return f"give the network, {both.network}, or the address, {both.ip}"
    return "give a network as 10.8.0.0/16 or fd00:8::/32"


class RuntimeConfig(Section):
    """How the run is carried out; of these, only `seed`, `precision`, `wire_dtype`,
    `compile`, `threads_per_stage` and `on_nonfinite` may change a result."""

    seed: int = Field(default=1, ge=0, lt=2**63)
    """Decides initial weights, order of images, dropout and augmentation."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast for layers and local classifiers; similarity and losses stay fp32."""
    wire_dtype: Literal["as_computed", "bf16"] = "as_computed"
    """`bf16`: round the activations between blocks that learn apart to bfloat16, so that links
    carry half the bytes. That changes results, the same way however blocks are divided among
    processes, and in tests as in training; what a rule carries beside them stays as it is."""
    compile: bool = False
    """Let torch.compile make kernels of each block, at the first batches; where it fails, the block
    goes on without and the run says so. On a CPU it needs a C++ compiler."""
    cuda_graphs: bool = True
    """On CUDA devices, record a stage's step and replay it for other batches; where that can't be
    done the stage goes on without and the run says so."""
    threads_per_stage: int = Field(default=1, ge=1, le=1024)
    """CPU threads of each stage, and of single mode."""
    recompute: int = Field(default=0, ge=0, le=MAX_LAYERS)
    """Of `loss.name: glob`: of every so many blocks hold only what arrives, and compute the rest
    again when the gradient comes back (activation checkpointing, Chen et al. 2016): less memory, up
    to a third more work, the same bits. 0: hold all."""
    max_in_flight: int = Field(default=2, ge=1, le=64)
    """Batches that may wait between two neighbouring stages."""
    checkpoint_every_steps: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Steps between checkpoints; 0: at the end of every epoch. One is always written last."""
    keep_checkpoints: int = Field(default=3, ge=1, le=MAX_COUNT)
    """How many of the newest complete checkpoints stay on disk."""
    keep_best: Annotated[
        bool | Literal["test", "validation", "last"], BeforeValidator(_which_best)
    ] = True
    """Keep the weights with the lowest tested error as `checkpoints/best`, beside those: on
    `data.validation`, where that is set, else on the test set; by loss, where nothing is predicted.
    `test` or `validation` says which of these it has to be; `last` keeps the newest weights there,
    whatever tests say. Only ends of tested epochs count that have a checkpoint, as all have unless
    `checkpoint_every_steps` says else; in greedy training, those of the phase under way."""
    best_form: Literal["full", "weights"] = "full"
    """What `checkpoints/best` holds: all that a checkpoint has, or the network's `weights` without
    heads and optimizer state, a fraction of the size: to evaluate, predict, hand on, or begin from
    (`model.init_from`)."""
    eval_every_epochs: int = Field(default=1, ge=0, le=MAX_EPOCHS)
    """Epochs between tests (the last epoch is always tested); 0: never."""
    eval_depths: bool = False
    """In tests, count what each block's own classifier gets wrong, too."""
    eval_before_training: bool = False
    """Test the untrained network too, as epoch 0."""
    tensorboard: bool = False
    """Write what metrics.jsonl says, and which classes a test takes for which, for TensorBoard too:
    `tensorboard --logdir runs` shows all runs there. It needs the package tensorboard."""
    transport: Literal["ipc", "tcp", "tcp-plain"] = "ipc"
    """How processes of a run are connected. `ipc`: socket files in a folder that only their owner
    can enter; `tcp`: encrypted, open to the keys of this run only; `tcp-plain`: neither."""
    bind_address: str = "auto"
    """Where the sockets of `tcp` and `tcp-plain` listen: at an IP address of this machine; at that
    address which each host of the run has in a network, as `10.8.0.0/16`; or `auto`: at that by
    which the cluster knows the host, and on one machine at 127.0.0.1."""
    ports: str | None = None
    """Ports at which they may listen, as `20000-20100`, for a firewall to let through: each stage
    needs two on its host, and two more for each other member of its team, and the launcher one;
    null: any that are free."""
    start_timeout_s: float = Field(default=120.0, gt=0, le=_MAX_S)
    """How long the workers may take to report for work."""
    heartbeat_timeout_s: float | None = Field(default=None, ge=1, le=_MAX_S)
    """A worker silent for so long is taken for dead; null: 10 on one machine, 45 where stages run
    on hosts of a cluster, whose network may be gone for a while."""
    on_nonfinite: Literal["stop", "skip_batch", "rollback"] = "stop"
    """Where a block's loss is not finite: end the run; let that block learn nothing from the batch
    (others, whose loss is finite, learn from it); or go back to the newest snapshot and leave out
    the batch that is to blame, ten batches at most, and at most half of the run's."""
    max_restarts: int = Field(default=3, ge=0, le=MAX_COUNT)
    """How often within an hour a lost worker is replaced, and the run goes back to its newest
    snapshot, before it ends with the first cause; 0: it ends at once."""
    stall_timeout_s: float = Field(default=20.0, ge=1, le=_MAX_S)
    """A worker that sits on a batch for so long without using the processor is taken for stuck;
    one that does use it, after 20 times as long. To wait for a GPU counts as using it."""

    # both before types are looked at: a number is an address, or a port, that is not whole yet

    @field_validator("bind_address", mode="before")
    @classmethod
    def _others_can_connect_to_it(cls, value: Any) -> Any:
        text = value if isinstance(value, str) else ""
        if text != "auto" and (rule := _of_a_network(text) if "/" in text else _of_address(text)):
            raise MisfitsError(Misfit("runtime.bind_address", f"{brief(value)}: {rule}"))
        return value

    @field_validator("ports", mode="before")
    @classmethod
    def _are_a_range(cls, value: Any) -> Any:
        ends = _RANGE.fullmatch("1-1" if value is None else str(value))
        if ends is None or not 1 <= int(ends[1]) <= int(ends[2]) <= _LAST_PORT:
            rule = f"{brief(value)}: give the first and the last of some ports, as 20000-20100"
            raise MisfitsError(Misfit("runtime.ports", rule))
        return value


class ParallelConfig(Section):
    """Several processes that train the same blocks and make each step together. It changes results,
    as the size of a batch does, so a run keeps it to its end."""

    members: int = Field(default=1, ge=1, le=64)
    """How many hold the whole network (`--data-parallel`): each learns from a share of every batch,
    and the gradients of a block are added up over all, in a fixed order, while the next blocks
    compute. Losses that compare examples see the share."""
    batch_norm: Literal["share", "batch"] = "share"
    """What batch norm takes its mean and variance over in training: each process's share of a
    batch, or the whole batch, for which all wait within each block."""
    similarity: Literal["share", "batch"] = "share"
    """Of which examples the similarity loss compares one with the others: those of the share, or of
    the whole batch, for which all wait within each block."""
    replicas: dict[BlockIndex, Annotated[int, Field(ge=2, le=64)]] = Field(
        default={}, max_length=MAX_LAYERS + 1
    )
    """How many processes train some blocks (`--replicas`), by index, counted from 0: {2: 3, 3: 3}.
    Each takes one of so many batches, all from the same weights, and one step is made from the mean
    of their gradients: so often fewer steps, as if batches of these blocks were larger."""

    @property
    def sees_batch(self) -> list[str]:
        """Keys of what sees the whole batch, for which members wait within each block."""
        seen = {"batch_norm": self.batch_norm, "similarity": self.similarity}
        return [f"parallel.{name}" for name, what in seen.items() if what == "batch"]


class Config(Section):
    """A whole run: its sections, and what must fit across them."""

    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    data: DataConfig
    parallel: ParallelConfig = ParallelConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    def misfits(self) -> Iterator[Misfit]:
        """What does not fit across sections."""
        flat = self.model.hidden_layers or self.model.name.startswith(RESIDUAL_NAMES)
        normalises = self.model.batch_norm and self.model.factory is None
        if self.data.batch_size == 1 and normalises and flat:
            yield Misfit("data.batch_size", "1 leaves model.batch_norm nothing to normalise by")
        yield from self._misfits_of_the_network()
        yield from self._misfits_of_the_schedule()
        yield from self._misfits_of_frozen_blocks()
        yield from self._misfits_of_the_best()
        yield from self._misfits_of_backprop()
        members, least = self.parallel.members, 2 * self.parallel.members
        if members > 1 and self.data.batch_size < least:
            yield Misfit(
                "parallel.members",
                f"{members}: each needs two examples of a batch, and data.batch_size is "
                f"{self.data.batch_size}: use {least} or more, or fewer members",
            )
        yield from self._misfits_of_whole_batches()
        yield from self._misfits_of_replicas()

    def _misfits_of_the_network(self) -> Iterator[Misfit]:
        loss, sums = self.loss, "passes on sums instead of activations"
        if loss.local is None and self.model.group != 1:
            yield Misfit("model.group", "needs local losses; loss.name glob has none")
        if loss.unsupervised == "recon" and self.model.group != 1:
            rule = "recon rebuilds the input of one layer: model.group must be 1"
            yield Misfit("loss.unsupervised", rule)
        if loss.rule is not None and self.model.preactivation:
            yield Misfit(
                "model.preactivation",
                f"{sums}, which loss.rule is not made for: leave one of them out",
            )
        if loss.unsupervised != "none" and self.model.preactivation:
            yield Misfit("model.preactivation", f"{sums}: loss.unsupervised must be none")

    def _misfits_of_the_schedule(self) -> Iterator[Misfit]:
        greedy, patience = self.schedule.greedy, self.schedule.patience
        if self.loss.is_global and greedy:
            yield Misfit(
                "schedule.greedy",
                f"needs blocks that learn alone; loss.name {self.loss.name} trains them together",
            )
        if patience is not None and self.runtime.eval_every_epochs == 0:
            rule = f"{patience} goes by tests: runtime.eval_every_epochs must be at least 1"
            yield Misfit("schedule.patience", rule)
        if patience is not None and greedy:
            yield Misfit(
                "schedule.patience",
                f"{patience} would end the run in the phase of one block; schedule.greedy goes "
                "through all: leave one of them out",
            )

    def _misfits_of_frozen_blocks(self) -> Iterator[Misfit]:
        freeze = self.model.freeze
        if freeze and self.loss.is_global:
            yield Misfit(
                "model.freeze",
                f"needs blocks that learn alone; loss.name {self.loss.name} trains them together",
            )
        if both := sorted({*freeze} & {*self.optimizer.blocks}):
            rule = f": block {both[0]} is frozen (model.freeze), and has no optimizer"
            yield Misfit("optimizer.blocks", rule)

    def _misfits_of_whole_batches(self) -> Iterator[Misfit]:
        """What members of a team see of each other while they compute."""
        others = {
            "runtime.compile": self.runtime.compile,
            "runtime.recompute": self.runtime.recompute > 0,
            "optimizer.accumulate": self.optimizer.accumulate > 1,
        }
        for key in self.parallel.sees_batch:
            if self.parallel.members == 1:
                yield Misfit(key, "batch: needs parallel.members 2 or more, who share batches")
            for other in (other for other, is_set in others.items() if is_set):
                yield Misfit(key, f"batch: doesn't go with {other}: leave one of them out")
            if key == "parallel.similarity" and self.loss.local not in ("sim", "predsim"):
                yield Misfit(key, "batch: needs loss.name sim or predsim")

    def _misfits_of_replicas(self) -> Iterator[Misfit]:
        if not self.parallel.replicas:
            return
        others = {
            f"parallel.members {self.parallel.members}": self.parallel.members > 1,
            "schedule.greedy": self.schedule.greedy,
            "runtime.on_nonfinite rollback": self.runtime.on_nonfinite == "rollback",
            f"loss.name {self.loss.name}": self.loss.is_global,
        }
        for other, is_set in others.items():
            if is_set:
                yield Misfit(
                    "parallel.replicas", f"don't go together with {other}: leave one of them out"
                )

    def _misfits_of_the_best(self) -> Iterator[Misfit]:
        runtime, share = self.runtime, self.data.validation
        best = runtime.keep_best
        if best == "validation" and share is None:
            yield Misfit(
                "runtime.keep_best",
                "validation: no share is kept for validation: set data.validation, as 0.1, or use "
                "true",
            )
        if best == "test" and share is not None:
            yield Misfit(
                "runtime.keep_best",
                f"test: with data.validation {share:g} that share is tested on, not the test set: "
                "use validation or true, or leave data.validation out",
            )
        if best in ("test", "validation") and not runtime.eval_every_epochs:
            rule = f"{best} goes by tests: runtime.eval_every_epochs must be at least 1"
            yield Misfit("runtime.keep_best", rule)
        if runtime.best_form == "weights" and best is False:
            yield Misfit(
                "runtime.best_form",
                "weights is of checkpoints/best, and runtime.keep_best false keeps none: use true "
                "or last",
            )

    def _misfits_of_backprop(self) -> Iterator[Misfit]:
        """Less memory at once: for networks whose batches go straight from block to block."""
        kept = {
            "runtime.recompute": self.runtime.recompute > 0,
            "optimizer.accumulate": self.optimizer.accumulate > 1,
        }
        has_shortcuts = self.model.name.startswith(RESIDUAL_NAMES)
        for key in (key for key, is_on in kept.items() if is_on):
            if self.loss.name != "glob":
                rule = (
                    f"is for loss.name glob: by {self.loss.name} a block holds its own batch only"
                )
                yield Misfit(key, rule)
            elif has_shortcuts or self.model.factory is not None:
                named = "model.factory" if self.model.factory else f"model.name {self.model.name}"
                yield Misfit(key, f"is for mlp and the VGGs: {named} may have shortcuts")

    @property
    def saves_memory(self) -> bool:
        """Whether global backprop holds less at once than all activations of a batch."""
        return self.runtime.recompute > 0 or self.optimizer.accumulate > 1

    @property
    def user_code(self) -> dict[str, str]:
        """What every process imports of a user's own: `package.module:name` by key."""
        named = {"model.factory": self.model.factory, "loss.rule": self.loss.rule}
        return {key: name for key, name in named.items() if name is not None and ":" in name}

    @property
    def nonlinearity(self) -> Literal["relu", "leaky_relu"]:
        """The non-linearity of the hidden blocks, `auto` resolved by the loss (section 4)."""
        if self.model.nonlinearity != "auto":
            return self.model.nonlinearity
        return "leaky_relu" if self.loss.local in ("sim", "predsim") else "relu"


def build_config(tree: dict[str, Any], origins: str | Origins) -> Config:
    """Check a tree of plain values; `origins`: where they are from, for errors.

    Raises:
        ConfigError: for all that is wrong.
    """
    return checked(Config, tree, origins)


class Setting(NamedTuple):
    """A key of a configuration: the sentence below it, and its values where they are listed."""

    about: str
    choices: tuple[str, ...]


def settings() -> dict[str, Setting]:
    """Every key of every section, dotted."""
    return {
        f"{name}.{key}": Setting(
            " ".join((field.description or "").split()), choices(field.annotation)
        )
        for name, section in Config.model_fields.items()
        if section.annotation is not None
        for key, field in section.annotation.model_fields.items()
    }


def config_tree(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON values, for manifests and messages."""
    return config.model_dump(mode="json", exclude_none=True)


def differing_keys(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys at which two configurations differ, each with both values."""
    left, right = one.model_dump(), other.model_dump()
    return {
        f"{section}.{key}": (left[section][key], right[section][key])
        for section in left
        for key in left[section]
        if left[section][key] != right[section][key]
    }
