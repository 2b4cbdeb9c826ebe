"""Configurations as files: read with overrides, written so that they read back equal.

What may stand in a configuration is declared in `sections.py`; its syntax is in `yaml_text.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.config.schema import Origins, brief
from pipeline.config.sections import build_config, config_tree, settings
from pipeline.config.user_code import WITH_KEYS_BELOW
from pipeline.config.yaml_file import load_lines
from pipeline.config.yaml_text import Lines, dump_tree, parsed
from pipeline.errors import SET, ConfigError, as_option, cut

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.config.sections import Config


def load_config(
    path: Path, overrides: tuple[str, ...] = (), *, varied: tuple[str, ...] = ()
) -> Config:
    """Read and check `path`, with `KEY=VALUE` overrides by dotted key.

    Args:
        varied: more of them, one run's of the values that `--over KEY=…` gives.

    Raises:
        ConfigError: naming file and line, or the override, key, value and rule of all that is
            wrong; for a syntax error line and column.
    """
    tree, lines = load_lines(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections (model:, loss:, …), found {brief(tree)}")
    tree = {key: {} if section is None else section for key, section in tree.items()}
    given = _overridden(tree, overrides)
    for override in varied:
        key, _ = _override(tree, override)
        given[key] = f"--over {key}"
    return build_config(tree, Origins(str(path), lines.line_of, given))


def config_from(
    tree: Mapping[str, Any], source: str, overrides: tuple[str, ...], last: Mapping[str, Any]
) -> Config:
    """A configuration that a command makes of plain values, which stay as they are.

    Args:
        source: names them in errors; overrides: as for `load_config`; last: values by dotted key
            that no override changes.

    Raises:
        ConfigError: for all that is wrong.
    """
    own = {key: dict(section) for key, section in tree.items()}
    given = _overridden(own, overrides)
    for key, value in last.items():
        set_value(own, key, value, source)
        given.pop(key, None)
    return build_config(own, Origins(source, given=given))


def config_of(text: str, source: str) -> Config:
    """A configuration that is a text; `source` is named in errors.

    Raises:
        ConfigError: as `load_config`.
    """
    return build_config(parsed(text, source), Origins(source, Lines(text).line_of))


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal value."""
    return dump_tree(config_tree(config))


def set_value(tree: dict[str, Any], dotted: str, value: Any, source: str) -> None:
    """Set one value of a tree by its dotted key, as `data.batch_size` or `model.kwargs.width`.

    Args:
        source: names the setting in an error.

    Raises:
        ConfigError: where that is no key of a section.
    """
    section, dot, key = dotted.partition(".")
    if not (dot and section and key):
        raise ConfigError(f"{source}: expected SECTION.KEY, as data.batch_size{_meant_by(dotted)}")
    has_keys_below = f"{section}.{key.partition('.')[0]}" in WITH_KEYS_BELOW
    *path, last = [section, *(key.split(".") if has_keys_below else [key])]
    for name in path:
        tree = _own(tree, name, source)
    tree[_as_it_stands(tree, last)] = value


def _overridden(tree: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, str]:
    """Set what overrides say; gives each by its key, as errors name it."""
    given: dict[str, str] = {}
    for override in overrides:
        key, said = _override(tree, override)
        given.pop(key, None)  # the last one counts
        given[key] = said
    return given


def _override(tree: dict[str, Any], override: str) -> tuple[str, str]:
    """Set what an override says; gives its key, and the override as errors name it."""
    dotted, equals, text = override.partition("=")
    said = f"{as_option(SET)} {cut(override, 80)}"
    if not (equals and all(dotted.partition("."))):
        meant = _meant_by(dotted)
        raise ConfigError(f"{said}: expected SECTION.KEY=VALUE, as data.batch_size=64{meant}")
    set_value(tree, dotted, parsed(text, said), said)
    return dotted, said


def _meant_by(word: str) -> str:
    """The end of an error about a key without its section."""
    keys = [key for key in settings() if key.partition(".")[2] == word]
    return f"; did you mean {keys[0]}?" if len(keys) == 1 else ""


def _own(tree: dict[str, Any], name: str, source: str) -> dict[str, Any]:
    """The keys and values below `name`, made its own: an alias may have them elsewhere, too."""
    key = _as_it_stands(tree, name)
    target = tree.get(key)
    if not isinstance(target, dict | None):
        raise ConfigError(f"{source}: {name} is not a section")
    own = tree[key] = {**(target or {})}
    return own


def _as_it_stands(tree: dict[str, Any], name: str) -> Any:
    """A key by its name; one that is there may be a number, as in `optimizer.blocks`."""
    return next((key for key in tree if str(key) == name), name)
