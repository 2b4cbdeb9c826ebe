"""A first config for data that have been looked at: a small network that learns something at once.

the data ─▶ Seen: what they are ─▶ rows: key, value, why ─▶ YAML, checked as a run checks it
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from statistics import median
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

from launch.job import Options
from launch.plan.checks import check_job
from pipeline.config.config_file import config_of
from pipeline.config.data import DATA_SETS, DataConfig
from pipeline.config.yaml_text import word_for
from pipeline.data.facts import data_facts, data_root, held_back, keys_of
from pipeline.data.image_list import list_images, shortened
from pipeline.data.image_reading import ImageError, header_of
from pipeline.data.own_data import read_own
from pipeline.errors import ConfigError, did_you_mean
from pipeline.system.paths import expanded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.data.facts import DataFacts
    from pipeline.data.image_list import ImageFolder
    from pipeline.data.image_reading import ImageHeader

_MOST_LOOKED_AT = 200
"""Image files of which the headers are read."""
_PICTURE = 64
"""Pixels of a side up to which images are shown as they are, and to which photographs are
scaled."""
_LEAST_SIDE = 8
"""Pixels of a side from which convolutions have something to look at."""
_FEW, _MANY = 5_000, 20_000
"""Training examples."""
_FIXED = "\u00a0"
"""A space at which no line is broken: a shape stays together."""
_SHARE = 0.2
"""Of the training examples, to test on where there are no others."""


class Row(NamedTuple):
    """A key of a section with its value, and why it has that."""

    key: str
    value: Any
    why: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """Data that were looked at. `about`: what was seen, in a line; `rows`: which data they are, and
    how they are read; `facts`: of them, as they are read so."""

    about: str
    rows: tuple[Row, ...]
    facts: DataFacts


def first_config(data: str) -> str:
    """A config as text, of a folder of images, an .npz file, or a data set by its name.

    Raises:
        ConfigError: where there are no such data, or no built-in network can learn from them.
    """
    text = _text(_seen(data))
    check_job(data, config_of(text, "pipeline-init"), Options(None, single=True, dry_run=True))
    return text


# --- a look at the data ---------------------------------------------------------------------


def _seen(data: str) -> Seen:
    keys = keys_of(data)
    name = keys.get("name")
    if name == "imagefolder" and "root" in keys:
        return _seen_folder(data)
    if name is not None and name not in DATA_SETS:
        raise ConfigError(_not_known(data))
    config = DataConfig.model_validate(keys)
    rows = [Row(key, value) for key, value in keys.items()]
    if name is not None:
        facts = data_facts(config)
        return Seen(_about(data, facts, ()), (*rows, *_moved(facts)), facts)
    own = read_own(config)
    facts = data_facts(config, own)
    if not facts.mean and facts.dtype != "int64":
        rows.append(Row("normalise", "measured", "mean and deviation, of up to 10,000 examples"))
    return Seen(_about(data, facts, own.names), (*rows, *_moved(facts)), facts)


def _not_known(data: str) -> str:
    """What is wrong with data that are not there, or are in another form."""
    if expanded("DATA", data).exists():
        return (
            f"{data}: is a file, and only an .npz file is read: one with X and y, or x_train, "
            "y_train, x_test, y_test; of images give a folder of folders, of anything else a "
            "function (docs/data.md)"
        )
    return (
        f"{data}: is no folder of images, no .npz file, and no data set by name; these are "
        f"{', '.join(DATA_SETS)}{did_you_mean(data, DATA_SETS)}"
    )


def _seen_folder(data: str) -> Seen:
    folder = list_images(data_root(DataConfig(name="imagefolder", root=data)))
    headers = _headers(folder)
    side = int(median(min(header.width, header.height) for header in headers))
    size = min(side, _PICTURE)
    rows = [
        Row("name", "imagefolder"),
        Row("root", data, _parts(folder)),
        Row("size", size, f"pixels of a side; the images have {_sizes(headers, side)}"),
    ]
    if side <= _PICTURE:
        rows.append(Row("resize", size, "nothing of a square image is cut off"))
        rows.append(Row("random_crop", False, "true for photographs"))
    grey = all(header.is_grey for header in headers)
    rows.append(Row("channels", 1 if grey else 3, "grey" if grey else "colour"))
    if any(header.is_deep for header in headers):
        rows.append(Row("white", 65535, "the value that is white, as it is in 16 bits: check it"))
    rows.append(Row("normalise", "measured", "mean and deviation, of up to 10,000 images"))
    config = DataConfig.model_validate({row.key: row.value for row in rows})
    facts = data_facts(config, folder)
    moved = _moved(facts) if side <= _PICTURE else []  # else random parts do that
    return Seen(_about(data, facts, folder.classes), (*rows, *moved), facts)


def _parts(folder: ImageFolder) -> str:
    """What is tested on, and what is not read."""
    said = [f"tested on its {folder.test.name}/"] if folder.test.name else []
    if folder.unread:
        names = shortened(f"{name}/" for name in folder.unread)
        said.append(f"{names} {'is' if len(folder.unread) == 1 else 'are'} left alone")
    return ", ".join(said)


def _headers(folder: ImageFolder) -> list[ImageHeader]:
    """Of files spread over the training images, but for those that can't be read, which a run
    names."""
    paths = [folder.training.path(file) for file in folder.training.files]
    headers: list[ImageHeader] = []
    for path in paths[:: 1 + len(paths) // _MOST_LOOKED_AT]:
        with suppress(ImageError):
            headers.append(header_of(path))
    if not headers:
        raise ConfigError(f"{folder.training.folder}: none of the images can be read: {paths[0]}")
    return headers


def _sizes(headers: Sequence[ImageHeader], side: int) -> str:
    first = headers[0]
    alike = all((each.width, each.height) == (first.width, first.height) for each in headers)
    return f"{first.width} × {first.height}" if alike else f"shorter sides of about {side}"


def _moved(facts: DataFacts) -> list[Row]:
    """Images that are seen a little aside, in training."""
    if not _is_image(facts):
        return []
    pixels = max(1, min(facts.shape[1:]) // 14)
    return [Row("crop_padding", pixels, "each training image is moved by up to so many pixels")]


def _is_image(facts: DataFacts) -> bool:
    is_large = len(facts.shape) == 3 and min(facts.shape[1:]) >= _LEAST_SIDE
    return is_large and facts.dtype != "int64"


def _about(data: str, facts: DataFacts, names: Sequence[str]) -> str:
    tested = f", {facts.test_images:,} to test on" if facts.test_images else ""
    classes = f"{facts.classes} classes" if facts.classes else "targets are numbers"
    named = f" ({shortened(names)})" if names else ""
    shape = f"{_FIXED}×{_FIXED}".join(map(str, facts.shape))
    return (
        f"{data}: {facts.train_images:,} examples to train on{tested}; {classes}{named}; each is "
        f"{facts.dtype} of {shape}."
    )


# --- what is chosen for them ----------------------------------------------------------------


def _text(seen: Seen) -> str:
    facts, rows = seen.facts, list(seen.rows)
    if not facts.test_images:
        rows.append(Row("validation", _SHARE, "this share is kept from training, and tested on"))
        kept = held_back(facts.train_images, _SHARE)
        facts = replace(facts, train_images=facts.train_images - kept)
    rows.append(Row("batch_size", _batch_size(facts.train_images)))
    sections = {
        "model": _model(facts),
        "loss": _loss(facts),
        "optimizer": _optimizer(facts),
        "schedule": _schedule(facts),
        "data": rows,
        "runtime": [Row("seed", 1, "another: other initial weights, another order of images")],
    }
    about = wrap(
        seen.about, 96, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )
    lines = [
        *(line.replace(_FIXED, " ") for line in about),
        "# Written by pipeline-init; docs/config.md has every key. Other networks, losses, rules:",
        "# pipeline-launch --list models (losses, rules).",
        "",
    ]
    for section, chosen in sections.items():
        lines += [f"{section}:", *map(_line, chosen)]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    said = f"  {row.key}: {word_for(row.value)}"
    return f"{said:<42} # {row.why}" if row.why else said


def _model(facts: DataFacts) -> list[Row]:
    if facts.dtype == "int64":
        raise ConfigError(
            "data: examples are token ids, which no built-in network takes: write a network of "
            "your own (docs/networks.md), as examples/text_data.py does"
        )
    many = facts.train_images >= _MANY
    dropout = "more where the training error is far below the tested one"
    if not _is_image(facts) or (many and facts.shape[0] == 1):
        return [
            Row("name", "mlp", "fully connected layers"),
            Row("hidden_layers", 2, "each learns by itself, and can be a process of its own"),
            Row("hidden", 1024 if many else 256, "units of each"),
            Row("dropout", 0.1, dropout),
        ]
    side = min(facts.shape[1:])
    layers: list[Any] = [32, "M", 64, "M", 128, "M", 128, "M"]
    if side <= 48:
        layers = [32, 64, "M", 128, "M", 128, "M"] if side > 16 else [32, 64, "M", 64, "M"]
    return [
        Row("name", "vgg", "a convolution a layer; larger networks: vgg8b, resnet18"),
        Row("layers", layers, "channels; M halves the sides"),
        Row("hidden_layers", 1, "fully connected, after the convolutions"),
        Row("hidden", 256 if side > 16 else 128, "its units"),
        Row("dropout", 0.05, dropout),
    ]


def _loss(facts: DataFacts) -> list[Row]:
    if not facts.classes:
        return [Row("name", "glob", "global backprop of the squared error: targets are numbers")]
    return [
        Row("name", "predsim", "of each layer: a local classifier, and similarity matching"),
        Row("beta", 0.99, "the weight of the latter, as in the paper"),
    ]


def _optimizer(facts: DataFacts) -> list[Row]:
    why = "learning rate of the first epoch"
    return [Row("name", "adam"), Row("lr", 2e-3 if facts.train_images < _FEW else 5e-4, why)]


def _schedule(facts: DataFacts) -> list[Row]:
    known = ((500, 50), (_FEW, 20), (_MANY, 15))
    epochs = next((epochs for most, epochs in known if facts.train_images < most), 10)
    return [
        Row("epochs", epochs, "passes over the training set; more take longer, and learn more"),
        Row("milestones", [0.5, 0.75, 0.9], "the rate drops after these shares of them"),
        Row("factor", 0.25, "to this share of what it was"),
    ]


def _batch_size(images: int) -> int:
    """Of so many training images, such that none is left alone: its mean would be itself."""
    known = ((500, 16), (_FEW, 32), (_MANY, 64))
    wanted = next((size for most, size in known if images < most), 128)
    return next(size for size in count(min(wanted, images)) if images % size != 1)
