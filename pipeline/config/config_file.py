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


def _override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    said = cut(override)
    section, dot, key = dotted.partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"--set {said}: expected SECTION.KEY=VALUE, as data.batch_size=64")
    target = _own(tree, section, f"--set {said}")
    within, dot, name = key.partition(".")
    if dot and f"{section}.{within}" in WITH_KEYS_BELOW:
        target, key = _own(target, within, f"--set {said}"), name
    target[key] = parsed(text, f"--set {said}")


def _own(tree: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    """The keys and values below `key`, made its own: an alias may have them elsewhere, too."""
    target = tree.get(key)
    if not isinstance(target, dict | None):
        raise ConfigError(f"{source}: {key} is not a section")
    own = tree[key] = {**(target or {})}
    return own
