"""Batches are a function of (seed, epoch, index), and every data set's files are read right."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import REPOSITORY
from support.data import all_tests, everything, random_images

from pipeline.config.data import DataConfig
from pipeline.data import facts as facts_of
from pipeline.data import published
from pipeline.data.batches import load_batches
from pipeline.data.facts import check_data, data_facts
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

SHARED_DATA = Path(os.environ.get("SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
TRAIN, TEST = 7, 5


def synthetic(**changes: Any) -> DataConfig:
    small = {"size": 4, "train_images": 22, "test_images": 9, "batch_size": 5}
    return DataConfig(name="synthetic", **{**small, **changes})


def stored(name: str, root: Path, **changes: Any) -> DataConfig:
    """A config for the small files that these tests make."""
    return DataConfig(name=name, root=str(root), **{"download": False, "batch_size": 4, **changes})


def assert_same_multiset(found: tuple[Any, Any], images: Images, labels: Any) -> None:
    def rows(x: Images, y: Any) -> list[tuple[bytes, int]]:
        return sorted((image.tobytes(), int(label)) for image, label in zip(x, y, strict=True))

    assert rows(*found) == rows(images, labels)


# --- positions ----------------------------------------------------------------------------


def test_batches_have_the_promised_form() -> None:
    batches = load_batches(synthetic(), seed=3)
    assert (batches.batch_size, batches.steps_per_epoch, batches.evaluation_batches) == (5, 5, 2)
    assert batches.facts.shape == (3, 4, 4)
    for images, labels in (batches.train(1, 0), batches.evaluation(0)):
        assert (images.shape, images.dtype) == ((5, 3, 4, 4), np.uint8)
        assert (labels.shape, labels.dtype) == ((5,), np.int64)
        assert images.flags.c_contiguous
        assert labels.flags.c_contiguous
    assert [len(batches.train(2, index)[1]) for index in range(5)] == [5, 5, 5, 5, 2]
    assert [len(batches.evaluation(index)[1]) for index in range(2)] == [5, 4]


LIMITED = {"classes_per_batch": 3, "classes_per_batch_until_epoch": 2}


@pytest.mark.parametrize("keys", [{}, LIMITED], ids=["plain", "limited"])
def test_every_example_once_per_epoch_in_another_order(keys: dict[str, Any]) -> None:
    batches = load_batches(synthetic(**keys), seed=3)
    (first, labels), (second, _) = everything(batches, 1), everything(batches, 2)
    assert len(np.unique(first.reshape(22, -1), axis=0)) == 22
    assert_same_multiset(everything(batches, 2), first, labels)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("keys", [{}, LIMITED], ids=["plain", "limited"])
def test_a_batch_does_not_depend_on_what_was_asked_before(keys: dict[str, Any]) -> None:
    """So a resumed run goes on with the same batches, on this or that side of a limit's end."""
    wanderer, fresh = (load_batches(synthetic(**keys), seed=3) for _ in range(2))
    for epoch, index in ((1, 4), (7, 0), (2, 3), (2, 1)):
        wanderer.train(epoch, index)
    wanderer.evaluation(1)
    for epoch, index in ((2, 1), (1, 0), (7, 0)):
        for found, expected in zip(
            wanderer.train(epoch, index), fresh.train(epoch, index), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def test_the_order_depends_on_the_seed_only_through_seeding() -> None:
    one, same, other = (load_batches(DataConfig(name="digits"), seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.train(1, 0)[0], same.train(1, 0)[0])
    assert not np.array_equal(one.train(1, 0)[0], other.train(1, 0)[0])
    np.testing.assert_array_equal(one.evaluation(0)[0], other.evaluation(0)[0])


def test_the_caller_may_overwrite_a_batch() -> None:
    batches = load_batches(synthetic(), seed=3)
    for ask in (lambda: batches.train(1, 0), lambda: batches.evaluation(0)):
        before = ask()[0].copy()
        ask()[0][:] = 0
        np.testing.assert_array_equal(ask()[0], before)


def test_a_position_that_does_not_exist_is_a_bug() -> None:
    batches = load_batches(synthetic(), seed=3)
    for epoch, index in ((0, 0), (1, 5), (1, -1)):
        with pytest.raises(AssertionError):
            batches.train(epoch, index)
    with pytest.raises(AssertionError, match="batch 2 of 2"):
        batches.evaluation(2)


# --- synthetic and digits -----------------------------------------------------------------


def test_synthetic_images_can_be_learnt_and_fit_their_facts() -> None:
    config = DataConfig(name="synthetic", size=8)
    batches = load_batches(config, seed=5)
    (images, labels), (tested, truth) = everything(batches), all_tests(batches)
    assert set(labels) == set(range(10))
    assert abs(images.mean() / 255 - 0.5) < 0.02
    assert abs(images.std() / 255 - 0.29) < 0.02
    levels = np.stack([images[labels == k].mean(axis=(0, 2, 3)) for k in range(10)])
    distance = ((tested.mean(axis=(2, 3))[:, None] - levels) ** 2).sum(axis=2)
    assert (distance.argmin(axis=1) == truth).mean() > 0.5


def test_synthetic_images_depend_on_the_seed() -> None:
    one, other = load_batches(synthetic(), seed=1), load_batches(synthetic(), seed=2)
    assert not np.array_equal(one.evaluation(0)[0], other.evaluation(0)[0])


def test_limits_take_the_first_images() -> None:
    whole = load_batches(synthetic(), seed=3)
    part = load_batches(synthetic(train_limit=13, test_limit=4), seed=3)
    assert (part.facts.train_images, part.facts.test_images) == (13, 4)
    np.testing.assert_array_equal(all_tests(part)[0], all_tests(whole)[0][:4])
    first = {image.tobytes() for image in whole.training.take(np.arange(13), None)[0]}
    assert {image.tobytes() for image in everything(part)[0]} == first


def test_digits_hold_every_fifth_image_back() -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    batches = load_batches(DataConfig(name="digits"), seed=1)
    images, labels = all_tests(batches)
    assert (len(images), len(everything(batches)[0])) == (360, 1437)
    np.testing.assert_array_equal(labels, source.target[::5])
    np.testing.assert_allclose(images[:, 0] * (16 / 255), source.images[::5], atol=0.04)
    assert (images.min(), images.max()) == (0, 255)


def test_digits_that_lie_elsewhere_are_asked_of_sklearn(monkeypatch: pytest.MonkeyPatch) -> None:
    file = load_batches(DataConfig(name="digits"), seed=1)
    monkeypatch.setattr("pipeline.data.batches.find_spec", lambda name: None)
    asked = load_batches(DataConfig(name="digits"), seed=1)
    assert asked.record("digits") == file.record("digits")


def test_digits_fit_their_facts() -> None:
    batches = load_batches(DataConfig(name="digits"), seed=1)
    images = everything(batches)[0] / 255
    assert images.mean() == pytest.approx(batches.facts.mean[0], abs=5e-4)
    assert images.std() == pytest.approx(batches.facts.std[0], abs=5e-4)


def test_digits_and_synthetic_need_no_large_library() -> None:
    code = (
        "import sys; from pipeline.data.batches import *\n"
        "from pipeline.config.data import DataConfig\n"
        "for name in ('digits', 'synthetic'): load_batches(DataConfig(name=name), 1).train(1, 0)\n"
        "assert not {'torch', 'torchvision', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=60)


# --- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop_padding": 5}, ["data.crop_padding 5", "4 pixels", "0 to 4"]),
        ({"cutout": 5}, ["data.cutout 5", "4 pixels", "0 to 4"]),
        (
            {"classes_per_batch": 11, "batch_size": 12},
            ["data.classes_per_batch 11", "10 classes of synthetic", "2 to 10"],
        ),
        ({"train_images": 1}, ["1 training image", "at least 2", "data.train_limit"]),
        ({"train_limit": 1, "batch_size": 1}, ["1 training image"]),
        ({"batch_size": 23}, ["data.batch_size 23: more than the 22 training examples", "use 22"]),
        ({"batch_size": 7}, ["data.batch_size 7", "22", "data.batch_size 8", "train_limit 21"]),
        ({"train_images": 13, "batch_size": 3}, ["data.batch_size 5", "data.train_limit 12"]),
        ({"train_images": 3, "batch_size": 2}, ["data.batch_size 3", "data.train_limit 2"]),
    ],
)
def test_impossible_data_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    config = synthetic(**changes)
    with pytest.raises(ConfigError) as caught:
        check_data(config, data_facts(config), batch_norm=True)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_one_image_is_enough_without_batch_norm() -> None:
    for changes in ({"train_images": 1}, {"batch_size": 7}):
        config = synthetic(**changes)
        check_data(config, data_facts(config), batch_norm=False)
        assert load_batches(config, seed=1).train(1, 0)[1].size


@pytest.mark.parametrize("changes", [{"batch_size": 8}, {"train_limit": 21, "batch_size": 7}])
def test_the_cure_for_a_last_batch_of_one_works(changes: dict[str, int]) -> None:
    batches = load_batches(synthetic(**changes), seed=1)
    assert len(batches.train(1, batches.steps_per_epoch - 1)[1]) > 1


def test_limits_of_sizes_are_allowed_and_so_are_batches_of_one() -> None:
    config = synthetic(crop_padding=4, cutout=4)
    check_data(config, data_facts(config), batch_norm=True)
    assert load_batches(synthetic(batch_size=1), seed=1).steps_per_epoch == 22


def test_a_missing_set_that_may_not_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_batches(stored("mnist", tmp_path), seed=1)
    message = str(caught.value)
    for word in ("data.name mnist", str(tmp_path), "set data.download true", "--set data.root=DIR"):
        assert word in message
    assert "digits or synthetic" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn", "stl10"])
def test_a_download_that_fails(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    timeouts = []

    def unreachable(*_: Any, **__: Any) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise URLError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    root = tmp_path / "data"
    with pytest.raises(ConfigError) as caught:
        load_batches(stored(name, root, download=True), seed=1)
    assert not root.exists(), "nothing is left of what was made for it"
    message = str(caught.value)
    for word in (f"data.name {name}", "fetched into", str(root), "no network", "data.root=DIR"):
        assert word in message
    assert "\n" not in message
    assert set(timeouts) == {60.0}
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_root_that_can_not_be_looked_at(name: str, tmp_path: Path) -> None:
    root = tmp_path / ("x" * 300)  # longer than any file system allows
    with pytest.raises(ConfigError, match=r"File name too long.*--set data\.root=DIR"):
        load_batches(stored(name, root, download=True), seed=1)


# --- the files of the published sets ------------------------------------------------------


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the published sets were as small as the files of these tests."""
    for name, facts in facts_of._KNOWN.items():
        small = replace(facts, train_images=TRAIN, test_images=TEST)
        monkeypatch.setitem(facts_of._KNOWN, name, small)
    monkeypatch.setattr(published, "_SVHN_TRAIN", 4)


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch, small_sets: None) -> None:
    """torchvision takes a file for the original if it exists: these tests' files are small."""
    from torchvision.datasets import cifar, stl10, svhn

    for module in (cifar, stl10, svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, _=None: os.path.isfile(path))


def write_idx(folder: Path, split: str, images: Images, labels: Images) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">IIII", 0x803, *images.shape)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    head = struct.pack(">II", 0x801, len(labels))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def write_mnist(root: Path, folder: str) -> tuple[Images, Images]:
    images, labels = random_images(TRAIN + TEST, 28, 28), np.arange(TRAIN + TEST) % 10
    raw, labels = root / folder / "raw", labels.astype(np.uint8)
    write_idx(raw, "train", images[:TRAIN], labels[:TRAIN])
    write_idx(raw, "t10k", images[TRAIN:], labels[TRAIN:])
    return images[:, None], labels


def check_read(config: DataConfig, images: Images, labels: Any) -> None:
    batches = load_batches(config, seed=1)
    assert_same_multiset(everything(batches), images[:TRAIN], labels[:TRAIN])
    tested, truth = all_tests(batches)
    np.testing.assert_array_equal(tested, images[TRAIN:])
    np.testing.assert_array_equal(truth, labels[TRAIN:])
    for batch in (batches.train(1, 0), batches.evaluation(0)):
        assert batch[0].flags.c_contiguous
        assert (batch[0].dtype, batch[1].dtype) == (np.uint8, np.int64)


@pytest.mark.usefixtures("small_sets")
@pytest.mark.parametrize(
    ("name", "folder"),
    [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")],
)
def test_idx_files(name: str, folder: str, tmp_path: Path) -> None:
    images, labels = write_mnist(tmp_path, folder)
    check_read(stored(name, tmp_path), images, labels)
    check_read(stored(name, tmp_path, download=True), images, labels)  # nothing to fetch


def cifar_file(path: Path, images: Images, labels: Any, key: str) -> None:
    path.parent.mkdir(exist_ok=True)
    entry = {"data": images.reshape(len(images), -1), key: [int(label) for label in labels]}
    path.write_bytes(pickle.dumps(entry, protocol=2))


@pytest.mark.usefixtures("trusting")
def test_cifar10_files(tmp_path: Path) -> None:
    images, labels = random_images(TRAIN + TEST, 3, 32, 32), np.arange(TRAIN + TEST) % 10
    folder = tmp_path / "cifar-10-batches-py"
    for part, rows in enumerate(np.array_split(np.arange(TRAIN), 5), start=1):
        cifar_file(folder / f"data_batch_{part}", images[rows], labels[rows], "labels")
    cifar_file(folder / "test_batch", images[TRAIN:], labels[TRAIN:], "labels")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    check_read(stored("cifar10", tmp_path), images, labels)


@pytest.mark.usefixtures("trusting")
def test_cifar100_files(tmp_path: Path) -> None:
    images, labels = random_images(TRAIN + TEST, 3, 32, 32), np.arange(TRAIN + TEST) * 8
    folder = tmp_path / "cifar-100-python"
    cifar_file(folder / "train", images[:TRAIN], labels[:TRAIN], "fine_labels")
    cifar_file(folder / "test", images[TRAIN:], labels[TRAIN:], "fine_labels")
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["name"] * 100}))
    check_read(stored("cifar100", tmp_path), images, labels)


