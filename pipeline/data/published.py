"""The published data sets, as their files hold them: fetched by torchvision, refused by name.

The only file that imports torchvision, inside the function that needs it: that takes 5 s. MNIST
and the sets in its format are read here, since torchvision takes whatever lies under their files'
names for them; the sums of the others it checks itself, before it reads them.
"""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager, suppress
from http.client import HTTPException
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from pipeline.data.facts import data_root, known_facts
from pipeline.errors import DATA_ROOT, SET, ConfigError, cut
from pipeline.system.plain_file import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.config.data import DataConfig
    from pipeline.data.facts import DataFacts

Pair: TypeAlias = "tuple[NDArray[np.uint8], NDArray[np.int64]]"

_IDX_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
_IDX_KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
_SVHN_TRAIN = 73257
"""Images of SVHN's first training file; the others lie in its extra set."""
_DOWNLOAD_TIMEOUT_S = 60.0  # of one read, not of the whole file
_DAMAGED = (
    AssertionError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError,
    HTTPException,
)  # fmt: skip
"""What torchvision raises where a set is missing, damaged or can't be fetched."""
_ROOT = (DATA_ROOT, ")")
"""The end of a cure, in parentheses."""


class _Split(NamedTuple):
    """A part of a set as torchvision asks for it, and how many images it has."""

    arguments: dict[str, Any]
    images: int


def read_published(config: DataConfig) -> tuple[Pair, Pair]:
    """Training and test images (N, C, H, W) and labels (N,), cut to the limits of `config`.

    Raises:
        ConfigError: for a set that is missing, damaged or can't be fetched, or whose files hold
            other images than they should.
    """
    facts = known_facts(config.name)
    training, test = _splits(config.name, facts)
    return (
        _read(config, facts, training, config.train_limit),
        _read(config, facts, test, config.test_limit),
    )


def _splits(name: str, facts: DataFacts) -> tuple[tuple[_Split, ...], tuple[_Split, ...]]:
    train, test = facts.train_images, facts.test_images
    if name == "svhn":
        parts = (
            _Split({"split": "train"}, _SVHN_TRAIN),
            _Split({"split": "extra"}, train - _SVHN_TRAIN),
        )
        return parts, (_Split({"split": "test"}, test),)
    if name == "stl10":
        return (_Split({"split": "train"}, train),), (_Split({"split": "test"}, test),)
    return (_Split({"train": True}, train),), (_Split({"train": False}, test),)


def _read(
    config: DataConfig, facts: DataFacts, splits: Sequence[_Split], limit: int | None
) -> Pair:
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    for split in splits:
        # so that a limit spares the 1.3 GB of svhn's extra images
        if limit is None or sum(map(len, labels)) < limit:
            pixels, targets = _idx_or_opened(config, facts, split)
            _check(config, facts, split, pixels, targets)  # before a limit hides what is missing
            images.append(pixels[:limit])
            labels.append(targets[:limit])
    whole = np.empty((sum(map(len, images)), *facts.shape), dtype=np.uint8)
    return np.concatenate(images, out=whole)[:limit], np.concatenate(labels)[:limit]


