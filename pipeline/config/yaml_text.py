"""YAML as plain values and plain values as YAML; what is read is bounded.

The only file that imports yaml. Nothing that is read takes long or much, whatever it holds: a text
is bounded before it is parsed, its values are counted as they are composed, aliases with all that
they stand for. What people read otherwise than YAML 1.1 does, as 010, is refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from pipeline.config.schema import YesOrNo, brief
from pipeline.errors import ConfigError, cut

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_YAML_BYTES = 1 << 18
"""PyYAML takes a second or so for this much."""
_MOST_VALUES = 20_000
"""Keys and values of a YAML text, a long text counting once for each 16 characters."""
MOST_NESTED = 32
"""Lists and mappings in each other."""

_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset(
    f"{_TAG}{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
)
_OF_YAML = {f"{_TAG}merge", f"{_TAG}value"}
_PLAIN_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_PLAIN_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_MOST_DIGITS = 400
_QUOTES = "or in quotes if it is a text"
TOO_DEEP = f"more than {MOST_NESTED} lists or mappings in each other: nest less"


class _RefusedError(yaml.MarkedYAMLError):
    """What is right YAML, but not for us. `problem` says why, and the cure."""


@dataclass(frozen=True, slots=True)
class _Extent:
    """How much a node holds, each alias counted as what it stands for."""

    values: int
    depth: int


class _Loader(yaml.SafeLoader):
    """SafeLoader within bounds, that reads 5e-4 as the number the user meant, and refuses a key
    given twice and what is read otherwise than people think."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._extents: dict[yaml.Node, _Extent] = {}
        self._level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Checked before anything is made of it: a few lines of aliases can stand for billions."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if self._level == MOST_NESTED:
            raise _too_deep(event.start_mark)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.AliasEvent) and node not in self._extents:
            raise _RefusedError(
                problem=f"*{event.anchor} is recursive: it stands within what it names",
                problem_mark=event.start_mark,  # type: ignore[arg-type]
            )
        if node is not None and node not in self._extents:
            self._extents[node] = self._extent(node)
            self._check_values(len(self._extents), node)  # before the end of a long list
        return node

    def _extent(self, node: yaml.Node) -> _Extent:
        if isinstance(node, yaml.ScalarNode):
            return _Extent(1 + len(node.value) // 16, 1)
        pairs = isinstance(node, yaml.MappingNode)
        children = [child for item in node.value for child in (item if pairs else (item,))]
        found = [self._extents[child] for child in children]
        values = 1 + sum(extent.values for extent in found)
        depth = 1 + max((extent.depth for extent in found), default=0)
        if depth > MOST_NESTED:
            raise _too_deep(node.start_mark)
        self._check_values(values, node)
        return _Extent(values, depth)

    def _check_values(self, values: int, node: yaml.Node) -> None:
        if values > _MOST_VALUES:
            raise _RefusedError(
                problem=f"more than {_MOST_VALUES:,} values, aliases (*name) counted as what they "
                "stand for: write less",
                problem_mark=node.start_mark,
            )

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """PyYAML lets plain errors escape for 2020-99-99, !!bool x, !!timestamp x."""
        if node.tag in _OF_YAML:
            raise _refused(node, f"has a meaning of its own in YAML: write '{node.value}'")
        if node.tag not in _TAGS:
            tag = brief(node.tag.replace(_TAG, "!!"))
            raise _RefusedError(
                problem=f"the tag {tag} is not allowed: write plain values, without !tags",
                problem_mark=node.start_mark,
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, AttributeError):
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{brief(node.value)} is no {kind}", problem_mark=node.start_mark
            ) from None


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a text which `_Loader` would read as a number, or refuse."""


for _reader_or_writer in (_Loader, _Dumper):
    _reader_or_writer.add_implicit_resolver(  # YAML 1.2's float: no dot before the exponent
        f"{_TAG}float",
        re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )
    _reader_or_writer.add_implicit_resolver(  # a text in YAML 1.1, a number to people: 08, 0o17
        f"{_TAG}int", re.compile(r"^[-+]?0[oO]?[0-9_]+$"), list("-+0")
    )


class _Words(_Loader):
    """Every scalar stays the text it is."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


def _too_deep(mark: Any) -> _RefusedError:
    return _RefusedError(problem=TOO_DEEP, problem_mark=mark)


def _refused(node: yaml.Node, why: str) -> _RefusedError:
    return _RefusedError(problem=f"{cut(str(node.value), 60)} {why}", problem_mark=node.start_mark)


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(
                problem="a key must be a single word", problem_mark=key.start_mark
            )
        if key.value in seen:
            raise yaml.MarkedYAMLError(
                problem=f"key '{cut(str(key.value), 60)}' is given twice",
                problem_mark=key.start_mark,
            )
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if _PLAIN_INT.fullmatch(text) and len(text) <= _MOST_DIGITS:
        return int(text)
    if _PLAIN_INT.fullmatch(text):
        raise _refused(node, f"has {len(text)} digits, too many for a number: write a smaller one")
    if re.fullmatch(r"[-+]?0[oO]?[0-9_]+", text) and not re.fullmatch(r"[-+]?0[0-7_]+", text):
        why = "is a number to some and a text to others"
    else:
        read = brief(yaml.SafeLoader.construct_yaml_int(loader, node))
        why = f"would be read as {read} ({_notation(text)})"
    raise _refused(node, f"{why}: write a number in plain decimal digits, {_QUOTES}")


