"""Batches of few classes: every example once, few classes each, by seed and epoch alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.data import DataConfig
from pipeline.data.batches import load_batches
from pipeline.data.class_limited import ClassLimit, class_limited_order, scanned_order

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Labels = NDArray[np.int64]


def order_of(labels: Labels, batch_size: int, classes: int, seed: int = 0) -> Labels:
    return class_limited_order(labels, batch_size, classes, np.random.default_rng(seed))


def classes_of(labels: Labels, order: Labels, batch_size: int) -> list[set[int]]:
    """The classes of each batch."""
    starts = range(0, len(order), batch_size)
    return [set(labels[order[start : start + batch_size]].tolist()) for start in starts]


# --- the order ----------------------------------------------------------------------------


@given(
    labels=st.lists(st.integers(0, 6), max_size=60),
    batch_size=st.integers(1, 12),
    classes=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_every_example_once_and_more_classes_only_where_others_are_used_up(
    labels: list[int], batch_size: int, classes: int, seed: int
) -> None:
    known = np.array(labels, dtype=np.int64)
    order = order_of(known, batch_size, classes, seed)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(len(labels)))
    batches = classes_of(known, order, batch_size)
    for index, batch in enumerate(batches):
        later = set().union(*batches[index + 1 :])
        assert len(batch) <= classes or len(batch & later) <= 1


def test_a_set_as_large_as_cifar100_has_about_20_classes_in_a_batch() -> None:
    labels = np.arange(50_000) % 100
    order = order_of(labels, 128, 20)
    counts = np.array([len(batch) for batch in classes_of(labels, order, 128)])
    above = np.flatnonzero(counts > 20)
    assert len(counts) == 391
    # 20 random examples of 100 classes are of 100 · (1 - 0.99^20) = 18.2 classes
    assert counts[:380].mean() == pytest.approx(18.2, abs=0.3)
    assert len(above) <= 8
    assert above.min(initial=391) >= 380
    assert counts.max() < 60  # 72 of the 100 classes are in a batch of 128 without a limit


def test_where_a_class_runs_out_another_joins() -> None:
    labels = np.array([0] * 3 + [1] * 3 + [2] * 3)
    for seed in range(20):
        order = order_of(labels, 4, 1, seed)
        assert sorted(np.bincount(labels[order[:4]], minlength=3)) == [0, 1, 3]


def test_a_limit_of_all_classes_is_no_limit() -> None:
    labels = np.arange(40) % 4
    assert all(batch == {0, 1, 2, 3} for batch in classes_of(labels, order_of(labels, 20, 20), 20))


def test_no_example_is_favoured() -> None:
    """Each of 12 examples is in the first batch of 4 as often."""
    labels = np.array([0] * 4 + [1] * 4 + [2] * 4)
    draws = np.random.default_rng(3)
    first = np.concatenate([class_limited_order(labels, 4, 2, draws)[:4] for _ in range(600)])
    assert np.abs(np.bincount(first, minlength=12) - 200).max() < 60


def test_the_examples_of_a_batch_are_not_sorted_by_class() -> None:
    labels = np.arange(2000) % 2
    batch = labels[order_of(labels, 1000, 20)[:1000]]
    assert 400 < np.count_nonzero(np.diff(batch)) < 600


def test_the_order_is_that_of_the_draws() -> None:
    labels = np.arange(500) % 10
    assert np.array_equal(order_of(labels, 16, 3, 7), order_of(labels, 16, 3, 7))
    assert not np.array_equal(order_of(labels, 16, 3, 7), order_of(labels, 16, 3, 8))


def test_a_limit_holds_until_its_epoch_or_for_ever() -> None:
    assert [ClassLimit(5, 2).holds_in(epoch) for epoch in (1, 2, 3)] == [True, True, False]
    assert ClassLimit(5).holds_in(10_000)


# --- the authors' order -------------------------------------------------------------------


def scanned_with_lists(labels: Labels, batch_size: int, classes: int, seed: int) -> list[int]:
    """As their code is known to do it, item by item."""
    line = np.random.default_rng(seed).permutation(len(labels)).tolist()
    order: list[int] = []
    while line:
        batch, line = line[: min(classes, batch_size)], line[min(classes, batch_size) :]
        passed = 0
        while passed < min(10 * classes, len(line)) and len(batch) < batch_size:
            together = {labels[one] for one in batch}
            if len(together) >= 10:
                break
            if labels[line[passed]] in together:
                passed += 1
            else:
                batch.append(line.pop(passed))
        together = {labels[one] for one in batch}
        alike = [one for one in line if labels[one] in together][: batch_size - len(batch)]
        line = [one for one in line if one not in set(alike)]
        batch += alike
        missing = batch_size - len(batch)
        batch, line = batch + line[:missing], line[missing:]
        order += batch
    return order


@given(
    labels=st.lists(st.integers(0, 30), max_size=90),
    batch_size=st.integers(1, 24),
    classes=st.integers(1, 24),
    seed=st.integers(0, 99),
)
def test_a_scan_puts_the_authors_batches_together(
    labels: list[int], batch_size: int, classes: int, seed: int
) -> None:
    known = np.array(labels, dtype=np.int64)
    order = scanned_order(known, batch_size, classes, np.random.default_rng(seed))
    expected = scanned_with_lists(known, batch_size, classes, seed)
    assert order.dtype == np.int64
    for start in range(0, len(labels), batch_size):
        batch = slice(start, start + batch_size)
        assert sorted(order[batch]) == sorted(expected[batch])


def figures(order: str, classes: int) -> tuple[float, float, float]:
    """Of batches of 128 from a set as large as CIFAR-100: classes in one, pairs of examples that
    share a class in percent, both but for an epoch's last few; classes that come again in the
    next one."""
    labels = np.arange(50_000) % 100
    limit = ClassLimit(classes, order=order)  # type: ignore[arg-type]
    together, alike, again = [], [], []
    for seed in range(3):
        found = labels[limit.ordered(labels, 128, np.random.default_rng(seed))]
        batches = [found[start : start + 128] for start in range(0, 50_000, 128)]
        counts = np.array([np.bincount(batch, minlength=100) for batch in batches])
        there = counts > 0
        together.append(there[:380].sum(axis=1).mean())
        alike.append((counts * (counts - 1))[:380].sum(axis=1).mean() / (128 * 127))
        again.append((there[:-1] & there[1:]).sum(axis=1).mean())
    return float(np.mean(together)), float(100 * np.mean(alike)), float(np.mean(again))


@pytest.mark.parametrize(
    ("order", "classes", "together", "alike", "again"),
    [
        ("drawn", 20, 18.2, 5.46, 3.09),
        ("drawn", 14, 13.1, 7.70, 1.70),
        ("scan", 20, 13.1, 7.70, 0.13),  # measured with the authors' own code
    ],
)
def test_figures_of_the_published_batches(
    order: str, classes: int, together: float, alike: float, again: float
) -> None:
    found = figures(order, classes)
    assert found[:2] == pytest.approx((together, alike), rel=0.015)
    assert found[2] == pytest.approx(again, abs=0.06)


# --- in batches ---------------------------------------------------------------------------


def config(**changes: Any) -> DataConfig:
    small = {"size": 4, "train_images": 230, "test_images": 9, "batch_size": 24}
    return DataConfig(name="synthetic", **{**small, **changes})


LIMITED = {"classes_per_batch": 3, "classes_per_batch_until_epoch": 2}


def labels_of(epoch: int, **changes: Any) -> list[Labels]:
    batches = load_batches(config(**changes), seed=4)
    return [batches.train(epoch, index)[1] for index in range(batches.steps_per_epoch)]


@pytest.mark.parametrize("epoch", [1, 2])
def test_batches_until_the_epoch_hold_few_classes(epoch: int) -> None:
    limited, plain = labels_of(epoch, **LIMITED), labels_of(epoch)
    assert [len(batch) for batch in limited] == [len(batch) for batch in plain] == [24] * 9 + [14]
    assert max(len(set(batch)) for batch in limited[:6]) <= 3
    assert min(len(set(batch)) for batch in plain[:6]) > 5
    assert sorted(np.concatenate(limited)) == sorted(np.concatenate(plain))


SCANNED = {"classes_per_batch": 12, "class_order": "scan", "classes": 40}


def test_later_epochs_have_the_plain_order() -> None:
    limited, plain = (load_batches(config(**keys), seed=4) for keys in (LIMITED, {}))
    for index in range(limited.steps_per_epoch):
        for found, expected in zip(limited.train(3, index), plain.train(3, index), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_the_key_chooses_the_order() -> None:
    scanned, drawn = labels_of(1, **SCANNED), labels_of(1, **{**SCANNED, "class_order": "drawn"})
    assert [len(batch) for batch in scanned] == [24] * 9 + [14]
    assert max(len(set(batch)) for batch in scanned[:4]) <= 12
    assert not np.array_equal(scanned[0], drawn[0])


def test_without_a_last_epoch_the_limit_holds_in_all_of_a_limited_training_set() -> None:
    labels = labels_of(777, classes_per_batch=3, train_limit=150)
    assert [len(batch) for batch in labels] == [24] * 6 + [6]
    assert max(len(set(batch)) for batch in labels[:3]) <= 3


def test_image_folders_know_their_labels(tmp_path: Path) -> None:
    from PIL import Image

    for part in ("train", "val"):
        for kind in ("ant", "bee", "cat"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (9, 9), number).save(tmp_path / part / kind / f"{number}.png")
    folders = DataConfig(
        name="imagefolder", root=str(tmp_path), size=7, batch_size=4, classes_per_batch=2
    )
    batches = load_batches(folders, seed=2)
    labels = [batches.train(1, index)[1] for index in range(3)]
    assert len(set(labels[0])) <= 2
    assert sorted(np.concatenate(labels)) == [0] * 4 + [1] * 4 + [2] * 4