def _check(
    config: DataConfig,
    facts: DataFacts,
    split: _Split,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> None:
    shapes = (images.shape, labels.shape) == ((split.images, *facts.shape), (split.images,))
    if not shapes or not np.isin(labels, np.arange(facts.classes)).all():
        raise ConfigError(
            f"data.name {config.name}: expected {split.images} images of shape {facts.shape} with "
            f"a label from 0 to {facts.classes - 1} each in {data_root(config)}, found "
            f"{images.shape} and {len(labels)} labels up to {labels.max(initial=0)}; fetch the "
            "data set again or use the copy in another folder (",
            *_ROOT,
        )


# --- MNIST and the sets in its format -----------------------------------------------------


def _idx_or_opened(config: DataConfig, facts: DataFacts, split: _Split) -> Pair:
    folder = _IDX_FOLDERS.get(config.name)
    if folder is None:
        opened = _open(config, split)
        targets = opened.labels if "split" in split.arguments else opened.targets
        images: NDArray[np.uint8] = np.asarray(opened.data)
        if images.shape[-1] == 3:  # channels come last
            images = images.transpose(0, 3, 1, 2)
        return images, np.asarray(targets, dtype=np.int64)
    raw = data_root(config) / folder / "raw"
    names = [f"{part}-{kind}" for part in ("train", "t10k") for kind in _IDX_KINDS]
    if not all(os.path.lexists(raw / name) for name in names):
        _open(config, split)  # fetches them
    part = "train" if split.arguments["train"] else "t10k"
    pixels, labels = (
        _read_idx(config, raw / f"{part}-{kind}", (split.images, *sides))
        for kind, sides in zip(_IDX_KINDS, (facts.shape[1:], ()), strict=True)
    )
    return pixels[:, None], labels.astype(np.int64)


def _read_idx(config: DataConfig, path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The bytes behind a header of two zeros, the type (8: uint8), the number of sides, each side
    in four bytes."""
    header = bytes((0, 0, 8, len(shape))) + b"".join(side.to_bytes(4, "big") for side in shape)
    try:
        with open_regular(path) as file:
            found = file.read(len(header))
            data = file.read(prod(shape) + 1) if found == header else b""
            nbytes = file.seek(0, 2)
    except OSError as error:
        raise _damaged(config, path, error.strerror or str(error)) from None
    if found[:4] == header[:4] and len(found) == len(header) and found != header:
        sides = [int.from_bytes(found[at : at + 4], "big") for at in range(4, len(found), 4)]
        why = f"it holds {_product(sides)}, expected {_product(shape)}"
        raise _damaged(config, path, why)
    if len(data) != prod(shape):
        expected = len(header) + prod(shape)
        why = f"it is no such file of {expected} bytes ({nbytes} bytes, beginning {found[:4]!r})"
        raise _damaged(config, path, why)
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _product(sides: Sequence[int]) -> str:
    return " × ".join(map(str, sides))


def _damaged(config: DataConfig, path: Path, why: str) -> ConfigError:
    again = () if config.download else (" with ", SET, " data.download=true")
    return ConfigError(
        f"data.name {config.name}: {path} is damaged: {why}; delete it, and it is fetched again",
        *again,
        ", or use the copy in another folder (",
        *_ROOT,
    )


# --- what torchvision reads ---------------------------------------------------------------


def _open(config: DataConfig, split: _Split) -> Any:
    from torchvision import datasets

    known = {
        "mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST,
        "kmnist": datasets.KMNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100,
        "svhn": datasets.SVHN, "stl10": datasets.STL10,
    }  # fmt: skip
    kind, root = known[config.name], data_root(config)
    was_there = os.path.exists(root)  # unlike Path's, of any path
    try:
        with _network_timeout():
            return kind(str(root), download=config.download, **split.arguments)
    except _DAMAGED as error:
        if not was_there:
            _remove_empty(root)
        raise _unavailable(config, _first_wrong(kind, config, split), error) from error


def _remove_empty(root: Path) -> None:
    """The folders that torchvision has made for files that it did not get."""
    for folder, _, _ in os.walk(root, topdown=False):
        with suppress(OSError):  # what is not empty stays
            os.rmdir(folder)


def _first_wrong(kind: Any, config: DataConfig, split: _Split) -> str:
    """The file of the set whose sum is another, as a clause; empty where none is there at all."""
    from torchvision.datasets.utils import check_integrity

    folder = data_root(config) / getattr(kind, "base_folder", "")
    if config.name == "svhn":
        listed = [kind.split_list[split.arguments["split"]][1:]]
    else:
        listed = [*getattr(kind, "train_list", ()), *getattr(kind, "test_list", ())]
    for name, digest in listed:
        path = folder / name
        if os.path.exists(path) and not check_integrity(str(path), digest):
            return f"{path} is damaged; "
    return ""


@contextmanager
def _network_timeout() -> Iterator[None]:
    # torchvision opens its URLs without one
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _unavailable(config: DataConfig, damaged: str, error: Exception) -> ConfigError:
    problem, cure = "can't be read from or fetched into", "check the network"
    if not config.download:
        problem, cure = "missing or damaged, with data.download false, in", "set data.download true"
    said = cut(" ".join(str(error).split()) or type(error).__name__, 240)
    return ConfigError(
        f"data.name {config.name}: {problem} {data_root(config)} ({damaged}{said}); {cure}, or "
        "name the folder where it lies (",
        *_ROOT,
        ", or use data.name digits or synthetic, which need no download",
    )
