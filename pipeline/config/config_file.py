"""Configurations as files: read with overrides, written so that they read back equal.

What may stand in a configuration is declared in `sections.py`; its syntax is in `yaml_text.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.config.schema import brief
from pipeline.config.sections import build_config, config_tree
from pipeline.config.user_code import WITH_KEYS_BELOW
from pipeline.config.yaml_file import load_tree
from pipeline.config.yaml_text import dump_tree, parsed
from pipeline.errors import ConfigError, cut

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.sections import Config


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read and check `path`, with `KEY=VALUE` overrides by dotted key.

    Raises:
        ConfigError: naming file, key, value and rule; for a syntax error line and column.
    """
    tree = load_tree(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections (model:, loss:, …), found {brief(tree)}")
    tree = {key: {} if section is None else section for key, section in tree.items()}
    for override in overrides:
        _override(tree, override)
    return build_config(tree, str(path))


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
        raise ConfigError(f"{source}: expected SECTION.KEY, as data.batch_size")
    has_keys_below = f"{section}.{key.partition('.')[0]}" in WITH_KEYS_BELOW
    *path, last = [section, *(key.split(".") if has_keys_below else [key])]
    for name in path:
        tree = _own(tree, name, source)
    tree[_as_it_stands(tree, last)] = value


def _override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    said = cut(override)
    if not (equals and all(dotted.partition("."))):
        raise ConfigError(f"--set {said}: expected SECTION.KEY=VALUE, as data.batch_size=64")
    set_value(tree, dotted, parsed(text, f"--set {said}"), f"--set {said}")


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
