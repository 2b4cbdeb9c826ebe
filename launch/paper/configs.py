"""An entry of the paper as a config: checked, as commented YAML, with fewer epochs if wanted."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from launch.paper.table import Setting, all_cells, entries_of
from launch.plan.checks import network_costs
from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.network.from_config import network_specs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from launch.paper.table import Cell, Entry, Table
    from pipeline.config.sections import Config

KEYS = (
    "model.name", "model.feat_mult", "model.hidden_layers", "model.hidden", "model.nonlinearity",
    "model.dropout", "model.batch_norm",
    "loss.name", "loss.bio", "loss.target_projection", "loss.beta", "loss.dim_in_decoder",
    "optimizer.name", "optimizer.lr",
    "schedule.epochs", "schedule.milestones", "schedule.factor",
    "data.name", "data.root", "data.batch_size", "data.classes_per_batch",
    "data.classes_per_batch_until_epoch", "data.class_order", "data.crop_padding", "data.flip",
    "data.cutout", "data.train_limit", "data.test_limit",
    "runtime.seed", "runtime.precision",
)  # fmt: skip
"""What a table may set, in the order in which configs show it."""
CONFIGS = "configs/paper"
_WIDTH = 118
_SOURCE_COLUMN = 30
_UNTIL = "data.classes_per_batch_until_epoch"


def entry_config(entry: Entry) -> Config:
    """The entry's configuration.

    Raises:
        ConfigError: where the table has a key or value that no config has.
    """
    tree: dict[str, dict[str, Any]] = {}
    for key, setting in entry.settings.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = setting.value
    return build_config(tree, f"{entry.key} of the paper's tables")


def count_parameters(entry: Entry) -> int:
    """Of layers and output layer, with bias and batch norm, without heads: what the paper counts.

    Batch norm and bias are too few to change the digits that its tables print.
    """
    config = entry_config(entry)
    specs = network_specs(config, data_facts(config.data))
    return sum(cost.parameters for cost in network_costs(config, specs))


def scaled_epochs(entry: Entry, scale: float) -> int:
    """`scale` times the paper's epochs, at least 1."""
    return max(1, round(entry.epochs * scale))


def epochs_text(epochs: int, whole: int) -> str:
    """`100`, or `10 of 100`."""
    return str(epochs) if epochs == whole else f"{epochs} of {whole}"


def shortened(entry: Entry, epochs: int) -> Entry:
    """The entry with so many epochs, and its milestones at the same shares of the training.

    Milestones round down; one that falls on another, or before the first epoch, is left out.
    """
    whole = entry.epochs
    if epochs == whole:
        return entry
    milestones = [m * epochs // whole for m in entry.settings["schedule.milestones"].value]
    kept = sorted({m for m in milestones if 0 < m < epochs})
    changed = {
        "schedule.epochs": Setting(str(epochs), f"the paper's {whole}, scaled"),
        "schedule.milestones": Setting(str(kept), f"at the same shares of {epochs} epochs"),
    }
    if _UNTIL in entry.settings:  # the first drop of the learning rate, wherever that is now
        until = kept[0] if kept else epochs
        changed[_UNTIL] = Setting(str(until), f"at the same share of {epochs} epochs")
    return replace(entry, settings={**entry.settings, **changed})


def config_text(entry: Entry, cells: Iterable[Cell]) -> str:
    """The entry as a config file whose comments say where each value comes from.

    Args:
        cells: the numbers of the paper that this entry belongs to.

    Raises:
        ValueError: for a key that `KEYS` has no place for.
    """
    unknown = sorted(set(entry.settings) - set(KEYS))
    if unknown:
        raise ValueError(f"launch.paper.configs.KEYS has no place for {', '.join(unknown)}")
    lines = _heading(entry, list(cells))
    section = ""
    for key in (key for key in KEYS if key in entry.settings):
        before, (section, _, name) = section, key.partition(".")
        lines += [f"{section}:"] if section != before else []
        lines += _line(name, entry.settings[key])
    return "\n".join(lines) + "\n"


def config_files(tables: Sequence[Table]) -> dict[str, str]:
    """Every config of the paper: path below the repository -> text."""
    cells = all_cells(tables)
    return {
        f"{CONFIGS}/{entry.key}.yaml": config_text(
            entry, [cell for cell in cells if cell.entry.key == entry.key]
        )
        for entry in entries_of(cells)
    }


def write_configs(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write every config below `folder`; says which files changed."""
    changed = []
    for name, text in config_files(tables).items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def _heading(entry: Entry, cells: Sequence[Cell]) -> list[str]:
    errors = "; ".join(f"Table {cell.table}, {cell.error} %" for cell in cells)
    single = " --single" if entry.backprop else ""
    sentences = [
        f"{entry.title}. Test error in Nøkland & Eidnes (2019): {errors}.",
        "Made from launch/paper/paper.yaml by pipeline-reproduce --write-configs: change it there.",
        f"Run it: pipeline-reproduce {cells[0].selector}",
        f"    or: pipeline-launch{single} {CONFIGS}/{entry.key}.yaml",
    ]
    sentences += [f"Note: {note}" for note in entry.notes]
    lines: list[str] = []
    for sentence in sentences:
        lines += textwrap.wrap(
            sentence, _WIDTH, initial_indent="# ", subsequent_indent="#   ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return [*lines, ""]


def _line(name: str, setting: Setting) -> list[str]:
    """`  name: value`, and its source in a column of its own."""
    start = f"  {name}: {setting.text}".ljust(_SOURCE_COLUMN)
    first, *rest = textwrap.wrap(setting.source, _WIDTH - _SOURCE_COLUMN)
    indent = " " * max(len(start), _SOURCE_COLUMN)
    return [f"{start}  # {first}", *(f"{indent}  # {more}" for more in rest)]
