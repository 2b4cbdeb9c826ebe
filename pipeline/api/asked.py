"""Arguments of `pipeline.fit` -> a configuration, and the objects that it can't hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.config.config_file import set_value
from pipeline.config.recipe import ScheduleConfig
from pipeline.config.schema import Origins
from pipeline.config.sections import Config, build_config, config_tree
from pipeline.config.yaml_file import load_lines
from pipeline.data.facts import keys_of
from pipeline.errors import ConfigError
from pipeline.rules.rule import LocalRule
from pipeline.system.given import DATA, NETWORK, RULE, Given
from pipeline.system.packed import users_modules
from pipeline.system.paths import expanded

if TYPE_CHECKING:
    from collections.abc import Sequence

_OF_A_DATA_SET = frozenset((
    "name", "root", "download", "factory", "kwargs", "file", "size", "channels", "classes",
    "train_images", "test_images", "random_crop", "resize", "white", "on_bad_image", "accept",
))  # fmt: skip
"""Keys of `data` that say which it is; the others say what is done to it."""
DEFAULT_LOSS = "predsim"
_SHORT = {
    "epochs": "schedule.epochs",
    "batch_size": "data.batch_size",
    "lr": "optimizer.lr",
    "seed": "runtime.seed",
    "validation": "data.validation",
    "init_from": "model.init_from",
    "freeze": "model.freeze",
    "data_parallel": "parallel.members",
}
"""The arguments that stand for a key."""

_OF_ANY_NETWORK = ("group", "init_from", "freeze", "nonlinearity")
"""Keys of `model` that say what is done with a network, whatever it is."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What `fit` was asked for. `given`: the objects, of which the configuration has names."""

    config: Config
    given: Given
    name: str
    milestones_for: int | None = None
    """As `Job.milestones_for`."""


