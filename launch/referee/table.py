"""What the referee trains, as data: `referee.yaml`, resolved into networks and rules.

network   a model and data that all rules share, how long it is trained
rule      a row of the table: what is changed of a network's config, and what is searched for
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.yaml_file import load_tree
from pipeline.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TABLE = Path(__file__).with_name("referee.yaml")
_OF_A_NETWORK = {
    "title": str, "epochs": int, "search_epochs": int, "speed_steps": int, "config": dict,
    "asked_for": bool, "for_gpus": bool,
}  # fmt: skip
_OF_A_RULE = {
    "title": str, "config": dict, "search": dict, "search_of": str, "own_networks": dict,
    "networks": list, "asked_for": bool,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z][\w-]*")
"""Of a rule or a network, whose rows and runs lie in files and folders of that name."""
_NEEDED = {"networks": ("title", "epochs", "search_epochs", "config"), "rules": ("title", "config")}


@dataclass(frozen=True, slots=True)
class Network:
    """`speed_steps`: of an epoch whose images/s are taken, as many as take some seconds.
    `asked_for`: trained only where it is named; `for_gpus`: a CPU would take days."""

    name: str
    title: str
    epochs: int
    search_epochs: int
    config: Mapping[str, Any]
    speed_steps: int = 40
    asked_for: bool = False
    for_gpus: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """`key`: of the config, whose `values` are tried; `search_of`: the rule whose search counts for
    this one, too. `own_networks`: models in place of those of networks, by their names; empty where
    the rule takes every network. `networks`: the only ones where it is another than all; empty:
    all. `asked_for`: trained only where it is named."""

    name: str
    title: str
    config: Mapping[str, Any]
    key: str
    values: tuple[Any, ...]
    search_of: str | None = None
    own_networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    networks: Sequence[str] = ()
    asked_for: bool = False

    def fits(self, network: Network) -> bool:
        """Whether it is to be trained there."""
        has_model = not self.own_networks or network.name in self.own_networks
        return has_model and (not self.networks or network.name in self.networks)


@dataclass(frozen=True, slots=True)
class Table:
    """All that may be trained, by name. `common`: of all configs."""

    common: Mapping[str, Any]
    networks: Mapping[str, Network]
    rules: Mapping[str, Rule]

    def named_networks(self, names: str | None) -> list[Network]:
        """Those that `--networks` names; None: all but those that have to be asked for.

        Raises:
            ConfigError: for a name that is none.
        """
        if names is None:
            return [network for network in self.networks.values() if not network.asked_for]
        return _named(self.networks, names, "--networks")

    def named_rules(self, names: str | None) -> list[Rule]:
        """Those that `--rules` names; None: all but those that have to be asked for.

        Raises:
            ConfigError: for a name that is none.
        """
        if names is None:
            return [rule for rule in self.rules.values() if not rule.asked_for]
        return _named(self.rules, names, "--rules")

    def tree(self, network: Network, rule: Rule) -> dict[str, Any]:
        """The config of a rule's runs on a network, with the first of its values."""
        sections: dict[str, dict[str, Any]] = {}
        for config in (self.common, network.config, rule.config):
            for name, section in config.items():
                whole = name == "loss"
                sections[name] = {**({} if whole else sections.get(name, {})), **section}
        if rule.own_networks:
            sections["model"] = dict(rule.own_networks[network.name])
        return sections


def read_table(path: Path | None = None) -> Table:
    """The shipped table, with the rules of another file, or in its place that of another file.

    Raises:
        ConfigError: naming file, entry and what is wrong.
    """
    path = path or TABLE
    tree = load_tree(path)
    said = str(path)
    if isinstance(tree, dict) and tree.keys() == {"rules"}:
        tree = _with_rules(tree["rules"], said)
    if not isinstance(tree, dict) or not {"networks", "rules", "search"} <= tree.keys():
        raise ConfigError(
            f"{said}: expected the entries common, search, networks and rules, or rules alone, to "
            "be added to the shipped ones"
        )
    if odd := sorted(map(str, tree.keys() - {"common", "search", "networks", "rules"})):
        raise ConfigError(f"{said}: {odd[0]} is none of common, search, networks, rules")
    common = _section(tree.get("common") or {}, f"{said}: common")
    networks = {
        name: Network(name, **_checked(name, entry, _OF_A_NETWORK, "networks", said))
        for name, entry in _section(tree["networks"], f"{said}: networks").items()
    }
    rules = {
        name: _rule(name, entry, tree["search"], said)
        for name, entry in _section(tree["rules"], f"{said}: rules").items()
    }
    for rule in rules.values():
        if rule.search_of is not None and rule.search_of not in rules:
            raise ConfigError(f"{said}: {rule.name}: search_of {rule.search_of} is no rule here")
        for name in (*rule.networks, *rule.own_networks):
            if name not in networks:
                known = ", ".join(networks)
                raise ConfigError(f"{said}: {rule.name}: {name!r:.60} is no network: {known} are")
    return Table(common, networks, rules)


def _with_rules(more: Any, said: str) -> dict[str, Any]:
    """The shipped table as it is in its file, with more rules."""
    shipped: dict[str, Any] = load_tree(TABLE)
    rules, own = shipped["rules"], _section(more, f"{said}: rules")
    if both := [name for name in own if name in rules]:
        raise ConfigError(f"{said}: {both[0]} is a shipped rule: give yours another name")
    return {**shipped, "rules": {**rules, **own}}


def _rule(name: str, entry: Any, search: Any, said: str) -> Rule:
    found = _checked(name, entry, _OF_A_RULE, "rules", said)
    asked = found.pop("search", None) or search
    where = f"{said}: {name}: search"
    if not isinstance(asked, dict) or len(asked) != 1:
        raise ConfigError(f"{where}: expected one key with its values, as {{optimizer.lr: [1e-3]}}")
    ((key, values),) = asked.items()
    if not isinstance(values, list) or not values or "." not in str(key):
        raise ConfigError(f"{where}: {key}: expected SECTION.KEY with a list of values")
    own = found.pop("own_networks", {})
    return Rule(name=name, key=key, values=tuple(values), own_networks=own, **found)


def _checked(
    name: Any, entry: Any, kinds: Mapping[str, type], of: str, where: str
) -> dict[str, Any]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: {of}: {name!r:.60} can't name files, nor be asked for: use letters, digits, "
            "- and _, from a letter on"
        )
    said = f"{where}: {name}"
    tree = _section(entry, said)
    for key, value in tree.items():
        if key not in kinds:
            raise ConfigError(f"{said}: {key} is none of {', '.join(kinds)}")
        if type(value) is not kinds[key]:
            raise ConfigError(f"{said}: {key} {value!r:.60} is no {kinds[key].__name__}")
        if type(value) is int and value < 1:
            raise ConfigError(f"{said}: {key} {value}: expected 1 or more")
        if key in ("config", "own_networks"):
            for section, own in tree[key].items():
                _section(own, f"{said}: {key}: {section}")
    for key in _NEEDED[of]:
        if key not in tree:
            raise ConfigError(f"{said}: {key} is missing")
    return tree


def _section(tree: Any, said: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ConfigError(f"{said}: expected keys with values, found {tree!r:.60}")
    return dict(tree)


def _named(known: Mapping[str, Any], names: str, option: str) -> list[Any]:
    found = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in found:
        if name not in known:
            hint = did_you_mean(name, tuple(known))
            raise ConfigError(f"{option} {name!r}: there are {', '.join(known)}{hint}")
    return [known[name] for name in found]