def svhn_files(root: Path, images: Images, labels: Any) -> None:
    from scipy.io import savemat

    parts = {"train": slice(0, 4), "extra": slice(4, TRAIN), "test": slice(TRAIN, None)}
    for split, rows in parts.items():
        zero_is_ten = np.where(labels[rows] == 0, 10, labels[rows]).astype(np.uint8)[:, None]
        content = {"X": images[rows].transpose(2, 3, 1, 0), "y": zero_is_ten}
        savemat(root / f"{split}_32x32.mat", content)


@pytest.mark.usefixtures("trusting")
def test_svhn_files_extra_set_included(tmp_path: Path) -> None:
    images, labels = random_images(TRAIN + TEST, 3, 32, 32), np.arange(TRAIN + TEST) % 10
    svhn_files(tmp_path, images, labels)
    check_read(stored("svhn", tmp_path), images, labels)


@pytest.mark.usefixtures("trusting")
def test_svhn_does_not_open_the_extra_set_for_nothing(tmp_path: Path) -> None:
    images, labels = random_images(TRAIN + TEST, 3, 32, 32), np.arange(TRAIN + TEST) % 10
    svhn_files(tmp_path, images, labels)
    (tmp_path / "extra_32x32.mat").unlink()
    batches = load_batches(stored("svhn", tmp_path, train_limit=4), seed=1)
    assert_same_multiset(everything(batches), images[:4], labels[:4])
    with pytest.raises(ConfigError, match=r"data\.name svhn: missing or damaged"):
        load_batches(stored("svhn", tmp_path), seed=1)


