"""Data of a user's own: what a function of theirs gives (`data.factory`), or a file (`data.file`).

    {"train": part, "test": part, "classes": names, "mean": numbers, "std": numbers}
    (train, test)                short for {"train": train, "test": test}
    train                        short for {"train": train}

A part is a pair (X, y) of arrays or tensors, or a map-style Dataset (`__len__`, and `__getitem__`
that gives a pair), which is read once, from the first example to the last. All is held in memory,
so that batches are drawn by position alone.

Legend of shapes: n examples; shape and target_shape of one example, without n.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.model import MAX_UNITS
from pipeline.data.npz import read_npz
from pipeline.data.own_arrays import (
    Array,
    Examples,
    check_alike,
    checked_inputs,
    checked_targets,
    count_classes,
)
from pipeline.errors import ConfigError, cut, one_line
from pipeline.system.named_object import called, named_object, naming

if TYPE_CHECKING:
    from pipeline.config.data import DataConfig

_KEYS = ("train", "test", "classes", "mean", "std")
_FORMS = (
    "give (X, y), (train, test) of such pairs or of map-style Datasets, or a dict with "
    f"{', '.join(_KEYS)}"
)


@dataclass(frozen=True, slots=True)
class OwnData:
    """Checked data of a user's own. `classes`: how many there are, 0 where targets are numbers;
    `names`: theirs, empty where they have none. `mean`, `std`: as given, or empty. `notes`: what
    the user should know."""

    training: Examples
    test: Examples | None = None
    classes: int = 0
    names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """One more than the largest token id; 0 where examples are no token ids."""
        if self.training.x.dtype != np.int64:
            return 0
        parts = [part.x for part in (self.training, self.test) if part]
        return 1 + max(int(x.max()) for x in parts)


def read_own(config: DataConfig) -> OwnData:
    """Call `data.factory`, or read `data.file`, and check what it gives.

    Raises:
        ConfigError: naming where the data are from, the part, what is wrong and what to do.
    """
    named = f"data.factory {config.factory}" if config.factory else f"data.file {config.file}"
    with naming(named):
        if config.factory:
            given = called(named_object(config.factory), config.kwargs or {})
        else:
            given = read_npz(str(config.file))
        # what it gives may run a user's code, too: a Dataset's
        found: OwnData = called(own_data, {"given": given})
    return found


def own_data(given: Any) -> OwnData:
    """What a user has given, in any of the forms above, as checked arrays.

    Raises:
        ConfigError: naming the part, what is wrong and what to do; and whatever a Dataset raises.
    """
    tree = _tree(given)
    notes: list[str] = []
    training = _examples(tree["train"], "train", notes)
    test = None if tree.get("test") is None else _examples(tree["test"], "test", notes)
    names, count = _named_classes(tree.get("classes"))
    classes = count_classes(training.y, count)
    if test:
        check_alike(training, test, classes)
    mean, std = (_numbers(tree.get(key), key) for key in ("mean", "std"))
    if len(mean) != len(std):
        raise ConfigError(f"{len(mean)} numbers of mean and {len(std)} of std: give as many")
    return OwnData(training, test, classes, names, mean, std, tuple(notes))


def examples_to_test(part: Any, classes: int) -> Examples:
    """What a trained network is to be tested on, as checked arrays.

    Args:
        part: (X, y), or a map-style Dataset.
        classes: of the network; 0 where it predicts numbers.

    Raises:
        ConfigError: as `own_data`, and where the targets are of other kinds than the network's.
    """
    found = _examples(part, "", [])
    has_labels = found.y.dtype == np.int64
    if has_labels and not classes:
        raise ConfigError(
            "y holds whole numbers, which are classes, and the network predicts numbers: give "
            "y.astype(numpy.float32)"
        )
    if classes and not has_labels:
        raise ConfigError(
            f"y holds {found.y.dtype}, and the network knows {classes} classes: give whole numbers "
            "from 0, as by y.astype(numpy.int64), or y.argmax(1) of one-hot rows"
        )
    if classes and (highest := int(found.y.max())) >= classes:
        raise ConfigError(
            f"y holds the label {highest}, and the network knows the classes 0 to {classes - 1}"
        )
    return found


def count_of_classes(given: Any) -> int | None:
    """How many classes are said to be there, as names or a number; None where that is not said.

    Raises:
        ConfigError: where it is neither.
    """
    return _named_classes(given)[1]


# --- forms --------------------------------------------------------------------------------


def _tree(given: Any) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        odd = [cut(repr(key), 40) for key in given if key not in _KEYS]
        if odd or "train" not in given:
            wrong = f"the unknown key {odd[0]}" if odd else "no train"
            raise ConfigError(f"gives a dict with {wrong}; {_FORMS}")
        return given
    if _is_part(given):
        return {"train": given}
    if isinstance(given, tuple | list) and len(given) == 2 and all(map(_is_part, given)):
        return {"train": given[0], "test": given[1]}
    raise ConfigError(f"gives {_described(given)}; {_FORMS}")


def _is_part(value: Any) -> bool:
    return _is_pair(value) or _is_dataset(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_array, value))


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, type)


def _is_dataset(value: Any) -> bool:
    plain = isinstance(value, tuple | list | str | bytes | Mapping | type) or _is_array(value)
    return not plain and hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        kinds = ", ".join(_described(inner) for inner in value[:4])
        return f"{len(value)} things ({kinds})" if value else "an empty list"
    kind = type(value).__name__
    if hasattr(value, "toarray"):
        return f"a sparse {kind}, whose toarray() is needed"
    by_place = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if hasattr(value, "__iter__") and not by_place:
        return f"a {kind}, which can be read in one order only"
    return f"a {cut(kind, 40)}"


def _named_classes(given: Any) -> tuple[tuple[str, ...], int | None]:
    """Names of the classes, and how many there are; None where that is not said."""
    if given is None:
        return (), None
    if isinstance(given, np.ndarray) and given.ndim == 0:  # as an .npz file has a number
        given = given.item()
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        if not 2 <= given <= MAX_UNITS:
            raise ConfigError(f"classes {given}: give their number, from 2, or their names")
        return (), int(given)
    names = list(given) if isinstance(given, tuple | list) or _is_array(given) else []
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"classes {cut(repr(given), 60)}: give the names of at least 2 classes as texts, that "
            "of class 0 first, or their number"
        )
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        if (first := places.setdefault(str(name), place)) != place:
            raise ConfigError(
                f"classes: {cut(repr(str(name)), 40)} is the name of class {first} and of class "
                f"{place}: give each its own"
            )
    return tuple(str(name) for name in names), len(names)


def _numbers(given: Any, key: str) -> tuple[float, ...]:
    if given is None:
        return ()
    numbers = _array(given, key).astype(np.float64).reshape(-1)
    wrong = ~np.isfinite(numbers) if key == "mean" else ~(np.isfinite(numbers) & (numbers > 0))
    if wrong.any() or not len(numbers):
        rule = "finite" if key == "mean" else "above 0"
        raise ConfigError(f"{key}: give a number for each channel or feature, or one, all {rule}")
    return tuple(numbers.tolist())


# --- a part -------------------------------------------------------------------------------


def _examples(part: Any, name: str, notes: list[str]) -> Examples:
    """`name`: of the part; empty where there is but one."""
    of = f"{name}: " if name else ""
    if _is_pair(part):
        x, y = _array(part[0], f"{of}X"), _array(part[1], f"{of}y")
    elif _is_dataset(part):
        x, y = _read(part, name or "data")
    else:
        given = _described(part)
        raise ConfigError(f"{name or 'data'} is {given}: give (X, y) or a map-style Dataset")
    checked = Examples(checked_inputs(x, f"{of}X", notes), checked_targets(y, f"{of}y", notes))
    if len(checked.x) != len(checked.y):
        raise ConfigError(
            f"{of}{len(checked.x)} examples in X and {len(checked.y)} targets in y: one target "
            "for each example is needed"
        )
    return checked


def _array(value: Any, what: str) -> Array:
    try:
        found = np.asarray(value)
    except Exception as error:  # whatever a tensor on a device, or a user's own class, raises
        raise ConfigError(f"{what} can't be read as an array: {one_line(error)}") from error
    if found.dtype.kind not in "biuf":
        raise ConfigError(
            f"{what} holds {found.dtype}, which is no number: rows of unequal length, texts and "
            "missing values have to be turned into numbers first"
        )
    return found


def _read(dataset: Any, name: str) -> tuple[Array, Array]:
    """Every example of a Dataset, in order."""
    n = len(dataset)
    if not n:
        raise ConfigError(f"{name} is an empty {type(dataset).__name__}: there is no example")
    first_x, first_y = _item(dataset, 0, name)
    try:
        x = np.empty((n, *first_x.shape), first_x.dtype)
        y = np.empty((n, *first_y.shape), first_y.dtype)
    except (MemoryError, ValueError):  # numpy's, for what no address reaches
        raise ConfigError(
            f"{name}: {n} examples of shape {first_x.shape} don't fit into memory, where a Dataset "
            "is read to: give fewer or smaller ones"
        ) from None
    x[0], y[0] = first_x, first_y
    for index in range(1, n):
        one_x, one_y = _item(dataset, index, name)
        for what, one, first in (("x", one_x, first_x), ("y", one_y, first_y)):
            if (one.shape, one.dtype) != (first.shape, first.dtype):
                raise ConfigError(
                    f"{name}: {what} of example {index} is {one.dtype} of shape {one.shape}, that "
                    f"of example 0 {first.dtype} of shape {first.shape}: all must be alike"
                )
        x[index], y[index] = one_x, one_y
    return x, y


def _item(dataset: Any, index: int, name: str) -> tuple[Array, Array]:
    try:
        item = dataset[index]
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"{name}: example {index}: {one_line(error)}") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise ConfigError(
            f"{name}: example {index} is {_described(item)}: a pair (x, y) is needed, of numbers, "
            "arrays or tensors"
        )
    x, y = (
        _array(value, f"{name}: {what} of example {index}")
        for what, value in zip("xy", item, strict=True)
    )
    return x, y
