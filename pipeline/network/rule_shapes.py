"""What a local rule makes of shapes: how many rows arrive at each block, and what is carried.

The rule's own functions are called with a few blank examples, before anything starts, so that what
is wrong with a rule is found then.

    expand ──▶ entered_shape, the block's shapes, one rule for each block that has a loss ──▶ leave
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.dtypes import ITEM_BYTES, dtype_name
from pipeline.errors import ConfigError, did_you_mean
from pipeline.network.specs import Arrival, CarriedSpec, RuleSpec
from pipeline.system.named_object import called, named_object, naming

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor

    from pipeline.config.loss import LossConfig
    from pipeline.data.facts import DataFacts
    from pipeline.network.specs import BlockSpec, Shape
    from pipeline.rules.rule import Batch, LocalRule, Place

_EXAMPLES = 2
_PASSES = 2
"""Of what is counted while a loss is tried: forwards, and the gradient of the activation."""


def rule_class(rule: str) -> type[LocalRule]:
    """The class that `loss.rule` names.

    Raises:
        ConfigError: where there is none, or it is no local rule.
    """
    from pipeline.rules import SHIPPED
    from pipeline.rules.rule import LocalRule

    if ":" not in rule and rule not in SHIPPED:
        raise ConfigError(
            f"is no shipped rule; these are {', '.join(SHIPPED)}; one of your own is named as "
            f"package.module:Class{did_you_mean(rule, SHIPPED)}"
        )
    found = named_object(rule if ":" in rule else f"pipeline.rules:{rule}")
    if not (isinstance(found, type) and issubclass(found, LocalRule)):
        what = found.__name__ if isinstance(found, type) else f"a {type(found).__name__}"
        raise ConfigError(f"{what} is not a LocalRule; make it a subclass of pipeline.LocalRule")
    return found


def naming_rule(rule: str) -> AbstractContextManager[None]:
    """Around what a user's rule does: errors name it."""
    return naming(f"loss.rule {rule}")


def make_rule(spec: BlockSpec) -> LocalRule:
    """The rule of a block, drawn from torch's default generator.

    Raises:
        ConfigError: for options that it has not, and whatever its constructor raises.
    """
    assert spec.rule is not None, "a block with a rule"
    with naming_rule(spec.rule.named):
        kind = rule_class(spec.rule.named)
        return _made(kind, place_of(spec), spec.rule.options)


def place_of(spec: BlockSpec) -> Place:
    """Where the rule of a block works."""
    from pipeline.rules.rule import Place

    rule = spec.rule
    assert rule is not None, "a block with a rule"
    return Place(
        index=spec.index,
        blocks=rule.blocks,
        in_shape=rule.in_shape,
        shape=spec.shape,
        classes=spec.classes,
        image_shape=rule.image_shape,
        target_shape=spec.target_shape,
        nth=rule.nth,
        rules=rule.rules,
    )


def expander(
    kind: type[LocalRule], options: Mapping[str, Any], classes: int
) -> Callable[[Batch, torch.Generator], Batch]:
    """What makes of a batch what a rule wants of it before the first block."""
    given = _of_its_names(kind.expand, options)

    def expanded(batch: Batch, generator: torch.Generator) -> Batch:
        return kind.expand(batch, classes, batch.training, generator, **given)

    return expanded


