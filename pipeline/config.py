"""The YAML schema, declared once: typed sections with a sentence under each field.

Checked before any process starts. Unknown keys, wrong types and impossible combinations are
`ConfigError`s that name file, key, value and what is allowed. Everything below the coordinator
takes plain arguments. `configfile.py` reads and writes the YAML.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Any, Literal, TypeAlias

from pipeline.schema import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    Section,
    brief,
    checked,
    field_validator,
    model_validator,
)

MODEL_NAMES = (
    "mlp", "vgg", "vgg6a", "vgg6b", "vgg8", "vgg8a", "vgg8b", "vgg11", "vgg11b", "vgg13", "vgg16",
    "vgg19", "resnet18", "resnet34", "factory",
)  # fmt: skip
DataName: TypeAlias = Literal[
    "digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn", "stl10",
    "imagefolder", "synthetic",
]  # fmt: skip
RESIDUAL_NAMES = ("resnet", "wrn-")
"""How the names of networks with shortcuts begin."""
POOLING_NAMES = ("M", "M3", "M4", "A", "A3", "A4")
MAX_UNITS = 1 << 20
"""Of a fully connected layer."""


def _model_name(name: str) -> str:
    if name in MODEL_NAMES:
        return name
    wide = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if wide and int(wide[1]) >= 10 and int(wide[1]) % 6 == 4 and 1 <= int(wide[2]) <= 64:
        return name
    raise ValueError(
        f"model.name: {name!r} is not allowed: use one of {', '.join(MODEL_NAMES)}, or "
        "wrn-DEPTH-WIDTH, a wide residual network as wrn-28-10 (DEPTH is 6n + 4, WIDTH at most 64)"
    )


ModelName: TypeAlias = Annotated[str, AfterValidator(_model_name)]


def _group_size(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not whole and value != "all":
        raise ValueError(
            f"model.group: {value!r} is not allowed: use a number of layers from 1, or all"
        )
    return value


def _layer_item(value: Any) -> Any:
    channels = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if not channels and value not in POOLING_NAMES:
        allowed = ", ".join(POOLING_NAMES)
        raise ValueError(f"model.layers: {value!r} is neither a number of channels nor {allowed}")
    return value


LayerItem: TypeAlias = Annotated[int | str, BeforeValidator(_layer_item)]


def _are_units(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        type(units) is int and 1 <= units <= MAX_UNITS for units in value
    )


def _hidden_widths(value: Any) -> Any:
    nested = isinstance(value, (list, tuple)) and all(map(_are_units, value))
    if not (_are_units([value]) or _are_units(value) or nested):
        raise ValueError(
            f"loss.pred_hidden: {brief(value)} is neither a number of units (1 to {MAX_UNITS}),"
            " nor a list of them, nor a list of such lists"
        )
    return value


Widths: TypeAlias = Annotated[tuple[int, ...], Field(strict=False)]
HiddenWidths: TypeAlias = Annotated[
    int | Widths | Annotated[tuple[Widths, ...], Field(strict=False)],
    BeforeValidator(_hidden_widths),
]


class ModelConfig(Section):
    """The network: a stack of hidden blocks and an output layer."""

    name: ModelName
    """`mlp`, a VGG preset, `vgg` with explicit `layers`, `resnet18`, `resnet34`, or a wide
    residual network `wrn-DEPTH-WIDTH`, as `wrn-28-10`."""
    layers: Annotated[tuple[LayerItem, ...], Field(strict=False)] | None = None
    """Only for `vgg`: channels, and M M3 M4 (max) or A A3 A4 (average) for pooling."""
    feat_mult: float = Field(default=1.0, gt=0, le=64)
    """Multiplies the channels of every convolution."""
    hidden_layers: int = Field(default=1, ge=0)
    """Fully connected hidden blocks: all of an MLP's, or those after the convolutions. Residual
    networks have none unless told."""
    hidden: int = Field(default=1024, ge=1, le=MAX_UNITS)
    """Units of a fully connected block."""
    nonlinearity: Literal["auto", "relu", "leaky_relu"] = "auto"
    """`auto`: leaky ReLU (slope 0.01) for `sim` and `predsim`, ReLU otherwise, as in the paper."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of units (of whole channels after a convolution) set to zero in training."""
    batch_norm: bool = True
    """Batch normalisation before every non-linearity."""
    residual: bool = True
    """For `resnet…` and `wrn-…`: shortcuts around each two convolutions. The paper found that
    local losses do better without them (section 5.1)."""
    group: Annotated[int | str, BeforeValidator(_group_size)] = 1
    """Hidden layers that learn together by backprop, from the local loss of the last of them;
    1: the paper's local learning, `all`: global backprop with one local head."""
    factory: str | None = Field(default=None, pattern=r"^\w+(\.\w+)*:\w+$")
    """A network of your own, as `package.module:function`, installed or in the current folder:
    the function gives an `nn.Sequential`, of which every child with parameters is a block."""
    kwargs: dict[str, JsonValue] = Field(default={})
    """What `factory` is called with."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_a_kind(cls, tree: Any) -> Any:
        """Residual networks end in an average over space; a factory is its own name."""
        if isinstance(tree, dict) and str(tree.get("name")).startswith(RESIDUAL_NAMES):
            return {"hidden_layers": 0, **tree}
        if isinstance(tree, dict) and tree.get("factory") is not None:
            return {"name": "factory", **tree}
        return tree

    @model_validator(mode="after")
    def _a_factory_decides_alone(self) -> ModelConfig:
        if (self.factory is None) != (self.name != "factory"):
            raise ValueError(
                "model.factory: leave model.name out, the function says what the network is"
                if self.factory
                else "model.name factory needs model.factory, as package.module:function"
            )
        allowed = {"name", "factory", "kwargs", "group", "nonlinearity"}
        for key, field in type(self).model_fields.items():
            if self.factory and key not in allowed and getattr(self, key) != field.default:
                raise ValueError(f"model.{key}: with model.factory the function decides this")
        if self.kwargs and not self.factory:
            raise ValueError("model.kwargs needs model.factory, as package.module:function")
        return self

    @model_validator(mode="after")
    def _shortcuts_belong_to_residual_networks(self) -> ModelConfig:
        if not self.residual and not self.name.startswith(RESIDUAL_NAMES):
            raise ValueError(f"model.residual: model.name {self.name} has no shortcuts to remove")
        return self

    @model_validator(mode="after")
    def _layers_belong_to_vgg(self) -> ModelConfig:
        if self.name != "vgg" and self.layers is not None:
            raise ValueError(f"model.layers belongs to model.name vgg, not to {self.name}")
        if self.name == "vgg" and not self.layers:
            raise ValueError("model.name vgg needs model.layers, as [128, M, 256, M]")
        for before, item in zip((None, *(self.layers or ())), self.layers or (), strict=False):
            if isinstance(item, str) and not isinstance(before, int):
                raise ValueError(f"model.layers: the pooling {item} must follow a convolution")
        if self.name == "mlp" and self.hidden_layers < 1:
            raise ValueError("model.name mlp needs model.hidden_layers of at least 1")
        return self


class LossConfig(Section):
    """What every hidden block learns from."""

    name: Literal["pred", "sim", "predsim", "glob", "glob+pred", "glob+sim", "glob+predsim"]
    """Local classifier, similarity matching, both; global backprop alone or with one of them
    (single mode only)."""
    beta: float = Field(default=0.99, ge=0, le=1)
    """Weight of `sim` in `predsim`; `pred` gets 1 - beta."""
    dim_in_decoder: int = Field(default=4096, ge=1)
    """Average pooling before a local classifier goes on until at most so many inputs remain."""
    pred_hidden: HiddenWidths = ()
    """Units of hidden layers in the local classifiers (Belilovsky et al. 2020): 128 for one layer
    in each, [128, 64] for two, [[128], []] for each hidden block its own, [] for none."""
    bio: bool = False
    """The backprop-free forms of sections 3.3 and 3.4: no g, feedback alignment, and a fixed
    random projection of the label as target. The paper's beta for them is 0.01."""
    target_projection: int = Field(default=128, ge=1)
    """Size of the projected label, for `bio`."""
    classifier: Literal["trained", "fixed"] = "trained"
    """`fixed`: local classifiers are drawn once and never trained (Mostafa et al. 2017)."""
    feedback: Literal["transpose", "random", "sign"] = "transpose"
    """What carries the error of a `fixed` classifier back: its transpose, an independent random
    matrix, or a random one with its signs."""
    unsupervised: Literal["none", "sim", "recon"] = "none"
    """A part that needs no labels: match the similarities of the block's input, or rebuild it."""
    alpha: float = Field(default=0.0, ge=0, le=1)
    """Weight of the unsupervised part; the supervised part gets 1 - alpha."""

    @property
    def local(self) -> Literal["pred", "sim", "predsim"] | None:
        """What hidden blocks have of their own; None under plain `glob`."""
        name = self.name.removeprefix("glob+")
        return None if name == "glob" else name  # type: ignore[return-value]

    @property
    def is_global(self) -> bool:
        """Whether gradients flow through the whole network."""
        return self.name.startswith("glob")

    @model_validator(mode="after")
    def _forms_fit_together(self) -> LossConfig:
        predicts = self.local in ("pred", "predsim")
        if self.local is None and (self.bio or self.unsupervised != "none"):
            raise ValueError("loss.name glob has no local losses: bio and unsupervised need one")
        if self.classifier == "fixed" and (self.bio or not predicts):
            raise ValueError("loss.classifier fixed needs loss.name pred or predsim without bio")
        if self.pred_hidden and (self.bio or self.classifier == "fixed" or not predicts):
            raise ValueError(
                "loss.pred_hidden needs loss.name pred or predsim with trained classifiers, so"
                " neither loss.bio nor loss.classifier fixed"
            )
        if self.feedback != "transpose" and self.classifier != "fixed":
            raise ValueError(f"loss.feedback {self.feedback} needs loss.classifier fixed")
        if self.alpha and self.unsupervised == "none":
            raise ValueError("loss.alpha needs loss.unsupervised sim or recon")
        return self


