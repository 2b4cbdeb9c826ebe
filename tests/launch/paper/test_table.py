"""The paper's tables: read right, written as configs that never drift, each a network that is."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from support import REPOSITORY

from launch.paper.configs import (
    CONFIGS,
    config_files,
    config_text,
    count_parameters,
    entry_config,
    scaled_epochs,
    shortened,
    write_configs,
)
from launch.paper.table import (
    Cell,
    Entry,
    Setting,
    Table,
    all_cells,
    entries_of,
    read_tables,
    select,
)
from pipeline.config.config_file import load_config
from pipeline.config.sections import config_tree
from pipeline.data.facts import check_data, data_facts
from pipeline.errors import ConfigError
from pipeline.network.from_config import network_specs

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.sections import Config

TABLES = read_tables()
CELLS = all_cells(TABLES)
ENTRIES = {entry.key: entry for entry in entries_of(CELLS)}
DATA_SETS = sorted({entry.dataset for entry in ENTRIES.values()})


def cell(selector: str) -> Cell:
    (found,) = select(TABLES, selector)
    return found


def entries_for(dataset: str) -> list[Entry]:
    return [entry for entry in ENTRIES.values() if entry.dataset == dataset]


@cache
def config_of(key: str) -> Config:
    return entry_config(ENTRIES[key])


def value(entry: Entry, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config_of(entry.key), section), name)


# --- the configs --------------------------------------------------------------------------


def test_the_configs_are_those_of_the_tables() -> None:
    """After a change of launch/paper/paper.yaml: pipeline-reproduce --write-configs."""
    there = {
        str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
        for path in (REPOSITORY / CONFIGS).rglob("*")
        if path.is_file()
    }
    assert there == config_files(TABLES)


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_every_config_is_a_network_for_its_data(dataset: str) -> None:
    for entry in entries_for(dataset):
        config = load_config(REPOSITORY / CONFIGS / f"{entry.key}.yaml")
        assert config == config_of(entry.key), entry.key
        facts = data_facts(config.data)
        check_data(config.data, facts, batch_norm=config.model.batch_norm)
        assert network_specs(config, facts)[-1].classes == facts.classes, entry.key
        assert config.loss.is_global == entry.backprop, entry.key


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.number)
def test_networks_have_as_many_parameters_as_the_tables_say(table: Table) -> None:
    for one in table.cells:
        printed = one.parameters
        if one.entry.dataset == "cifar100" and one.row == "mlp":
            printed = "28M"  # 27.54M, 27.52M of them weights; the paper prints CIFAR-10's 27M
        places = len(printed.removesuffix("M").partition(".")[2])
        assert f"{count_parameters(one.entry) / 1e6:.{places}f}M" == printed, one.selector


@pytest.mark.parametrize(
    ("selector", "config"),
    [
        ("1/mlp/predsim", "mnist_mlp"), ("4/vgg8b/predsim", "vgg8b"),
        ("4/vgg11b/predsim", "vgg11b"), ("4/vgg11b_3x/predsim", "vgg11b_3x"),
    ],
)  # fmt: skip
def test_the_configs_written_by_hand_say_the_same(selector: str, config: str) -> None:
    by_hand = load_config(REPOSITORY / "configs" / f"{config}.yaml")
    assert config_tree(entry_config(cell(selector).entry)) == config_tree(by_hand)


def test_writing_configs_says_what_changed(tmp_path: Path) -> None:
    assert len(write_configs(TABLES, tmp_path)) == len(ENTRIES)
    spoilt = tmp_path / CONFIGS / "mnist/mlp_pred.yaml"
    spoilt.write_text("model: {}\n", encoding="utf-8")
    assert write_configs(TABLES, tmp_path) == [spoilt]
    assert write_configs(TABLES, tmp_path) == []


def test_a_key_without_a_place_is_refused() -> None:
    entry = cell("1/mlp/pred").entry
    odd = Entry(
        entry.dataset, entry.name, entry.title, entry.loss, entry.figure,
        {**entry.settings, "model.hiden": Setting("3", "nowhere")}, entry.notes,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"has no place for model\.hiden"):
        config_text(odd, [cell("1/mlp/pred")])
    with pytest.raises(ConfigError, match=r"mnist/mlp_pred .*: model\.hiden: unknown key"):
        entry_config(odd)


# --- what the tables say ------------------------------------------------------------------


LOCAL, BIO, BOTH = "glob pred sim predsim", "pred-bio sim-bio predsim-bio", "glob predsim glob+sim"
PRINTED = {
    "1": (LOCAL, """
        3x1024_MLP    2.9M   0.75   0.68   0.80   0.62
        VGG8B         7.3M   0.26   0.40   0.65   0.31
        VGG8B+CO      7.3M   -      -      -      0.26
    """),
    "2": (LOCAL, """
        3x1024_MLP    2.9M   8.37   8.60   9.70   8.54
        VGG8B         7.3M   4.53   5.66   5.12   4.65
        VGG8B(2x)     28M    4.55   5.11   4.92   4.33
        8B(2x)+CO     28M    -      -      -      4.14
    """),
    "3": (LOCAL, """
        3x1024_MLP    2.9M   5.99   7.26   9.80   7.33
        VGG8B         7.3M   1.53   2.22   2.19   1.36
        VGG8B+CO      7.3M   -      -      -      0.99
    """),
    "4": (LOCAL, """
        3x3000_MLP    27M    33.6   32.3   33.5   30.9
        VGG8B         8.9M   5.99   8.40   7.16   5.58
        VGG11B        12M    5.56   8.39   6.70   5.30
        VGG11B(2x)    42M    4.91   7.30   6.66   4.42
        VGG11B(3x)    91M    5.02   7.37   9.34   3.97
        11B(3x)+CO    91M    -      -      -      3.60
    """),
    "5": (BIO, """
        VGG8B         8.9M   9.80   13.39  9.02
        VGG8B(2x)     31M    -      -      7.80
    """),
    "6": (LOCAL, """
        3x3000_MLP    27M    62.6   58.9   62.5   56.9
        VGG8B         9.0M   26.2   29.3   32.6   24.1
        VGG11B        12M    25.2   29.6   30.8   24.1
        VGG11B(2x)    42M    23.4   26.9   28.0   21.2
        VGG11B(3x)    91M    23.7   25.9   28.0   20.1
    """),
    "7": (LOCAL, """
        VGG8B         8.9M   2.29   2.12   1.89   1.74
        VGG8B+CO      8.9M   -      -      -      1.65
    """),
    "8": (LOCAL, """
        VGG8B         12M    33.08  26.83  23.15  20.51
        VGG8B+CO      12M    -      -      -      19.25
    """),
    "9": (BOTH, """
        MNIST,_VGG8B            7.3M   0.26   0.31   0.24
        Fashion-MNIST,_VGG8B    7.3M   4.53   4.65   4.16
        Kuzushiji-MNIST,_VGG8B  7.3M   1.53   1.36   1.13
        CIFAR-10,_VGG11B        12M    5.56   5.30   4.33
        CIFAR-100,_VGG11B       12M    25.2   24.1   22.2
        SVHN,_VGG8B             8.9M   2.29   1.74   1.95
        STL-10,_VGG8B           12M    33.1   20.5   25.6
    """),
}  # fmt: skip
"""Typed from the paper, not from paper.yaml: what its authors trained, as they print it."""


@pytest.mark.parametrize("number", PRINTED)
def test_numbers_are_those_that_the_paper_prints(number: str) -> None:
    losses, text = PRINTED[number]
    rows = [line.split() for line in text.split("\n") if line.strip()]
    printed = [
        (label.replace("_", " "), parameters, loss, error)
        for label, parameters, *errors in rows
        for loss, error in zip(losses.split(), errors, strict=True)
        if error != "-"
    ]
    (table,) = [table for table in TABLES if table.number == number]
    ours = [(one.label, one.parameters, one.loss, one.error) for one in table.cells]
    assert ours == printed


def test_table_9_shows_entries_of_the_other_tables() -> None:
    assert [table.number for table in TABLES] == list(PRINTED)
    assert len(ENTRIES) == len(CELLS) - 2 * 7  # of its three columns only glob+sim is new
    assert cell("9/stl10/glob").entry == cell("8/vgg8b/glob").entry
    assert cell("9/cifar10/predsim").entry == cell("4/vgg11b/predsim").entry
    assert cell("9/cifar10/glob+sim").parameters == "12M"


@pytest.mark.parametrize(
    ("row", "dropout", "lr", "epochs", "width", "cutout"),
    [
        ("1/mlp", 0.1, 5e-4, 100, None, 0), ("1/vgg8b", 0.2, 5e-4, 100, 1024, 0),
        ("1/vgg8b_cutout", 0.2, 5e-4, 100, 1024, 14),
        ("2/mlp", 0.025, 5e-4, 200, None, 0), ("2/vgg8b", 0.1, 5e-4, 200, 1024, 0),
        ("2/vgg8b_2x", 0.2, 3e-4, 200, 4096, 0), ("2/vgg8b_2x_cutout", 0.2, 3e-4, 200, 4096, 14),
        ("3/mlp", 0.2, 5e-4, 100, None, 0), ("3/vgg8b", 0.3, 5e-4, 100, 1024, 0),
        ("3/vgg8b_cutout", 0.15, 5e-4, 100, 1024, 14),
        ("4/mlp", 0.1, 5e-4, 400, None, 0), ("4/vgg8b", 0.2, 5e-4, 400, 2048, 0),
        ("4/vgg11b", 0.2, 5e-4, 400, 2048, 0), ("4/vgg11b_2x", 0.25, 3e-4, 400, 4096, 0),
        ("4/vgg11b_3x", 0.3, 3e-4, 400, 4096, 0),
        ("4/vgg11b_3x_cutout", 0.3, 3e-4, 400, 4096, 16),
        ("5/vgg8b", 0.05, 5e-4, 400, 4096, 0), ("5/vgg8b_2x", 0.1, 3e-4, 400, 4096, 0),
        ("6/mlp", 0.025, 5e-4, 400, None, 0), ("6/vgg8b", 0.05, 5e-4, 400, 4096, 0),
        ("6/vgg11b", 0.05, 5e-4, 400, 4096, 0), ("6/vgg11b_2x", 0.1, 3e-4, 400, 4096, 0),
        ("6/vgg11b_3x", 0.15, 3e-4, 400, 4096, 0),
        ("7/vgg8b", 0.3, 3e-4, 100, 2048, 0), ("7/vgg8b_cutout", 0.15, 3e-4, 100, 2048, 16),
        ("8/vgg8b", 0.1, 5e-4, 400, 2048, 0), ("8/vgg8b_cutout", 0.1, 5e-4, 400, 2048, 48),
        ("9/mnist", 0.2, 5e-4, 100, 1024, 0), ("9/cifar100", 0.05, 5e-4, 400, 4096, 0),
    ],
)  # fmt: skip
def test_hyper_parameters(
    row: str, dropout: float, lr: float, epochs: int, width: int | None, cutout: int
) -> None:
    """Section 4, per row; the same for every loss of the row."""
    for one in select(TABLES, row):
        assert value(one.entry, "model.dropout") == dropout
        assert value(one.entry, "optimizer.lr") == lr
        assert value(one.entry, "schedule.epochs") == epochs == one.entry.epochs
        assert ("loss.dim_in_decoder" in one.entry.settings) == (width is not None)
        assert width is None or value(one.entry, "loss.dim_in_decoder") == width
        assert value(one.entry, "data.cutout") == cutout


@pytest.mark.parametrize(
    ("dataset", "padding", "flip"),
    [
        ("mnist", 2, False), ("fashion_mnist", 2, True), ("kmnist", 0, False),
        ("cifar10", 4, True), ("cifar100", 4, True), ("svhn", 0, False), ("stl10", 0, False),
    ],
)  # fmt: skip
def test_augmentation(dataset: str, padding: int, flip: bool) -> None:
    found = entries_for(dataset)
    assert found
    for entry in found:
        assert value(entry, "data.name") == dataset
        assert (value(entry, "data.crop_padding"), value(entry, "data.flip")) == (padding, flip)


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_what_follows_from_the_loss(dataset: str) -> None:
    for entry in entries_for(dataset):
        config = config_of(entry.key)
        similar = entry.loss.removesuffix("-bio") in ("sim", "predsim", "glob+sim")
        assert config.nonlinearity == ("leaky_relu" if similar else "relu"), entry.key
        assert config.loss.bio == entry.loss.endswith("-bio"), entry.key
        assert config.loss.target_projection == 128, entry.key
        if config.loss.local == "predsim":
            assert config.loss.beta == (0.01 if config.loss.bio else 0.99), entry.key
        few = entry.dataset == "cifar100" and similar
        data = config.data
        limited = (data.classes_per_batch, data.classes_per_batch_until_epoch, data.class_order)
        assert limited == ((20, 200, "scan") if few else (None, None, "drawn")), entry.key


def test_milestones_are_at_the_shares_of_section_4() -> None:
    for key in ENTRIES:
        schedule = config_of(key).schedule
        shares = [100 * milestone / schedule.epochs for milestone in schedule.milestones]
        assert shares == pytest.approx([50, 75, 88.25, 93.9], abs=0.8), key
        assert schedule.factor == 0.25, key


def test_every_value_has_a_source() -> None:
    for entry in ENTRIES.values():
        assert all(setting.source for setting in entry.settings.values())


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        ("4/vgg11b_3x_cutout/predsim", "no other rate"),
        ("2/vgg8b_2x/pred", "2096"),
        ("7/vgg8b/sim", "come from runs of 100"),
        ("4/vgg11b_3x/sim", "5.60 % one epoch earlier"),
        ("6/mlp/pred", "27M is the count of the ten classes"),
        ("6/vgg8b/sim", "figure 3"),
        ("6/vgg8b/sim", "13.1 of them together"),
        ("9/cifar100/glob+sim", "13.1 of them together"),
    ],
)
def test_what_the_paper_leaves_open_is_said(selector: str, says: str) -> None:
    text = config_text(cell(selector).entry, [cell(selector)])
    comments = " ".join(line.strip("# ") for line in text.splitlines() if line.startswith("#"))
    assert says in comments


def test_only_what_a_row_leaves_open_is_said() -> None:
    assert not any("cutout" in note for note in cell("4/vgg11b_3x/predsim").entry.notes)
    assert not any("outlier" in note for note in cell("4/vgg11b_3x/predsim").entry.notes)


# --- selectors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "cells"),
    [
        ("1", 9), ("1/", 9), ("1/mlp", 4), ("1/mlp/predsim", 1), ("4/vgg11b_3x_cutout", 1),
        ("5/vgg8b/pred-bio", 1), ("5/vgg8b/pred_bio", 1), ("9/mnist/glob_sim", 1),
    ],
)  # fmt: skip
def test_selectors(selector: str, cells: int) -> None:
    assert len(select(TABLES, selector)) == cells


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        ("", "there is no table ; tables: 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("10/mlp", "10/mlp: there is no table 10; tables: 1, 2,"),
        ("1/wrn", "1/wrn: Table 1 has no row wrn; rows: mlp, vgg8b, vgg8b_cutout"),
        ("1/mlp/bio", "1/mlp/bio: row mlp of Table 1 has no loss bio; losses: glob, pred, sim, "),
        ("1/mlp/pred/x", "row mlp of Table 1 has no loss pred/x"),
    ],
)
def test_a_selector_of_nothing_says_what_there_is(selector: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        select(TABLES, selector)
    assert says in str(caught.value)


# --- fewer epochs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "scale", "epochs", "milestones"),
    [
        ("1/mlp/pred", 1.0, 100, (50, 75, 89, 94)),
        ("1/mlp/pred", 0.1, 10, (5, 7, 8, 9)),
        ("1/mlp/pred", 0.05, 5, (2, 3, 4)),
        ("1/mlp/pred", 0.02, 2, (1,)),
        ("1/mlp/pred", 0.0001, 1, ()),
        ("4/vgg8b/pred", 0.1, 40, (20, 30, 35, 37)),
        ("2/mlp/pred", 2.0, 400, (200, 300, 350, 376)),
    ],
)
def test_epochs_and_milestones_scale_together(
    selector: str, scale: float, epochs: int, milestones: tuple[int, ...]
) -> None:
    whole = cell(selector).entry
    entry = shortened(whole, scaled_epochs(whole, scale))
    schedule = entry_config(entry).schedule
    assert (schedule.epochs, schedule.milestones) == (epochs, milestones)
    assert (entry.key, entry.title) == (whole.key, whole.title)


@pytest.mark.parametrize(("scale", "until"), [(1.0, 200), (0.01, 2), (0.0025, 1)])
def test_few_classes_until_the_first_drop(scale: float, until: int) -> None:
    whole = cell("6/vgg8b/sim").entry
    entry = shortened(whole, scaled_epochs(whole, scale))
    assert entry_config(entry).data.classes_per_batch_until_epoch == until
