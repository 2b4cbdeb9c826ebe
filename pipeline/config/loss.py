"""The `loss` section of a configuration: what hidden blocks learn from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pipeline.config.model import MAX_LAYERS, MAX_UNITS
from pipeline.config.schema import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    Misfit,
    Section,
    brief,
)
from pipeline.config.user_code import arguments_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MAX_HIDDEN = 16
"""Hidden layers of a local classifier."""


def _are_units(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        type(units) is int and 1 <= units <= MAX_UNITS for units in value
    )


def _hidden_widths(value: Any) -> Any:
    nested = isinstance(value, (list, tuple)) and all(map(_are_units, value))
    if not (_are_units([value]) or _are_units(value) or nested):
        raise ValueError(
            f"{brief(value)} is neither a number of units (1 to {MAX_UNITS}), nor a list of them, "
            "nor a list of such lists"
        )
    lists = value if nested else [value if isinstance(value, (list, tuple)) else [value]]
    if len(lists) > MAX_LAYERS or any(len(units) > _MAX_HIDDEN for units in lists):
        raise ValueError(
            f"{brief(value)} is too much: at most {_MAX_HIDDEN} hidden layers in a classifier, and "
            f"lists for {MAX_LAYERS} blocks"
        )
    return value


Widths: TypeAlias = Annotated[tuple[int, ...], Field(strict=False)]
HiddenWidths: TypeAlias = Annotated[
    int | Widths | Annotated[tuple[Widths, ...], Field(strict=False)],
    BeforeValidator(_hidden_widths),
]


_OF_RULES = ("name", "rule", "options")


def _rule_name(name: str) -> str:
    if not re.fullmatch(r"(\w+(\.\w+)*:)?\w+", name):
        raise ValueError(
            f"{brief(name)} is not allowed: input should be the class of a shipped rule, or as "
            "package.module:Class"
        )
    return name


_ABOUT = {
    "pred": ("cross-entropy of a local classifier", "equation 6"),
    "sim": ("similarities of activations match those of labels", "equation 4"),
    "predsim": ("both: loss.beta of sim, the rest of pred", "equation 7"),
}
"""What a block learns from by the paper's losses, and where that stands."""


def described(name: str) -> tuple[str, str]:
    """A value of `loss.name` in words, and where it is from."""
    if name == "rule":
        return "a local rule, which loss.rule names", ""
    _, backprops, of_a_block = name.rpartition("glob")
    about, equation = _ABOUT.get(of_a_block.removeprefix("+"), ("", ""))
    if backprops:
        backprop = "global backprop, in one process (--single)"
        about = f"{backprop}, and in each block: {about}" if about else backprop
    return about, f"Nøkland & Eidnes 2019{f', {equation}' if equation else ''}"