class OptimizerConfig(Section):
    """Every block has an optimizer of its own."""

    name: Literal["adam", "amsgrad", "sgd"] = "adam"
    """Adam, Adam with AMSGrad, or stochastic gradient descent."""
    lr: float = Field(default=5e-4, gt=0)
    """Learning rate of the first epoch."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty, added to the gradient."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Used by `sgd` only."""


class ScheduleConfig(Section):
    """How long, and when the learning rate drops."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the training set."""
    milestones: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()
    """The learning rate is multiplied by `factor` after each of these epochs (from 1)."""
    factor: float = Field(default=0.25, gt=0, le=1)
    """What a milestone multiplies the learning rate by."""
    greedy: bool = False
    """Blocks learn one after another, each for `epochs` (and its milestones), from the input
    that the finished ones before it give as in a test: frozen, without dropout. The test error
    of a phase is that of the local classifier at work."""

    @model_validator(mode="after")
    def _milestones_increase(self) -> ScheduleConfig:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"schedule.milestones {list(self.milestones)} must increase strictly")
        return self


class DataConfig(Section):
    """The images, and what is done to them."""

    name: DataName
    """Which data set; `digits` comes with the installation, `synthetic` is random."""
    root: str = "data"
    """Folder of the data sets (`imagefolder`: the folder that holds train/ and val/)."""
    download: bool = True
    """Fetch a data set that is not under `root`."""
    batch_size: int = Field(default=128, ge=1, le=1 << 20)
    """Images per batch; the smaller last batch of an epoch is trained too."""
    crop_padding: int = Field(default=0, ge=0)
    """Pad each training image with so many zeros per side, then crop at a random place."""
    flip: bool = False
    """Mirror each training image with probability 1/2."""
    cutout: int = Field(default=0, ge=0)
    """Side of the square set to zero at a random place of each training image; 0 is off."""
    train_limit: int | None = Field(default=None, ge=1)
    """Use only the first so many training images."""
    test_limit: int | None = Field(default=None, ge=1)
    """Use only the first so many test images."""
    classes_per_batch: int | None = Field(default=None, ge=2)
    """Fill a training batch with images of about so many classes (section 4.5 of the paper)."""
    classes_per_batch_until_epoch: int | None = Field(default=None, ge=1)
    """The last epoch of the run with `classes_per_batch`; without this key, all have it."""
    size: int | None = Field(default=None, ge=1)
    """Side in pixels: of `synthetic` images (32) and of the crops of `imagefolder` (224)."""
    channels: int | None = Field(default=None, ge=1)
    """Channels of `synthetic` images (3)."""
    classes: int | None = Field(default=None, ge=2)
    """Classes of `synthetic` labels (10)."""
    train_images: int | None = Field(default=None, ge=1)
    """Number of `synthetic` training images (1024)."""
    test_images: int | None = Field(default=None, ge=1)
    """Number of `synthetic` test images (256)."""

    @model_validator(mode="after")
    def _sizes_belong_to_made_images(self) -> DataConfig:
        made = ("size", "channels", "classes", "train_images", "test_images")
        allowed = {"synthetic": made, "imagefolder": ("size",)}.get(self.name, ())
        for key in made:
            if getattr(self, key) is not None and key not in allowed:
                raise ValueError(f"data.{key} can't be chosen for data.name {self.name}")
        return self

    @model_validator(mode="after")
    def _classes_fit_into_a_batch(self) -> DataConfig:
        classes, until = self.classes_per_batch, self.classes_per_batch_until_epoch
        if classes is None and until is not None:
            raise ValueError(
                f"data.classes_per_batch_until_epoch {until} needs data.classes_per_batch"
            )
        if classes is not None and classes > self.batch_size:
            raise ValueError(
                f"data.classes_per_batch {classes} can't be more than the images of a batch"
                f" (data.batch_size {self.batch_size})"
            )
        return self