@pytest.mark.usefixtures("trusting")
def test_stl10_files(tmp_path: Path) -> None:
    images, labels = random_images(TRAIN + TEST, 3, 96, 96), np.arange(TRAIN + TEST) % 10
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for split, rows in (("train", slice(0, TRAIN)), ("test", slice(TRAIN, None))):
        column_by_column = images[rows].transpose(0, 1, 3, 2)
        (folder / f"{split}_X.bin").write_bytes(column_by_column.tobytes())
        (folder / f"{split}_y.bin").write_bytes((labels[rows] + 1).astype(np.uint8).tobytes())
    (folder / "unlabeled_X.bin").touch()
    check_read(stored("stl10", tmp_path), images, labels)


_TRAIN_FILE, _TEST_LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
_IDX_HEADER = struct.pack(">IIII", 0x803, TRAIN, 28, 28)


@pytest.mark.usefixtures("small_sets")
@pytest.mark.parametrize(
    ("name", "contents", "why"),
    [
        (_TRAIN_FILE, b"", "0 bytes"),
        (_TRAIN_FILE, b"\0\0\x08", "3 bytes"),
        (_TRAIN_FILE, b"<html>sign in</html>" * 400, "beginning b'<htm'"),
        (_TRAIN_FILE, b"\x1f\x8b\x08\0" + bytes(3000), "beginning"),
        (_TRAIN_FILE, _IDX_HEADER + bytes(TRAIN * 784 - 100), "expected|bytes"),
        (_TRAIN_FILE, _IDX_HEADER + bytes(TRAIN * 784 + 1), "5505 bytes"),
        (_TRAIN_FILE, struct.pack(">IIII", 0x803, TEST, 28, 28) + bytes(TEST * 784), "5 × 28 × 28"),
        (_TRAIN_FILE, struct.pack(">IIII", 0x803, 7, 27, 27) + bytes(7 * 729), "7 × 27 × 27"),
        (_TEST_LABELS, struct.pack(">II", 0x801, TRAIN) + bytes(TRAIN), "7, expected 5"),
        (_TEST_LABELS, struct.pack(">II", 0x803, TEST) + bytes(TEST), "beginning"),
    ],
)
@pytest.mark.parametrize("limit", [None, 3])
def test_a_damaged_file_of_mnist_is_named(
    name: str, contents: bytes, why: str, limit: int | None, tmp_path: Path
) -> None:
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / name
    path.write_bytes(contents)
    config = stored("mnist", tmp_path, train_limit=limit, test_limit=limit)
    with pytest.raises(ConfigError, match=rf"{path} is damaged: .*{why}.*; delete it, and it is"):
        load_batches(config, seed=1)


