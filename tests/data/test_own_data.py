"""What a user may give as data: every form, type and shape; and whatever is wrong, in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.own_data import DATA, FACTORY, Rows, floats, labels
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from pipeline.config.data import DataConfig
from pipeline.data.facts import data_facts
from pipeline.data.own_data import OwnData, own_data, read_own
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

X, Y = floats(), labels()
BYTES = np.arange(40 * 3 * 8 * 8, dtype=np.uint8).reshape(40, 3, 8, 8)


# --- forms --------------------------------------------------------------------------------

FORMS: dict[str, Any] = {
    "a part": (X, Y),
    "a list": [X, Y],
    "two parts": ((X, Y), (X[:9], Y[:9])),
    "tensors": (torch.from_numpy(X), torch.from_numpy(Y)),
    "a Dataset": TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
    "a Dataset of plain numbers": Rows([(x, int(y)) for x, y in zip(X, Y, strict=True)]),
    "two Datasets": (
        TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
        Subset(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), range(9)),
    ),
    "a dict": {"train": (X, Y), "test": (X[:9], Y[:9])},
    "a dict without a test": {"train": (X, Y), "test": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_examples(form: str) -> None:
    own = own_data(FORMS[form])
    np.testing.assert_array_equal(own.training.x, X)
    np.testing.assert_array_equal(own.training.y, Y)
    assert own.classes == 4
    has_test = "two" in form or form == "a dict"
    assert (own.test is not None) == has_test
    if own.test:
        np.testing.assert_array_equal(own.test.x, X[:9])
        np.testing.assert_array_equal(own.test.y, Y[:9])


@pytest.mark.parametrize(
    ("x", "dtype", "note"),
    [
        (BYTES, "uint8", ""),
        (X, "float32", ""),
        (X.astype(np.float64), "float32", "train: X is float64: trained on as float32"),
        (X.astype(">f4"), "float32", "train: X is >f4: trained on as float32"),
        (X.astype(np.float16), "float32", "train: X is float16: trained on as float32"),
        (labels(40, 7)[:, None], "int64", ""),
        (np.zeros((40, 32, 32, 3), np.uint8), "uint8", "X.transpose(0, 3, 1, 2)"),
        (np.zeros((40, 3, 32, 32), np.uint8), "uint8", ""),
        (np.asfortranarray(X), "float32", ""),
    ],
)
def test_types_of_examples(x: np.ndarray, dtype: str, note: str) -> None:
    own = own_data((x, Y))
    assert own.training.x.dtype == dtype
    assert own.training.x.flags.c_contiguous
    assert own.training.x.shape == x.shape
    assert bool(own.notes) == bool(note)
    assert note in " ".join(own.notes)


@pytest.mark.parametrize(
    ("y", "shape", "dtype", "classes"),
    [
        (Y.astype(np.int32), (), "int64", 4),
        (Y.astype(np.uint8), (), "int64", 4),
        (Y % 2 == 0, (), "int64", 2),
        (np.stack([Y, Y + 3], axis=1), (2,), "int64", 7),
        (X[:, 0, 0, 0], (), "float32", 0),
        (X[:, 0].astype(np.float64), (6, 6), "float32", 0),
    ],
)
def test_types_of_targets(y: np.ndarray, shape: Any, dtype: str, classes: int) -> None:
    facts = facts_of((X, y))
    assert (facts.target_shape, facts.target_dtype, facts.classes) == (shape, dtype, classes)


def facts_of(given: Any, **keys: Any) -> Any:
    return data_facts(DataConfig(factory=FACTORY, **keys), own_data(given))


def test_facts_are_those_of_what_is_given() -> None:
    ids = labels(40, 9)[:, None]
    facts = facts_of({"train": (ids, Y), "test": (ids[:8] + 3, Y[:8]), "classes": 6})
    assert (facts.shape, facts.dtype, facts.classes) == ((1,), "int64", 6)
    assert (facts.train_images, facts.test_images, facts.tokens) == (40, 8, 11)
    facts = facts_of({"train": (X, Y), "mean": [1, 2], "std": torch.tensor([1.0, 0.5])})
    assert (facts.test_images, facts.mean, facts.std) == (0, (1.0, 2.0), (1.0, 0.5))
    assert (facts.shape, facts.tokens, facts.example_bytes) == ((2, 6, 6), 0, 288)


def test_names_of_classes_may_be_more_than_there_are_examples_of() -> None:
    own = own_data({"train": (X, Y), "classes": ["ant", "bee", "cat", "dog", "elk"]})
    assert (own.classes, own.names) == (5, ("ant", "bee", "cat", "dog", "elk"))
    named = own_data({"train": (X, Y), "classes": np.array(["a", "b", "c", "d"])})
    assert named.names == ("a", "b", "c", "d")


# --- what is wrong ------------------------------------------------------------------------


def changed(values: np.ndarray, at: Any, value: Any) -> np.ndarray:
    values = values.copy()
    values[at] = value
    return values


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield X[0], 0


def pairs(n: int = 3, **odd: Any) -> Rows:
    """A Dataset, one of whose examples, `x1=…`, is another."""
    items: list[Any] = [(X[k], k % 2) for k in range(n)]
    for index, item in odd.items():
        items[int(index[1:])] = item
    return Rows(items)


FEW = np.float32([[1.0, 2.0]] * 40)
WRONG: dict[str, tuple[Any, str]] = {
    "nothing": (None, "gives a NoneType; give (X, y), (train, test) of such pairs"),
    "X alone": (X, "gives a ndarray; give (X, y)"),
    "three things": ((X, Y, X), "gives 3 things (a ndarray, a ndarray, a ndarray); give (X, y)"),
    "lists": (([[1.0]], [0]), "gives 2 things (1 things (1 things (a float)), 1 things (a int))"),
    "a stream": (Stream(), "gives a Stream, which can be read in one order only; give (X, y)"),
    "a loader": (DataLoader(pairs()), "gives a DataLoader, which can be read in one order only"),  # type: ignore[arg-type]
    "unknown key": ({"train": (X, Y), "valid": 1}, "gives a dict with the unknown key 'valid'"),
    "no train": ({"test": (X, Y)}, "gives a dict with no train; give (X, y)"),
    "train is X": ({"train": X}, "train is a ndarray: give (X, y) or a map-style Dataset"),
    "NaN": (
        (changed(X, (17, 1, 0, 4), np.nan), Y),
        "train: X has 1 numbers that are NaN, infinite or too large for float32, the first in "
        "example 17 at (1, 0, 4): remove or replace them",
    ),
    "inf in the test": (
        ((X, Y), (changed(X, [3, 5], -np.inf), Y)),
        "test: X has 144 numbers that are NaN, infinite or too large for float32, the first in "
        "example 3 at (0, 0, 0)",
    ),
    "too large": ((X.astype(np.float64) * 1e300, Y), "too large for float32, the first in"),
    "NaN in y": ((X, changed(FEW, (2, 1), np.nan)), "train: y has 1 numbers that are NaN"),
    "negative label": ((X, changed(Y, 6, -1)), "train: y holds the label -1 (example 6): whole"),
    "huge label": ((X, changed(Y, 6, 1 << 40)), "train: y holds the label 1099511627776 (exam"),
    "from 1": ((X, Y + 1), "train: labels go from 1 to 4, but none is 0: labels of n classes are"),
    "a gap": ((X, Y * 2), "train: labels go from 0 to 6, but none is 1, 3, 5: labels of n"),
    "one class": ((X, Y * 0), "train: all labels are 0: there must be at least 2 classes"),
    "too few names": (
        {"train": (X, Y), "classes": ["a", "b"]},
        "train: y holds the label 3, and there are 2 classes",
    ),
    "names twice": (
        {"train": (X, Y), "classes": ["a", "b", "c", "a"]},
        "classes: 'a' is the name of class 0 and of class 3",
    ),
    "odd names": ({"train": (X, Y), "classes": [1, 2]}, "classes [1, 2]: give the names of at le"),
    "one name": ({"train": (X, Y), "classes": "ab"}, "classes 'ab': give the names of at least 2"),
    "one class said": ({"train": (X, Y), "classes": 1}, "classes 1: give their number, from 2"),
    "names of numbers": (
        {"train": (X, FEW), "classes": ["a", "b"]},
        "2 classes, but y of train holds numbers: give whole ones",
    ),
    "other length": (
        (X, Y[:-1]),
        "train: 40 examples in X and 39 targets in y: one target for each example is needed",
    ),
    "empty": ((X[:0], Y[:0]), "train: X has shape (0, 2, 6, 6): (n, …) with at least one example"),
    "empty test": (((X, Y), (X[:0], Y[:0])), "test: X has shape (0, 2, 6, 6): (n, …) with at"),
    "no features": ((X[:, 0, 0, 0], Y), "has shape (40,): (n, …) with at least one example, of 1 to"
                                        " 7 dimensions, is needed; X.reshape(-1, 1) makes"),
    "deep": ((X.reshape(40, *(1,) * 7, 72), Y), "of 1 to 7 dimensions, is needed"),
    "objects": (
        (np.array([[1], [2, 3]], dtype=object), Y[:2]),
        "train: X holds object, which is no number: rows of unequal length, texts and missing",
    ),
    "texts": ((X, Y.astype(str)), "train: y holds <U21, which is no number"),
    "complex": ((X.astype(complex), Y), "train: X holds complex128, which is no number"),
    "int32": ((X.astype(np.int32), Y), "train: X is int32: give uint8 (bytes, as of images: 0 to"),
    "bool": ((X > 3, Y), "train: X is bool: give uint8"),
    "negative tokens": (
        (changed(Y[:, None], 5, -7), Y),
        "train: X is int64, which are token ids and count from 0, but holds -7: make it float32",
    ),
    "a tensor with a graph": (
        (torch.from_numpy(X).requires_grad_(), Y),
        "train: X can't be read as an array: ",
    ),
    "other shape": (
        ((X, Y), (X[:, :1], Y)),
        "test: X is float32 of shape (1, 6, 6) per example, that of train float32 of shape (2, 6, "
        "6): both must be alike",
    ),
    "other type": (((X, Y), (abs(X).astype(np.int64), Y)), "test: X is int64 of shape (2,"),
    "other targets": (((X, Y), (X, FEW)), "test: y is float32 of shape (2,) per example, that"),
    "unknown class": (
        ((X, Y % 3), (X, Y)),
        "test: y holds the label 3, and train has the classes 0 to 2: training must know every",
    ),
    "class only in the test": (
        {"train": (X, Y % 3), "test": (X, Y), "classes": 4},
        "test: no example of train has the label 3: training must know every class",
    ),
    "unknown token": (
        ((X, np.stack([Y, Y], 1)), (X, np.stack([Y, Y + 1], 1))),
        "test: y holds the label 4, and train has the classes 0 to 3",
    ),
    "one std": ({"train": (X, Y), "mean": [1, 2], "std": [1]}, "2 numbers of mean and 1 of std"),
    "std 0": ({"train": (X, Y), "mean": [1, 2], "std": [1, 0]}, "std: give a number for each ch"),
    "empty Dataset": (Rows([]), "train is an empty Rows: there is no example"),
    "no pair": (pairs(x1=X[0]), "train: example 1 is a ndarray: a pair (x, y) is needed"),
    "uneven": (
        pairs(x2=(X[0, :, :3], 1)),
        "train: x of example 2 is float32 of shape (2, 3, 6), that of example 0 float32 of shape "
        "(2, 6, 6): all must be alike",
    ),
    "uneven types": (pairs(x2=(X[0], 0.5)), "train: y of example 2 is float64 of shape (), that"),
    "no pair at first": (
        Rows([3]),
        "train: example 0 is a int: a pair (x, y) is needed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(case: str) -> None:
    given, says = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        own_data(given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_that_do_not_fit_into_memory() -> None:
    class Endless(Rows):
        def __len__(self) -> int:
            return 1 << 55

    with pytest.raises(ConfigError, match=r"36028797018963968 examples .* don't fit in"):
        own_data(Endless([(X[0], 0)]))


# --- where they are from ------------------------------------------------------------------


def test_a_factory_is_called_with_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA, "some", lambda n: (X[:n], Y[:n]))
    config = DataConfig(factory=FACTORY, kwargs={"data": "some", "n": 8})
    assert isinstance(read_own(config), OwnData)
    assert data_facts(config).train_images == 8


def raising() -> Any:
    raise ValueError("no luck")


def a_dataset_that_raises() -> Any:
    class Broken(Rows):
        def __getitem__(self, index: int) -> Any:
            if index:
                raise OSError(5, "disk gone")
            return super().__getitem__(index)

    return Broken([(X[0], 0)] * 3)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (raising, "ValueError: no luck"),
        (lambda: 3, "gives a int; give (X, y)"),
        (a_dataset_that_raises, "train: example 1: OSError: [Errno 5] disk gone"),
        (lambda: exec("raise SystemExit(3)"), "SystemExit: 3"),
        (lambda other: 1, "missing 1 required positional argument: 'other'"),
    ],
)
def test_what_a_factory_does_is_said_with_its_name(
    function: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATA, "odd", function)
    with pytest.raises(ConfigError) as caught:
        read_own(DataConfig(factory=FACTORY, kwargs={"data": "odd"}))
    assert str(caught.value).startswith(f"data.factory {FACTORY}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"data\.factory nowhere:f: .* install it, or start from"):
        read_own(DataConfig(factory="nowhere:f"))