class RuntimeConfig(Section):
    """How the run is carried out; of these, only `seed`, `precision`, `threads_per_stage` and
    `on_nonfinite` may change a result."""

    seed: int = Field(default=1, ge=0, lt=2**63)
    """Decides initial weights, order of images, dropout and augmentation."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast for layers and local classifiers; similarity and losses stay fp32."""
    threads_per_stage: int = Field(default=1, ge=1)
    """CPU threads of each stage, and of single mode."""
    max_in_flight: int = Field(default=2, ge=1, le=64)
    """Batches that may wait between two neighbouring stages."""
    checkpoint_every_steps: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0: at the end of every epoch. One is always written last."""
    keep_checkpoints: int = Field(default=3, ge=1)
    """How many of the newest complete checkpoints stay on disk."""
    eval_every_epochs: int = Field(default=1, ge=0)
    """Epochs between tests (the last epoch is always tested); 0: never."""
    eval_before_training: bool = False
    """Test the untrained network too, as epoch 0."""
    transport: Literal["ipc", "tcp", "tcp-plain"] = "ipc"
    """How processes of a run are connected. `ipc`: socket files in a folder that only their owner
    can enter; `tcp`: encrypted, open to the keys of this run only; `tcp-plain`: neither."""
    bind_address: str = "127.0.0.1"
    """IP address at which the sockets of `tcp` and `tcp-plain` listen."""
    start_timeout_s: float = Field(default=120.0, gt=0)
    """How long the workers may take to report for work."""
    heartbeat_timeout_s: float = Field(default=10.0, ge=1)
    """A worker silent for so long is taken for dead."""
    on_nonfinite: Literal["stop", "skip_batch", "rollback"] = "stop"
    """Where a block's loss is not finite: end the run; let the block, and those after it, learn
    nothing from the batch; or go back to the newest snapshot and leave the batch out."""
    max_restarts: int = Field(default=3, ge=0)
    """How often within an hour a lost worker is replaced, and the run goes back to its newest
    snapshot, before it ends with the first cause; 0: it ends at once."""
    stall_timeout_s: float = Field(default=20.0, ge=1)
    """A worker that sits on a batch for so long without using the processor is taken for stuck;
    one that does use it, after 20 times as long."""

    @field_validator("bind_address")
    @classmethod
    def _others_can_connect_to_it(cls, text: str) -> str:
        try:
            usable = not ip_address(text).is_unspecified
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(
                f"runtime.bind_address {text!r}: give the IP address of this machine that others "
                "are to connect to"
            )
        return text


class Config(Section):
    """A whole run."""

    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    data: DataConfig
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _batch_norm_needs_a_batch(self) -> Config:
        flat = self.model.hidden_layers or self.model.name.startswith(RESIDUAL_NAMES)
        normalises = self.model.batch_norm and self.model.factory is None
        if self.data.batch_size == 1 and normalises and flat:
            raise ValueError("data.batch_size 1 leaves model.batch_norm nothing to normalise by")
        return self

    @model_validator(mode="after")
    def _groups_end_in_a_local_loss(self) -> Config:
        if self.loss.local is None and self.model.group != 1:
            raise ValueError("model.group needs local losses; loss.name glob has none")
        if self.loss.unsupervised == "recon" and self.model.group != 1:
            raise ValueError(
                "loss.unsupervised recon rebuilds the input of one layer: model.group must be 1"
            )
        if self.loss.is_global and self.schedule.greedy:
            raise ValueError(
                f"schedule.greedy needs blocks that learn alone; loss.name {self.loss.name} "
                "trains them together"
            )
        return self

    @property
    def nonlinearity(self) -> Literal["relu", "leaky_relu"]:
        """The non-linearity of the hidden blocks, `auto` resolved by the loss (section 4)."""
        if self.model.nonlinearity != "auto":
            return self.model.nonlinearity
        return "leaky_relu" if self.loss.local in ("sim", "predsim") else "relu"


def build_config(tree: dict[str, Any], source: str) -> Config:
    """Check a tree of plain values; `source` is named in the error.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    return checked(Config, tree, source)


def config_tree(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON values, for manifests and messages."""
    return config.model_dump(mode="json", exclude_none=True)


def differing_keys(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys at which two configurations differ, each with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for section in type(one).model_fields:
        left, right = getattr(one, section), getattr(other, section)
        for key in type(left).model_fields:
            if getattr(left, key) != getattr(right, key):
                found[f"{section}.{key}"] = (getattr(left, key), getattr(right, key))
    return found
