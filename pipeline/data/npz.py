"""An .npz file of a user's own: arrays by name, read without executing anything.

x_train, y_train [, x_test, y_test]   or   X, y        and   classes, mean, std, where wanted
"""

from __future__ import annotations

import os
import struct
import zlib
from lzma import LZMAError
from math import prod
from tokenize import TokenError
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from pipeline.errors import ConfigError, one_line
from pipeline.system.paths import expanded
from pipeline.system.plain_file import open_regular

if TYPE_CHECKING:
    from typing import IO

    from numpy.typing import NDArray

_PAIRS = {"train": (("x_train", "y_train"), ("X", "y")), "test": (("x_test", "y_test"),)}
_BESIDE = ("classes", "mean", "std")
_NAMES = ("x_train", "y_train", "x_test", "y_test", "X", "y", *_BESIDE)
_SUFFIX = ".npy"
_DAMAGED = (
    BadZipFile, EOFError, LZMAError, MemoryError, NotImplementedError, OverflowError, RuntimeError,
    TokenError, ValueError, struct.error, zlib.error,
)  # fmt: skip
"""What zipfile, the formats that it unpacks, and numpy raise for what is no such file."""


def read_npz(path: str) -> dict[str, Any]:
    """What the file holds, as a user's own function would give it.

    Raises:
        ConfigError: for a file that is not there, damaged, too large, that holds objects, or lacks
            an array.
    """
    arrays = _read(path)
    tree = _with_parts(arrays)
    if "train" not in tree:
        raise ConfigError(f"needs x_train and y_train (or X and y), and holds {_found(arrays)}")
    return tree


def read_examples(path: str) -> tuple[tuple[NDArray[Any], NDArray[Any]], NDArray[Any] | None]:
    """The examples to test on that a file holds, (X, y), and its classes, where it names them:
    x_test and y_test, or X and y, or, where there are no others, x_train and y_train.

    Raises:
        ConfigError: as `read_npz`.
    """
    arrays = _read(path)
    tree = _with_parts(arrays)
    if not tree.keys() & _PAIRS:
        raise ConfigError(f"needs x_test and y_test (or X and y), and holds {_found(arrays)}")
    return tree.get("test") or tree["train"], tree.get("classes")


def _with_parts(arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {name: arrays[name] for name in _BESIDE if name in arrays}
    for part, pairs in _PAIRS.items():
        for x, y in pairs:
            if (x in arrays) != (y in arrays):
                lacks, has = (x, y) if y in arrays else (y, x)
                raise ConfigError(f"holds {has} but no {lacks}")
            if x in arrays:
                tree.setdefault(part, (arrays[x], arrays[y]))
    return tree


def _found(arrays: dict[str, NDArray[Any]]) -> str:
    return ", ".join(sorted(arrays)) or "nothing of that"


def read_inputs(path: str) -> NDArray[Any]:
    """The examples that a file holds, whose targets need not be known: X or x_test, else x_train.

    Raises:
        ConfigError: as `read_npz`.
    """
    arrays = _read(path)
    for name in ("X", "x_test", "x_train"):
        if name in arrays:
            return arrays[name]
    raise ConfigError("needs examples to predict, as X or x_test")


def _read(path: str) -> dict[str, NDArray[Any]]:
    try:
        with open_regular(expanded("data.file", path)) as file, ZipFile(file) as archive:
            return _arrays(archive)
    except OSError as error:
        raise ConfigError(error.strerror or str(error)) from None
    except _DAMAGED as error:
        raise ConfigError(
            f"is damaged or no .npz file: {one_line(error)}; write it by numpy.savez"
        ) from None


def _arrays(archive: ZipFile) -> dict[str, NDArray[Any]]:
    members = {
        name: info
        for info in archive.infolist()
        if (name := info.filename.removesuffix(_SUFFIX)) in _NAMES
    }
    nbytes = sum(info.file_size for info in members.values())
    if nbytes > (has := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise ConfigError(f"holds {nbytes} bytes of arrays, and this machine has {has} of memory")
    found = {}
    for name, info in members.items():
        with archive.open(info) as member:
            found[name] = _array(member, name, info.file_size)
    return found


def _array(member: IO[bytes], name: str, nbytes: int) -> NDArray[Any]:
    """An array in numpy's format, whose header may claim no more than there is."""
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name}: version {version} of numpy's format")
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, by_columns, dtype = read_header(member)
    if dtype.hasobject:
        raise ConfigError(
            f"{name} holds Python objects, which are never loaded: turn them into numbers"
        )
    if prod(shape) * dtype.itemsize != nbytes - member.tell():
        raise ValueError(f"{name}: {nbytes} bytes are no {dtype} of shape {shape}")
    whole = np.frombuffer(member.read(), dtype=dtype)
    return whole.reshape(shape[::-1]).T if by_columns else whole.reshape(shape)
