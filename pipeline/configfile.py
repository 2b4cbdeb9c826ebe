"""Configurations as YAML files: read with overrides, written so that they read back equal.

The only file that imports yaml. What may stand in a configuration is declared in `config.py`;
here are its syntax, and errors that name file, line and column.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.config import build_config, config_tree
from pipeline.errors import ConfigError
from pipeline.schema import brief

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config import Config


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 5e-4 as the number the user meant and refuses a key given twice."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """PyYAML lets plain errors escape for 2020-99-99, !!bool x, !!timestamp x."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{brief(node.value)} is no {kind}", problem_mark=node.start_mark
            ) from None


class _Words(yaml.BaseLoader):
    """Every scalar stays the text it is."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a text which `_Loader` would read as a number."""


for _reader_or_writer in (_Loader, _Dumper):
    _reader_or_writer.add_implicit_resolver(  # YAML 1.2's float: no dot before the exponent
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def _mapping_without_repeats(loader: _Loader | _Words, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(
                problem="a key must be a single word", problem_mark=key.start_mark
            )
        if key.value in seen:
            raise yaml.MarkedYAMLError(
                problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark
            )
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


for _reader in (_Loader, _Words):
    _reader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read and check `path`, with `KEY=VALUE` overrides by dotted key.

    Raises:
        ConfigError: naming file, key, value and rule; for a syntax error line and column.
    """
    tree = _parse(_read(path), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections (model:, loss:, …), found {brief(tree)}")
    tree = {key: {} if section is None else section for key, section in tree.items()}
    for override in overrides:
        _override(tree, override)
    return build_config(tree, str(path))


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal value."""
    return dump_tree(config_tree(config))


def load_tree(path: Path) -> Any:
    """A YAML file, or a JSON file, as plain values; numbers as in a config.

    Raises:
        ConfigError: where it can't be read, with line and column for a syntax error.
    """
    return _parsed_json(path) if path.suffix == ".json" else _parse(_read(path), str(path))


def _parsed_json(path: Path) -> Any:
    """YAML is nearly, but not quite, a superset: tabs may indent JSON."""
    try:
        return json.loads(_read(path))
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise ConfigError(f"{where}: JSON syntax: {error.msg}") from None


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


def load_words(path: Path) -> Any:
    """A YAML file whose scalars are left as text: 0.80 stays 0.80.

    Raises:
        ConfigError: where it can't be read, with line and column for a syntax error.
    """
    return _parse(_read(path), str(path), _Words)


def value_of(text: str) -> Any:
    """What a word of a config means: `5e-4`, `true`, `[1, 2]`, `pred`."""
    return _parse(text, text)


def word_for(value: Any) -> str:
    """What `value_of` reads as `value`: `null`, `[64, M]`, a tuple as a list; in one line, unless
    a text in it has more."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True
    )
    return text.removesuffix("...\n").removesuffix("\n")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as text: {error}") from None


def _parse(text: str, source: str, loader: type[_Loader | _Words] = _Loader) -> Any:
    try:
        return yaml.load(text, Loader=loader)  # either builds plain values only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: YAML syntax: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: YAML syntax: {' '.join(str(error).split())}") from None


def _override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    section, dot, key = dotted.partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"--set {override}: expected SECTION.KEY=VALUE, as data.batch_size=64")
    target = tree.setdefault(section, {})
    if not isinstance(target, dict):
        raise ConfigError(f"--set {override}: {section} is not a section")
    within, dot, name = key.partition(".")
    if dot and f"{section}.{within}" == "model.kwargs":  # the one key that holds keys
        target, key = target.setdefault(within, {}), name
    target[key] = _parse(text, f"--set {override}")