class TracedRule:
    """The rule of a configuration for a data set.

    `in_shape`: of one row of the first block's input.

    Raises:
        ConfigError: naming the rule, for whatever is wrong with it.
    """

    def __init__(self, loss: LossConfig, facts: DataFacts) -> None:
        assert loss.rule is not None, "a configuration with a rule"
        self.named, self._options, self._facts = loss.rule, loss.options, facts
        with naming_rule(self.named):
            self._kind = rule_class(self.named)
            _check_options(self._kind, self._options)
            _check_names(self._kind.carries)
            self._batches = {training: self._expanded(training) for training in (True, False)}
            shapes = {tuple(batch.x.shape[1:]) for batch in self._batches.values()}
            if len(shapes) > 1:
                raise ConfigError(
                    f"expand gives inputs of shape {shapes.pop()} in training or in tests, and of "
                    f"{shapes.pop()} in the other: the network takes one shape"
                )
        self.in_shape: Shape = shapes.pop()

    @property
    def has_output_layer(self) -> bool:
        """Whether the network ends in an output layer beside the blocks with rules."""
        return self._kind.output_layer

    def entered(self, in_shape: Shape) -> Shape:
        """The shape of one row that a block computes on, of what arrives."""
        with naming_rule(self.named):
            given = _of_its_names(self._kind.entered_shape, self._options)
            shape = called(
                self._kind.entered_shape,
                given,
                in_shape,
                self._facts.classes,
                tuple(self._facts.shape),
            )
            return tuple(map(int, shape))

    def placed(self, hidden: Sequence[BlockSpec], arriving: Sequence[Shape]) -> Iterator[BlockSpec]:
        """The blocks with their rules, and with what arrives at each; the next one after the last,
        an output layer, gets what `leaving` then says.

        Args:
            hidden: in their groups; those that end one get a rule.
            arriving: of each, the shape of one row before `enter`.
        """
        start = nth = 0
        rules = sum(at == 0 or not spec.same_group for at, spec in enumerate(hidden))
        for at, spec in enumerate(hidden):
            arrived = replace(
                spec,
                in_training=replace(self._arrival(True), shape=arriving[at]),
                in_tests=replace(self._arrival(False), shape=arriving[at]),
            )
            is_last = at + 1 == len(hidden)
            if is_last or not hidden[at + 1].same_group:
                rule = RuleSpec(
                    self.named,
                    self._options,
                    blocks=len(hidden),
                    nth=nth,
                    rules=rules,
                    in_shape=arriving[start],
                    image_shape=tuple(self._facts.shape),
                )
                with naming_rule(self.named):
                    arrived = self._ruled(arrived, rule)
                arrived = replace(
                    arrived,
                    leaves_in_training=self._arrival(True),
                    leaves_in_tests=self._arrival(False),
                    ends_network=is_last and not self.has_output_layer,
                )
                start, nth = at + 1, nth + 1
            yield arrived

    def leaving(self, output: BlockSpec) -> BlockSpec:
        """The output layer, with what arrives at it.

        Raises:
            ConfigError: where that is not a row for each example.
        """
        training, tests = self._arrival(True), self._arrival(False)
        if rows := {training.rows, tests.rows} - {1}:
            raise ConfigError(
                f"loss.rule {self.named}: expand makes {rows.pop()} rows of each example, and an "
                "output layer needs one: set output_layer = False, so that scores are what the "
                "network predicts"
            )
        return replace(output, in_training=training, in_tests=tests)

    def _expanded(self, training: bool) -> Batch:
        import torch

        from pipeline.rules.rule import Batch

        facts = self._facts
        x = torch.zeros(_EXAMPLES, *facts.shape, dtype=input_type(facts))
        y = torch.zeros(_EXAMPLES, *facts.target_shape, dtype=getattr(torch, facts.target_dtype))
        before = Batch(x, y, training=training)
        generator = torch.Generator().manual_seed(0)
        expand = called(expander, {}, self._kind, self._options, facts.classes)
        batch = called(expand, {}, before, generator)
        if not isinstance(batch, Batch) or not isinstance(batch.x, torch.Tensor):
            raise ConfigError(f"expand gives {type(batch).__name__}, a Batch of tensors is needed")
        if batch.y.shape != y.shape:
            raise ConfigError(
                f"expand gives targets of shape {tuple(batch.y.shape)} for {tuple(y.shape)}: leave "
                "y as it is, and carry what else is needed"
            )
        if not isinstance(batch.carry, dict):
            raise ConfigError(
                f"expand carries a {type(batch.carry).__name__}: a dict of tensors is needed"
            )
        if batch.x.dim() == 0 or batch.x.shape[0] % _EXAMPLES or not len(batch.x):
            raise ConfigError(
                f"expand gives x of shape {tuple(batch.x.shape)} for {_EXAMPLES} examples: as many "
                "rows for each example are needed"
            )
        if problem := carried_problem(self._kind.carries, batch.carry, _EXAMPLES):
            raise ConfigError(problem)
        return Batch(batch.x, batch.y, dict(batch.carry), training)

    def _arrival(self, training: bool) -> Arrival:
        batch = self._batches[training]
        carried = tuple(
            CarriedSpec(
                name,
                dtype_name(batch.carry[name].dtype),
                batch.carry[name].shape[0] // _EXAMPLES,
                tuple(batch.carry[name].shape[1:]),
            )
            for name in self._kind.carries
        )
        return Arrival(len(batch.x) // _EXAMPLES, carried)

    def _ruled(self, spec: BlockSpec, rule: RuleSpec) -> BlockSpec:
        """The block with its rule, which was given blank examples."""
        import torch

        from pipeline.network.batch_norms import normalise, unusual_norms
        from pipeline.network.multiply_adds import multiply_adds

        spec = replace(spec, rule=rule)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            made = _made(self._kind, place_of(spec), self._options)
            # the training batch with what its loss multiplies
            with multiply_adds() as counted:
                self._batches[True] = self._left(made.train(), spec, self._batches[True])
            self._batches[False] = self._left(made.eval(), spec, self._batches[False])
        rule = replace(
            rule,
            parameters=sum(p.numel() for p in made.parameters()),
            forward_macs=counted.count // (_EXAMPLES * _PASSES),
            static=self._kind.static,
            normalises=normalise(made.modules()),
            unusual_norms=unusual_norms(made.modules()),
            only_teaches=_only_teaches(self._kind),
        )
        return replace(spec, rule=rule)

    def _left(self, rule: LocalRule, spec: BlockSpec, batch: Batch) -> Batch:
        """What arrives at the next block."""
        import torch

        from pipeline.rules.rule import Batch

        generator = torch.Generator().manual_seed(0)
        where = f"block {spec.index}"
        with torch.no_grad():
            x = _asked(where, rule.enter, batch.x, batch, generator)
            check_entered(x, self.entered(tuple(batch.x.shape[1:])), len(batch.x), where)
            h = torch.rand(len(batch.x), *spec.shape, generator=generator)
            passed = torch.zeros(len(batch.x), *spec.out_shape)
            onwards = Batch(passed, batch.y, dict(batch.carry), batch.training)
            _asked(where, rule.leave, h, onwards)
            scores = None if batch.training else _asked(where, rule.scores, h, onwards)
        if scores is not None and (problem := scores_problem(scores, batch.y, spec.classes)):
            raise ConfigError(f"{where}: {problem}")
        if batch.training:
            _check_loss(rule, h, x, batch, spec)
        if problem := carried_problem(self._kind.carries, onwards.carry, _EXAMPLES):
            raise ConfigError(problem)
        for name, tensor in onwards.carry.items():
            if tensor.dtype != batch.carry[name].dtype:
                raise ConfigError(
                    f"{where}: leave makes {batch.carry[name].dtype} of {name} a {tensor.dtype}: "
                    "what is carried keeps the type that expand gave it"
                )
        return onwards


def _only_teaches(kind: type[LocalRule]) -> bool:
    """Whether a rule leaves what arrives, what blocks compute on and what goes on as they are."""
    from pipeline.rules.rule import LocalRule

    changing = ("expand", "enter", "entered_shape", "leave")
    return not kind.carries and all(
        inspect.getattr_static(kind, name) is inspect.getattr_static(LocalRule, name)
        for name in changing
    )


def _asked(where: str, function: Callable[..., Any], *given: Any) -> Any:
    """What a function of a rule gives for a block."""
    try:
        return called(function, {}, *given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {function.__name__}: {error}") from error


def scores_problem(scores: Any, y: Tensor, classes: int) -> str:
    """What is wrong with the scores for targets y (n, …): of classes (n, classes, …) is needed, of
    numbers (n, …). Empty where nothing is wrong."""
    import torch

    wanted = (len(y), classes, *y.shape[1:]) if classes else tuple(y.shape)
    is_tensor = isinstance(scores, torch.Tensor)
    if is_tensor and tuple(scores.shape) == wanted and scores.is_floating_point():
        return ""
    found = described(scores)
    return f"scores are {found}; {wanted} of real numbers is needed, a row for each example"


def described(value: Any) -> str:
    """What a function of a rule has given, for people: `a tensor (8, 3) of float32`."""
    import torch

    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {dtype_name(value.dtype)}"
    return f"a {type(value).__name__}"


def _check_loss(rule: LocalRule, h: Tensor, x: Tensor, batch: Batch, spec: BlockSpec) -> None:
    """Raises ConfigError where a rule gives no loss that could teach its block."""
    import torch

    from pipeline.rules.rule import LocalRule

    h, where = h.requires_grad_(), f"block {spec.index}"
    given = _asked(where, rule.loss, h, x, batch, torch.Generator().manual_seed(0))
    loss, scores = given if isinstance(given, tuple) else (given, None)
    if scores is not None and (problem := scores_problem(scores, batch.y, spec.classes)):
        raise ConfigError(f"{where}: {problem}")
    has_update = type(rule).update is not LocalRule.update
    if loss is None:
        if has_update:
            return
        raise ConfigError(f"{where}: neither loss nor update gives anything to learn from")
    if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
        shape = tuple(getattr(loss, "shape", ()))
        raise ConfigError(
            f"{where}: loss gives a {type(loss).__name__} of shape {shape}: a scalar is needed, as "
            "mean() gives it"
        )
    if not torch.isfinite(loss):
        raise ConfigError(f"{where}: loss gives {loss.item()} for numbers between 0 and 1")
    reaches_block = loss.requires_grad and (
        torch.autograd.grad(loss, h, allow_unused=True)[0] is not None
    )
    if not (reaches_block or has_update):
        raise ConfigError(
            f"{where}: loss has no gradient for the activation, so the block would learn nothing: "
            "compute it from h, without detach() or no_grad(), or give directions by update"
        )


def input_type(facts: DataFacts) -> torch.dtype:
    """Of what the first block receives: bytes are made real numbers before."""
    import torch

    return torch.int64 if facts.dtype == "int64" else torch.float32


def check_entered(x: Any, shape: Shape, rows: int, where: str) -> None:
    """Raises ConfigError where `enter` gave other than `rows` rows of `shape`."""
    if tuple(getattr(x, "shape", ())) != (rows, *shape):
        raise ConfigError(
            f"{where}: enter gives {tuple(getattr(x, 'shape', ()))} for {rows} rows, and the block "
            f"takes {(rows, *shape)}: let entered_shape say what enter makes of a row"
        )


def carried_problem(carries: Collection[str], carry: Mapping[str, Any], n: int) -> str:
    """What is wrong with what a rule carries for n examples; empty where nothing is.

    Args:
        carries: the names that it has for that.
    """
    import torch

    for name in carries:
        if name not in carry:
            return f"carries {name!r}, which was never set: set it in expand"
    for name, tensor in carry.items():
        if name not in carries:
            return f"puts {name!r} into batch.carry: name it in carries, too"
        if not isinstance(tensor, torch.Tensor):
            return f"carries {name!r} as a {type(tensor).__name__}, not as a tensor"
        if dtype_name(tensor.dtype) not in ITEM_BYTES:
            return f"carries {name!r} of {tensor.dtype}; what travels is {', '.join(ITEM_BYTES)}"
        if tensor.dim() == 0 or tensor.shape[0] % n or not tensor.shape[0]:
            return (
                f"carries {name!r} of shape {tuple(tensor.shape)}: its first dimension has to be "
                "the examples, or a multiple of them"
            )
    return ""


def arrival_problem(batch: Batch, arrival: Arrival) -> str:
    """Where rows and carried tensors of a batch are not as when the run was planned; else empty."""
    n, specs = len(batch.y), {spec.name: spec for spec in arrival.carried}
    if len(batch.x) != arrival.rows * n:
        return f"{len(batch.x)} rows for {n} examples; {arrival.rows} for each were planned"
    if problem := carried_problem(specs, batch.carry, n):
        return problem
    for name, tensor in batch.carry.items():
        spec = specs[name]
        found = (dtype_name(tensor.dtype), tuple(tensor.shape))
        if found != (spec.dtype, (spec.rows * n, *spec.shape)):
            return (
                f"carries {name!r} of {described(tensor)} for {n} examples; {spec.text} was "
                "planned: what is carried keeps its shape and type from batch to batch"
            )
    return ""


def _made(kind: type[LocalRule], place: Place, options: Mapping[str, Any]) -> LocalRule:
    from pipeline.rules.rule import OwnOptimizer

    made: LocalRule = called(kind, dict(options), place)
    if "_modules" not in vars(made):
        raise ConfigError("its constructor does not call super().__init__(place): begin with that")
    for own in (made.layer_optimizer, made.rule_optimizer):
        if not isinstance(own, OwnOptimizer | None):
            raise ConfigError(f"asks for the optimizer {own!r}: give an OwnOptimizer")
    return made


def _check_names(carries: Any) -> None:
    """Raises ConfigError where a rule does not name each carried tensor once."""
    names = list(carries) if isinstance(carries, tuple | list) else [carries]
    if not isinstance(carries, tuple | list) or len(set(names)) < len(names):
        raise ConfigError(
            f"carries = {carries!r}: name each carried tensor once, in a tuple, as "
            f"carries = ({str(names[0])!r},)"
        )


def _check_options(kind: type[LocalRule], options: Mapping[str, Any]) -> None:
    """Raises ConfigError for options that a rule has not, or lacks."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[2:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    has = f"it has {', '.join(known)}" if known else "it has none"
    for name in options:
        if name not in known:
            raise ConfigError(f"has no option {name!r}; {has}{did_you_mean(name, known)}")
    needed = [p.name for p in parameters if p.default is p.empty and p.name in known]
    if missing := [name for name in needed if name not in options]:
        raise ConfigError(f"needs the option {missing[0]!r}: give it in loss.options")


def _of_its_names(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options for which a function has arguments."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(options)
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in options.items() if name in names}