@pytest.mark.usefixtures("small_sets")
def test_a_file_of_mnist_that_is_none_is_not_waited_for(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / _TEST_LABELS
    for make in (os.mkfifo, os.mkdir):
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)
        with pytest.raises(ConfigError, match=rf"{path} is damaged"):
            load_batches(stored("mnist", tmp_path), seed=1)


@pytest.mark.usefixtures("small_sets")
def test_labels_of_another_set(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    labels = np.full(TRAIN, 10, dtype=np.uint8)
    write_idx(tmp_path / "MNIST" / "raw", "train", random_images(TRAIN, 28, 28), labels)
    with pytest.raises(ConfigError, match=r"expected 7 images of shape \(1, 28, 28\).*up to 10"):
        load_batches(stored("mnist", tmp_path, train_limit=1), seed=1)


@pytest.mark.usefixtures("small_sets")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("cifar100", "cifar-100-python/train"),
        ("svhn", "train_32x32.mat"),
        ("stl10", "stl10_binary/train_y.bin"),
    ],
)
def test_a_damaged_file_of_the_others_is_named(name: str, file: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"\x80\x04c__builtin__\nexit\n.")
    with pytest.raises(ConfigError, match=rf"missing or damaged.*{tmp_path / file} is damaged;"):
        load_batches(stored(name, tmp_path), seed=1)


# --- the real thing -----------------------------------------------------------------------


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"no MNIST in {SHARED_DATA} (SHARED_DATA)")
def test_the_whole_of_mnist(tmp_path: Path) -> None:
    unpack = [sys.executable, str(SHARED_DATA / "unpack.py"), str(tmp_path), "mnist"]
    subprocess.run(unpack, check=True, stdout=subprocess.DEVNULL, timeout=60)
    config = DataConfig(name="mnist", root=str(tmp_path), download=False)
    batches = load_batches(config, seed=1)
    images, labels = everything(batches)
    assert (images.shape, batches.steps_per_epoch) == ((60000, 1, 28, 28), 469)
    assert all_tests(batches)[0].shape == (10000, 1, 28, 28)
    assert list(np.bincount(labels)[:3]) == [5923, 6742, 5958]
    facts = batches.facts
    assert images.mean(dtype=np.float64) / 255 == pytest.approx(facts.mean[0], abs=0.005)
    assert images.std(dtype=np.float32) / 255 == pytest.approx(facts.std[0], abs=0.005)