def _notation(text: str) -> str:
    digits = text.lstrip("-+").lower()
    kinds = {"0x": "hexadecimal", "0b": "binary"}
    if digits[:2] in kinds:
        return kinds[digits[:2]]
    if ":" in digits:
        return "base 60"
    return "octal" if digits.startswith("0") else "underscores are skipped"


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node))
    value: float = yaml.SafeLoader.construct_yaml_float(loader, node)
    if text.lstrip("-+").lower() in (".inf", ".nan"):
        return value
    if not _PLAIN_FLOAT.fullmatch(text):
        raise _refused(
            node,
            f"would be read as {value} ({_notation(text)}): write a number in plain decimal "
            f"digits, {_QUOTES}",
        )
    is_nothing = value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]) is not None
    if math.isinf(value) or is_nothing:
        raise _refused(
            node, f"would be read as {value}: write a number that 64 bits hold, {_QUOTES}"
        )
    return value


def _bool(loader: _Loader, node: yaml.ScalarNode) -> bool | YesOrNo:
    text = str(loader.construct_scalar(node))
    value: bool = yaml.SafeLoader.construct_yaml_bool(loader, node)
    return value if text.lower() in ("true", "false") else YesOrNo(text, value)


_Loader.add_constructor(f"{_TAG}map", _mapping_without_repeats)
_Loader.add_constructor(f"{_TAG}int", _int)
_Loader.add_constructor(f"{_TAG}float", _float)
_Loader.add_constructor(f"{_TAG}bool", _bool)
_Dumper.add_representer(YesOrNo, yaml.SafeDumper.represent_str)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """A text; one with a "next line" (U+0085) in double quotes, where it is escaped: in single ones
    YAML reads it as a line feed."""
    return dumper.represent_scalar(f"{_TAG}str", text, '"' if "\x85" in text else None)


_Dumper.add_representer(str, _text)


class Lines:
    """In which lines of a YAML text its values stand."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def _root(self) -> Any:
        """None where it is no YAML, as some JSON is not."""
        try:
            return yaml.compose(self._text, Loader=_Loader)
        except yaml.YAMLError:
            return None

    def line_of(self, path: Sequence[int | str]) -> int | None:
        """The line of a key or of an item of a list, named by the keys above it, from 1; None where
        it does not stand there itself, as what was merged (`<<`)."""
        node, line = self._root, None
        for part in path:
            if isinstance(node, yaml.SequenceNode):
                found = [(item, item) for at, item in enumerate(node.value) if at == part]
            elif isinstance(node, yaml.MappingNode):
                found = [(key, value) for key, value in node.value if key.value == str(part)]
            else:
                return None
            if not found:
                return None
            (key, node), *_ = found
            line = key.start_mark.line + 1
        return line


def value_of(text: str) -> Any:
    """What a word of a config means: `5e-4`, `true`, `[1, 2]`, `pred`.

    Raises:
        ConfigError: where it means nothing, or what people would misread.
    """
    return parsed(text, brief(text))


def dump_tree(tree: Any) -> str:
    """Plain values as YAML, a row of a list on a line of its own."""
    return yaml.dump(
        tree,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        width=120,
        allow_unicode=True,
    )


def word_for(value: Any) -> str:
    """What `value_of` reads as `value`: `null`, `[64, M]`, a tuple as a list; in one line, unless
    a text in it has more."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True
    )
    return text.removesuffix("...\n").removesuffix("\n")


def parsed(text: str, source: str, *, words: bool = False) -> Any:
    """A YAML text as plain values; `source` is named in errors.

    Args:
        words: whether scalars are left as the texts they are: 0.80 stays 0.80.

    Raises:
        ConfigError: with line and column.
    """
    if len(text) > MOST_YAML_BYTES:
        raise ConfigError(f"{source}: {len(text):,} characters; {at_most(MOST_YAML_BYTES)}")
    try:
        return yaml.load(text, Loader=_Words if words else _Loader)  # builds plain values only
    except yaml.MarkedYAMLError as error:
        mark, refused = error.problem_mark, isinstance(error, _RefusedError)
        named = refused and "\n" not in text.rstrip()  # what is wrong of a line, as of --set
        where = f":{mark.line + 1}:{mark.column + 1}" if mark and not named else ""
        what = "" if refused else "YAML syntax: "
        raise ConfigError(f"{source}{where}: {what}{_problem(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: YAML syntax: {' '.join(str(error).split())}") from None
    except (ValueError, OverflowError):  # PyYAML's scanner, of "\UFFFFFFFF"
        raise ConfigError(f"{source}: YAML syntax: an escape names no character") from None


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem)
    whole = f"{error.context}, {problem}" if problem.startswith("but ") else problem
    return " ".join(whole.split())


def at_most(most: int) -> str:
    """The rule, for errors."""
    return f"at most {most >> 10:,} KiB are read of a file that people write"
