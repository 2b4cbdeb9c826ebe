"""Tables 1 to 9 of Nøkland & Eidnes (2019) as data: `paper.yaml`, resolved into what to train.

    cell    one number of a table: table, row, loss; the error that the paper prints there
    entry   one run: every setting with its source; two cells may share one (Table 9)

Values are kept in the words of the table until a config is made of them, so that 0.80 stays 0.80.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.yaml_file import load_words
from pipeline.config.yaml_text import value_of
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TABLE = Path(__file__).with_name("paper.yaml")
_BIO, _CUTOUT = "_bio", "_cutout"


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of a config, as YAML, and where it comes from."""

    text: str
    source: str

    @property
    def value(self) -> Any:
        """What the text means."""
        return value_of(self.text)


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of the paper.

    `figure`: the picture that its curves belong to, shared by the losses of a network.
    `notes`: what the paper leaves open about it.
    """

    dataset: str
    name: str
    title: str
    loss: str
    figure: str
    settings: Mapping[str, Setting]
    notes: tuple[str, ...]

    @property
    def key(self) -> str:
        """`mnist/mlp_predsim`: unique, and its path below configs/paper and runs/paper."""
        return f"{self.dataset}/{self.name}"

    @property
    def backprop(self) -> bool:
        """Whether it needs a global gradient, and so one process."""
        return self.loss.startswith("glob")

    @property
    def epochs(self) -> int:
        """How long the paper trained."""
        return int(self.settings["schedule.epochs"].value)


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a table: test error in percent and size of the network, as printed."""

    table: str
    row: str
    label: str
    loss: str
    error: str
    parameters: str
    entry: Entry

    @property
    def selector(self) -> str:
        """What the command line calls it: `1/mlp/predsim`."""
        return f"{self.table}/{self.row}/{self.loss}"


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the paper, its cells row by row."""

    number: str
    title: str
    cells: tuple[Cell, ...]


def read_tables(path: Path | None = None) -> tuple[Table, ...]:
    """The paper's tables, or those of another file of the same form."""
    tree = load_words(path or TABLE)
    return tuple(_table(tree, number) for number in tree["tables"])


def all_cells(tables: Iterable[Table]) -> list[Cell]:
    """Every cell, in the paper's order."""
    return [cell for table in tables for cell in table.cells]


def entries_of(cells: Iterable[Cell]) -> list[Entry]:
    """What to train for these cells: each entry once."""
    return list({cell.entry.key: cell.entry for cell in cells}.values())


def select(tables: Sequence[Table], selector: str) -> list[Cell]:
    """The cells that TABLE[/ROW[/LOSS]] names; a loss may be written with _ for - and +.

    Raises:
        ConfigError: naming what there is, where nothing has this name.
    """
    number, row, loss = (*selector.rstrip("/").split("/", 2), "", "")[:3]
    numbers = [table.number for table in tables]
    if number not in numbers:
        raise ConfigError(f"{selector}: there is no table {number}; tables: {', '.join(numbers)}")
    cells = list(tables[numbers.index(number)].cells)
    where = f"Table {number}"
    if row:
        cells = _narrowed(cells, "row", row, where, selector)
        where = f"row {row} of {where}"
    return _narrowed(cells, "loss", loss, where, selector) if loss else cells


def _narrowed(cells: Sequence[Cell], what: str, name: str, where: str, selector: str) -> list[Cell]:
    found = [cell for cell in cells if _plain(getattr(cell, what)) == _plain(name)]
    if not found:
        names = ", ".join(dict.fromkeys(getattr(cell, what) for cell in cells))
        plural = {"row": "rows", "loss": "losses"}[what]
        raise ConfigError(f"{selector}: {where} has no {what} {name}; {plural}: {names}")
    return found


def _plain(name: str) -> str:
    """A name as it appears in file names."""
    return name.replace("-", "_").replace("+", "_")


def _table(tree: Mapping[str, Any], number: str) -> Table:
    table = tree["tables"][number]
    cells = [
        _cell(tree, number, row, loss, error)
        for row, facts in table["rows"].items()
        for loss, error in facts["errors"].items()
    ]
    return Table(number, table["title"], tuple(cells))


def _cell(tree: Mapping[str, Any], number: str, row: str, loss: str, error: str) -> Cell:
    label = tree["tables"][number]["rows"][row]["label"]
    table_of, _, row_of = tree["tables"][number]["rows"][row].get("same", "").partition("/")
    table, name = tree["tables"][table_of or number], row_of or row
    rows = _row_and_base(table, name)
    entry = _entry(tree, table, name, loss)
    return Cell(number, row, label, loss, error, rows[-1]["par"], entry)


def _row_and_base(table: Mapping[str, Any], row: str) -> list[Mapping[str, Any]]:
    facts = table["rows"][row]
    return [facts, *(_row_and_base(table, facts["like"]) if "like" in facts else ())]


def _entry(tree: Mapping[str, Any], table: Mapping[str, Any], row: str, loss: str) -> Entry:
    rows = _row_and_base(table, row)
    dataset = tree["datasets"][table["dataset"]]
    parts = [
        *rows,
        *(part["columns"][loss] for part in (*rows, dataset) if loss in part.get("columns", ())),
        tree["columns"][loss],
        {"settings": tree["networks"][rows[-1]["network"]]},
        dataset,
        {"settings": tree["everywhere"]},
    ]
    # vgg8b_cutout: in the name of an entry the loss stands between vgg8b and _cutout
    base = row.removesuffix(_CUTOUT)
    form = row[len(base) :]
    bio = _BIO if loss.endswith("-bio") else ""
    settings: dict[str, Setting] = {}
    for part in parts:
        for key, (value, source) in part.get("settings", {}).items():
            text = value if isinstance(value, str) else f"[{', '.join(value)}]"
            settings.setdefault(key, Setting(text, source))  # the first part that has it wins
    return Entry(
        dataset=table["dataset"],
        name=f"{base}_{_plain(loss)}{form}",
        title=f"{dataset['title']}, {rows[0]['label']}, {loss}",
        loss=loss,
        figure=f"{table['dataset']}_{row}{bio}",
        settings=settings,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.get("notes", ()))),
    )