def asked(
    network: nn.Module | Sequence[nn.Module] | str | None,
    data: Any,
    test: Any,
    loss: str | type[LocalRule] | Mapping[str, Any] | None,
    config: Config | Mapping[str, Any] | str | Path | None,
    values: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Asked:
    """The configuration of the arguments of `fit`; `values`: its short ones, None where left out.

    Raises:
        ConfigError: for what is wrong, as a config file's errors.
    """
    tree, name, origins = _base(config)
    objects = _network_of(network, tree), _rule_of(loss, tree), _data_of(data, test, tree)
    given = Given(*objects, modules=users_modules())
    schedule = tree.get("schedule", {})
    said: dict[str, str] = {}
    for key, value in values.items():
        if value is not None:
            set_value(tree, _SHORT[key], _plain(value), key)
            said[_SHORT[key]] = key
    for key, value in options.items():
        set_value(tree, key, _plain(value), f"options {key}")
        said[key] = f"options {key}"
    built = build_config(tree, replace(origins, given=said))
    return Asked(built, given, name, _milestones_for(schedule, tree.get("schedule", {})))


def _milestones_for(before: Mapping[str, Any], now: Mapping[str, Any]) -> int | None:
    """The epochs that a schedule had, where it has others now and the same milestones."""
    changed = before.get("epochs") != now.get("epochs")
    if not changed or not before.get("milestones") or before["milestones"] != now["milestones"]:
        return None
    return int(before.get("epochs", ScheduleConfig().epochs))


def _base(
    config: Config | Mapping[str, Any] | str | Path | None,
) -> tuple[dict[str, Any], str, Origins]:
    """A tree of its own to put values into, the run's name, and where the tree is from."""
    origins = Origins("pipeline.fit")
    if config is None:
        return {}, "fit", origins
    if isinstance(config, str | Path):
        path = expanded("config", config)
        tree, lines = load_lines(path)
        name, origins = path.stem, Origins(str(path), lines.line_of)
    else:
        tree, name = config_tree(config) if isinstance(config, Config) else dict(config), "fit"
    if not isinstance(tree, dict):
        raise ConfigError(f"config: {config}: expected sections (model, loss, …)")
    for key, value in tree.items():
        if not isinstance(value, Mapping | None):
            raise ConfigError(f"config: {key} is not a section")
    return {key: dict(value or {}) for key, value in tree.items()}, name, origins


def _network_of(network: Any, tree: dict[str, Any]) -> nn.Module | None:
    if network is None:
        if "model" not in tree:
            raise ConfigError(
                "network: which? give an nn.Module, a list of modules, a name as 'vgg8b', or a "
                "config with a section model"
            )
        return None
    kept = {key: value for key, value in tree.get("model", {}).items() if key in _OF_ANY_NETWORK}
    if isinstance(network, str):
        if tree.get("model", {}).get("name") != network:  # of another network no more is kept
            tree["model"] = {"name": network, **kept}
        return None
    tree["model"] = {"factory": NETWORK, **kept}
    return network_given(network)


def network_given(network: Any) -> nn.Module | None:
    """A network of a user's own, a module or a list of modules, as the engine takes it.

    Raises:
        ConfigError: where it is none.
    """
    if network is None or isinstance(network, nn.Module):
        return network
    if not isinstance(network, Iterable):
        is_class = isinstance(network, type) and issubclass(network, nn.Module)
        what = f"{network.__name__} is a class: call it" if is_class else f"{network!r:.60} is none"
        raise ConfigError(f"network: {what}; give an nn.Module, or a list of modules")
    modules = list(network)
    if wrong := [each for each in modules if not isinstance(each, nn.Module)]:
        raise ConfigError(
            f"network: a {type(wrong[0]).__name__} is in the list; an nn.Module for each block is "
            "needed"
        )
    return nn.Sequential(*modules)


def _rule_of(loss: Any, tree: dict[str, Any]) -> type[LocalRule] | None:
    if loss is None:
        tree.setdefault("loss", {"name": DEFAULT_LOSS})
    elif isinstance(loss, str):
        if tree.get("loss", {}).get("name") != loss:
            tree["loss"] = {"name": loss}
    elif isinstance(loss, Mapping):
        tree["loss"] = {key: _plain(value) for key, value in loss.items()}
    elif isinstance(loss, type):
        tree["loss"] = {"rule": loss}
    else:
        raise ConfigError(
            f"loss: {type(loss).__name__}(…) is an object: give the name of a loss, a class that "
            'is derived from pipeline.LocalRule, or {"rule": that class, "options": {…}}'
        )
    rule = tree["loss"].get("rule")
    if not isinstance(rule, type):
        return None
    if not issubclass(rule, LocalRule):
        raise ConfigError(
            f"loss: {rule.__name__} is no pipeline.LocalRule; derive it from that, or give the "
            "name of a loss"
        )
    tree["loss"] = {**tree["loss"], "rule": RULE}
    return rule


def _data_of(data: Any, test: Any, tree: dict[str, Any]) -> Any:
    if data is None:
        if "data" not in tree:
            raise ConfigError(
                "data: which? give (X, y), a Dataset, the name of a data set as 'digits', an .npz "
                "file, or a config with a section data"
            )
        if test is not None:
            raise ConfigError("test: goes with data; give both, or neither")
        return None
    before = tree.get("data", {})
    kept = {key: value for key, value in before.items() if key not in _OF_A_DATA_SET}
    if isinstance(data, str | Path):
        if test is not None:
            raise ConfigError(f"test: the data set {data} has a test set of its own")
        named = keys_of(str(data))
        root = {key: before[key] for key in ("root",) if key in before and "file" not in named}
        tree["data"] = {**root, **named, **kept}
        return None
    tree["data"] = {"factory": DATA, **kept}
    return data if test is None else {"train": data, "test": test}


def _plain(value: Any) -> Any:
    """Numbers of numpy, paths and tensors of one number as a config has them."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, torch.Tensor) or type(value).__module__ == "numpy":
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