class LossConfig(Section):
    """What every hidden block learns from."""

    named_by: ClassVar[Mapping[str, str]] = {"rule": "rule"}

    name: Literal["pred", "sim", "predsim", "glob", "glob+pred", "glob+sim", "glob+predsim", "rule"]
    """Local classifier, similarity matching, both; global backprop alone or with one of them
    (single mode only); or a local `rule`."""
    rule: Annotated[str, AfterValidator(_rule_name)] | None = None
    """A local rule: a shipped one by its class (docs/rules.md), as ForwardForward, or one of your
    own as `package.module:Class`, installed or in the current folder."""
    options: Annotated[dict[str, JsonValue], arguments_of("loss.options")] = Field(default={})
    """What the rule is called with, beside its place."""
    beta: float = Field(default=0.99, ge=0, le=1)
    """Weight of `sim` in `predsim`; `pred` gets 1 - beta."""
    dim_in_decoder: int = Field(default=4096, ge=1, le=1 << 30)
    """Average pooling before a local classifier goes on until at most so many inputs remain."""
    pred_hidden: HiddenWidths = ()
    """Units of hidden layers in the local classifiers (Belilovsky et al. 2020): 128 for one layer
    in each, [128, 64] for two, [[128], []] for each hidden block its own, [] for none."""
    similarity_pool: int = Field(default=1, ge=1, le=64)
    """Not the paper's: average feature maps over squares of so many pixels a side before g maps
    them. g then takes a fourth of the work for 2."""
    similarity_channels: float = Field(default=1.0, gt=0, le=1)
    """Not the paper's: g maps to this share of the channels, or units, but to no less than 4."""
    similarity_groups: int = Field(default=1, ge=1, le=MAX_UNITS)
    """Not the paper's: g maps channels of feature maps in so many groups, each to itself, or in the
    most below that divide them."""
    similarity_batches: float = Field(default=1.0, gt=0, le=1)
    """Not the paper's, of `predsim`: only this share of the batches, evenly spread by their number,
    has the similarity loss, the others learn by the classifier alone. Metrics count 0 for these."""
    similarity_bf16: bool = False
    """Not the paper's: g computes in bfloat16, whatever `runtime.precision` is."""
    bio: bool = False
    """The backprop-free forms of sections 3.3 and 3.4: no g, feedback alignment, and a fixed
    random projection of the label as target. The paper's beta for them is 0.01."""
    target_projection: int = Field(default=128, ge=1, le=MAX_UNITS)
    """Size of the projected label, for `bio`."""
    classifier: Literal["trained", "fixed"] = "trained"
    """`fixed`: local classifiers are drawn once and never trained (Mostafa et al. 2017)."""
    feedback: Literal["transpose", "random", "sign"] = "transpose"
    """What carries the error of a `fixed` classifier back: its transpose, an independent random
    matrix, with which it can't align and learns less, or a random one with its signs."""
    unsupervised: Literal["none", "sim", "recon"] = "none"
    """A part that needs no labels: match the similarities of the block's input, or rebuild it."""
    alpha: float = Field(default=0.0, ge=0, le=1)
    """Weight of the unsupervised part; the supervised part gets 1 - alpha."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that goes to all classes in equal parts, for local classifiers and the
    output layer (Szegedy et al. 2016); tested losses are without it."""

    @property
    def local(self) -> Literal["pred", "sim", "predsim", "rule"] | None:
        """What hidden blocks have of their own; None under plain `glob`."""
        name = self.name.removeprefix("glob+")
        return None if name == "glob" else name  # type: ignore[return-value]

    @property
    def is_global(self) -> bool:
        """Whether gradients flow through the whole network."""
        return self.name.startswith("glob")

    def misfits(self) -> Iterator[Misfit]:
        """What belongs to another loss."""
        if (self.name == "rule") != (self.rule is not None):
            yield Misfit(
                "loss.name",
                f"{self.name} and loss.rule {self.rule}: give loss.rule alone for a local rule, "
                "and no loss.rule with another loss",
            )
        elif self.rule is not None:
            for key, field in type(self).model_fields.items():
                if key not in _OF_RULES and getattr(self, key) != field.default:
                    rule = "is for the built-in losses; a local rule has loss.options"
                    yield Misfit(f"loss.{key}", rule)
        else:
            yield from self._misfits_of_forms()
            yield from self._misfits_of_similarity()

    @property
    def cheaper(self) -> list[str]:
        """Keys by which the similarity loss is not the paper's."""
        return [
            key
            for key, field in type(self).model_fields.items()
            if key.startswith("similarity_") and getattr(self, key) != field.default
        ]

    def _misfits_of_similarity(self) -> Iterator[Misfit]:
        has_map = self.local in ("sim", "predsim") and not self.bio
        for key in self.cheaper:
            if not has_map:
                yield Misfit(f"loss.{key}", "needs loss.name sim or predsim without loss.bio")
            elif key == "similarity_batches" and (
                self.local != "predsim" or self.unsupervised == "sim"
            ):
                yield Misfit(
                    f"loss.{key}",
                    "needs loss.name predsim without loss.unsupervised sim: without similarity the "
                    "other batches teach nothing",
                )

    def _misfits_of_forms(self) -> Iterator[Misfit]:
        predicts = self.local in ("pred", "predsim")
        if self.options:
            yield Misfit("loss.options", f"are for loss.rule, not for loss.name {self.name}")
        if self.local is None and (self.bio or self.unsupervised != "none"):
            yield Misfit("loss.name", "glob has no local losses: bio and unsupervised need one")
        if self.classifier == "fixed" and (self.bio or not predicts):
            yield Misfit("loss.classifier", "fixed needs loss.name pred or predsim without bio")
        if self.pred_hidden and (self.bio or self.classifier == "fixed" or not predicts):
            yield Misfit(
                "loss.pred_hidden",
                "needs loss.name pred or predsim with trained classifiers, so neither loss.bio nor "
                "loss.classifier fixed",
            )
        if self.feedback != "transpose" and self.classifier != "fixed":
            yield Misfit("loss.feedback", f"{self.feedback} needs loss.classifier fixed")
        if self.label_smoothing and (self.bio or self.name == "sim"):
            yield Misfit(
                "loss.label_smoothing",
                "needs classifiers of classes: loss.name pred, predsim or one of glob, without "
                "loss.bio",
            )
        if self.alpha and self.unsupervised == "none":
            yield Misfit("loss.alpha", "needs loss.unsupervised sim or recon")
