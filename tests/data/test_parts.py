"""Shares of a data set: what a limit takes, and what validation keeps from training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.data import all_tests, everything
from support.own_data import floats, labels

from pipeline.config.data import DataConfig
from pipeline.data.batches import Batches, load_batches
from pipeline.data.facts import check_data, data_facts
from pipeline.data.own_data import OwnData, own_data
from pipeline.data.record import record_of_tree
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

SYNTHETIC: dict[str, Any] = {
    "name": "synthetic", "size": 3, "classes": 5, "train_images": 60, "test_images": 9,
    "batch_size": 8,
}  # fmt: skip


def loaded(own: OwnData | None = None, seed: int = 1, **keys: Any) -> Batches:
    name = {"factory": "nowhere:f"} if own else SYNTHETIC
    config = DataConfig(**{**name, "batch_size": 8, **keys})
    batches = load_batches(config, seed, own=own)
    counts = data_facts(config, own)
    assert (counts.train_images, counts.test_images) == (
        batches.facts.train_images,
        batches.facts.test_images,
    )
    return batches


def sorted_labels(*counts: int) -> np.ndarray:
    """Class by class, as many of each."""
    return np.repeat(np.arange(len(counts)), counts)


def own_of(y: np.ndarray, test: int = 0) -> OwnData:
    """Each example tells its own number."""
    x = np.arange(len(y), dtype=np.float32)[:, None]
    return own_data(((x, y), (x[-test:], y[-test:])) if test else (x, y))


def numbers(pair: tuple[np.ndarray, np.ndarray]) -> list[int]:
    return sorted(pair[0][:, 0].astype(int).tolist())


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_a_validation_share_is_of_every_class_and_never_trained_on(share: float) -> None:
    own = own_of(sorted_labels(40, 20, 4, 1), test=5)
    batches = loaded(own, validation=share)
    trained, held = numbers(everything(batches)), numbers(all_tests(batches))
    assert sorted(trained + held) == list(range(65))
    assert len(held) == round(65 * share)
    of_class = np.bincount(all_tests(batches)[1], minlength=4)
    np.testing.assert_allclose(of_class, share * np.array([40, 20, 4, 1]), atol=1.5)
    assert set(everything(batches)[1]) == {0, 1, 2, 3}
    for seed in (2, 3):
        assert numbers(all_tests(loaded(own, seed, validation=share))) == held


@pytest.mark.parametrize("y", [floats(30, (2,)), labels(60).reshape(30, 2)])
def test_targets_that_are_not_one_class_are_held_back_at_random(y: np.ndarray) -> None:
    held = numbers(all_tests(loaded(own_of(y), validation=0.3)))
    assert len(held) == 9
    assert held != list(range(9))


@pytest.mark.parametrize("name", ["synthetic", "digits"])
def test_validation_is_a_share_of_any_training_set(name: str) -> None:
    keys = {**SYNTHETIC, "name": name} if name == "synthetic" else {"name": name}
    plain, validated = (
        load_batches(DataConfig(**keys, **more), 1) for more in ({}, {"validation": 0.2})
    )
    whole = {x.tobytes() for x in everything(plain)[0]}
    assert {x.tobytes() for x in everything(validated)[0]} <= whole
    assert {x.tobytes() for x in all_tests(validated)[0]} <= whole
    assert len(validated.training) + len(validated.test) == len(plain.training)


def test_a_limit_is_taken_before_the_validation_share() -> None:
    own = own_of(sorted_labels(40, 40), test=10)
    batches = loaded(own, train_limit=20, test_limit=4, validation=0.25)
    limited = numbers(everything(loaded(own, train_limit=20)))
    assert sorted(numbers(everything(batches)) + numbers(all_tests(batches))) == limited
    assert len(batches.test) == 5


def test_limits_take_a_share_of_every_class_of_own_data_and_the_first_of_others() -> None:
    own = own_of(sorted_labels(40, 20), test=20)
    batches = loaded(own, train_limit=6, test_limit=7)
    np.testing.assert_array_equal(np.bincount(everything(batches)[1]), [4, 2])
    assert numbers(everything(batches)) != list(range(6))
    assert len(all_tests(batches)[1]) == 7
    whole, first = (everything(loaded(batch_size=64, **more)) for more in ({}, {"train_limit": 6}))
    assert sorted(x.tobytes() for x in first[0]) == sorted(
        x.tobytes() for x in load_first(whole, 6)
    )


def load_first(whole: tuple[np.ndarray, np.ndarray], n: int) -> Sequence[np.ndarray]:
    """The first images of the set, in whatever order `whole` has them."""
    batches = loaded(batch_size=64)
    return batches.training.take(np.arange(n), 1)[0]


def test_one_part_alone_is_not_tested() -> None:
    batches = loaded(own_of(labels()))
    assert (batches.evaluation_batches, batches.facts.test_images) == (0, 0)
    record = batches.record("factory")
    assert record.summary("my:own") == "data my:own: 40 training examples of 4 classes"
    assert not record.gaps("my:own")


@pytest.mark.parametrize(("n", "share"), [(1, 0.5), (2, 0.001), (2, 0.999)])
def test_both_sides_of_the_split_have_something(n: int, share: float) -> None:
    own = own_of(floats(n, ()))
    if n == 1:
        with pytest.raises(ConfigError, match="of 1 training image none would be left"):
            loaded(own, validation=share)
    else:
        batches = loaded(own, validation=share)
        assert (len(batches.training), len(batches.test)) == (1, 1)


# --- what is kept of them -----------------------------------------------------------------


def test_a_record_tells_the_parts_apart_and_comes_back() -> None:
    own = own_of(sorted_labels(40, 20), test=20)
    digests = set()
    for keys in ({}, {"validation": 0.2}, {"validation": 0.3}, {"train_limit": 30}):
        record = loaded(own, **keys).record("factory")
        assert record_of_tree(record.tree) == record
        assert record.validates == ("validation" in keys)
        digests.add(record.digest)
    assert len(digests) == 4
    summary = loaded(own, validation=0.2).record("factory").summary("my:own")
    assert summary == "data my:own: 48 training and 12 validation examples of 2 classes"


def test_a_record_of_numbers_has_no_classes() -> None:
    record = loaded(own_of(floats(12, ()), test=4)).record("npz")
    assert record_of_tree(record.tree) == record
    assert (record.training.images, record.test.images) == (12, 4)
    assert record.summary("x.npz") == "data x.npz: 12 training and 4 test examples"


def test_names_of_classes_stay_in_their_line() -> None:
    own = own_data({"train": (floats(), labels()), "classes": ["\n", " ", "a\tb", "e" * 99, "f"]})
    record = loaded(own).record("factory")
    assert record.summary("my:own").endswith(rf"classes: '\n',  , 'a\tb', {'e' * 39}…, f")
    assert record.gaps("my:own") == ["data my:own: 1 of 5 classes have no training example: f"]


def test_a_record_of_an_earlier_version_is_read() -> None:
    record = loaded().record("synthetic")
    tree = record.tree
    del tree["validates"], tree["training"]["images"], tree["test"]["images"]
    assert record_of_tree(tree) == record


# --- what can't be done -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "keys", "says"),
    [
        (labels(), {"flip": True}, "data.flip: is for images of (channels, height, width), and an"),
        (labels(), {"crop_padding": 1}, "example is float32 of shape (1,): leave it out, or"),
        (floats(40, ()), {"classes_per_batch": 2}, "data.classes_per_batch: the targets are not"),
        (labels(), {"classes_per_batch": 5}, "more than the 4 classes of factory"),
    ],
)
def test_what_the_data_make_impossible(y: np.ndarray, keys: dict[str, Any], says: str) -> None:
    config = DataConfig(factory="nowhere:f", batch_size=8, **keys)
    with pytest.raises(ConfigError) as caught:
        check_data(config, data_facts(config, own_of(y)), batch_norm=False)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("x", "keys", "says"),
    [
        (labels()[:, None], {"normalise": "measured"}, "int64 are token ids, which have no mean"),
        (labels()[:, None], {"mean": [0.1], "std": [1.0]}, "int64 are token ids, which have no"),
        (floats(), {"mean": [0.0] * 3, "std": [1.0] * 3}, "3 numbers for the 2 channels of ex"),
        (floats(40, (5,)), {"mean": [0.0] * 3, "std": [1.0] * 3}, "for the 5 places of the last"),
    ],
)
def test_means_that_do_not_fit(x: np.ndarray, keys: dict[str, Any], says: str) -> None:
    config = DataConfig(factory="nowhere:f", **keys)
    with pytest.raises(ConfigError) as caught:
        data_facts(config, own_data((x, labels())))
    assert says in str(caught.value)
