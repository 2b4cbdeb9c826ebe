""".npz files of a user's own: read without executing anything, whatever their bytes say."""

from __future__ import annotations

import pickle
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.own_data import floats, labels

from pipeline.config.data import DataConfig
from pipeline.data import npz
from pipeline.data.own_data import read_own
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

X, Y = floats(12), labels(12)


def saved(path: Path, **arrays: Any) -> DataConfig:
    np.savez_compressed(path / "own.npz", **arrays)
    return DataConfig(file=str(path / "own.npz"))


@pytest.mark.parametrize("names", [("x_train", "y_train"), ("X", "y")])
def test_parts_and_what_belongs_to_them(names: tuple[str, str], tmp_path: Path) -> None:
    rest = {"x_test": X[:3], "y_test": Y[:3], "mean": [1.0, 2.0], "std": [3.0, 4.0]}
    training = dict(zip(names, (np.asfortranarray(X), Y), strict=True))
    config = saved(tmp_path, **training, **rest, classes=["a", "b", "c", "d"], comment=[1])
    own = read_own(config)
    np.testing.assert_array_equal(own.training.x, X)
    np.testing.assert_array_equal(own.training.y, Y)
    assert own.test
    np.testing.assert_array_equal(own.test.x, X[:3])
    assert (own.names, own.mean, own.std) == (("a", "b", "c", "d"), (1.0, 2.0), (3.0, 4.0))


def test_a_test_part_is_not_needed(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", X=X, y=Y)
    assert read_own(DataConfig(file=str(tmp_path / "plain.npz"))).test is None


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x_train": X}, "holds x_train but no y_train"),
        ({"X": X, "y": Y, "y_test": Y}, "holds y_test but no x_test"),
        ({"x_test": X, "y_test": Y}, "needs x_train and y_train (or X and y), and holds x_test, y"),
        ({"images": X}, "needs x_train and y_train (or X and y), and holds nothing of that"),
        ({"X": X, "y": Y[:4]}, "train: 12 examples in X and 4 targets in y"),
        ({"X": np.array([{1: 2}] * 12), "y": Y}, "X holds Python objects, which are never loaded"),
    ],
)
def test_what_a_file_lacks(arrays: dict[str, Any], says: str, tmp_path: Path) -> None:
    config = saved(tmp_path, **arrays)
    with pytest.raises(ConfigError) as caught:
        read_own(config)
    assert str(caught.value).startswith(f"data.file {config.file}: {says}")


class Bomb:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (pickle.dumps(Bomb()), "is damaged or no .npz file: "),
        (b"", "is damaged or no .npz file: "),
        ({"X": pickle.dumps(Bomb())}, "is damaged or no .npz file: "),
        ({"X": header("(1 << 40,)")}, "is damaged or no .npz file: "),
        ({"X": header("(1000000000000,)")}, "X: 78 bytes are no float32 of shape (1000000000000,"),
        ({"X": header("(2,)", "|O") + pickle.dumps(Bomb())}, "X holds Python objects"),
        ({"X": b"\x93NUMPY\x03\x00" + bytes(200)}, "X: version (3, 0) of numpy's format"),
        ({"X": header("(-1,)") + bytes(4)}, "is damaged or no .npz file: "),
    ],
    ids=range(8),
)
def test_files_that_are_something_else(
    data: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.npz"
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        with ZipFile(path, "w") as archive:
            for name, member in {**data, "y": b""}.items():
                archive.writestr(f"{name}.npy", member)
    with pytest.raises(ConfigError) as caught:
        read_own(DataConfig(file=str(path)))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "no.npz", "No such file"), (tmp_path, "is no regular file")):
        with pytest.raises(ConfigError, match=rf"data\.file {path}: .*{why}"):
            read_own(DataConfig(file=str(path)))


def test_no_more_is_read_than_there_is_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ZipFile(tmp_path / "own.npz", "w", ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", header("(1048576,)") + bytes(1 << 22))
        archive.writestr("notes.npy", b"")
    assert (tmp_path / "own.npz").stat().st_size < 10_000
    monkeypatch.setattr(npz.os, "sysconf", lambda name: 1 << 10)
    with pytest.raises(ConfigError, match=r"holds 41943\d\d bytes of arrays, and this machine has"):
        read_own(DataConfig(file=str(tmp_path / "own.npz")))


def whole() -> bytes:
    file = BytesIO()
    np.savez_compressed(file, X=X[:, :1, :2], y=Y)
    return file.getvalue()


WHOLE = whole()


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), end=st.floats(0, 1))
def test_damaged_files_are_read_or_refused(
    place: float, byte: int, end: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(WHOLE)
    data[int(place * len(data))] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    for damaged in (data, data[: int(end * len(data))]):
        path.write_bytes(damaged)
        with suppress(ConfigError):
            read_own(DataConfig(file=str(path)))
