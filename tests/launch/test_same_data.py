"""A resumed run sees the images that it began with, or says what is other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from support.processes import launch

from launch.same_data import check_same_data, list_files
from pipeline.config.data import DataConfig
from pipeline.data.batches import Batches, load_batches
from pipeline.data.record import record_of_tree
from pipeline.errors import ConfigError
from pipeline.storage.checkpoint import RunState

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = """\
model: {name: mlp, hidden_layers: 1, hidden: 8}
loss: {name: pred}
schedule: {epochs: 1}
data: {name: imagefolder, root: ROOT, size: 6, batch_size: 5}
"""


def write_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(seed)
    Image.fromarray(draws.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """7 images of each class for training, 3 for testing."""
    for part, each in (("train", 7), ("val", 3)):
        for kind in ("cat", "dog"):
            for number in range(each):
                write_image(tmp_path / "img" / part / kind / f"{number}.bmp", number)
    return tmp_path / "img"


def wanted(**changes: Any) -> DataConfig:
    return DataConfig(name="imagefolder", size=6, batch_size=4, **changes)


def read(root: Path, **changes: Any) -> Batches:
    return load_batches(wanted(root=str(root), **changes), seed=1)


def start_of(batches: Batches, name: str = "imagefolder") -> RunState:
    """As a checkpoint brings it: through JSON."""
    tree = json.loads(json.dumps(batches.record(name).tree))
    return RunState(steps_per_epoch=batches.steps_per_epoch, data=record_of_tree(tree))


def checked(start: RunState, now: Batches, *, accepted: bool = False, **limit: int) -> list[str]:
    """The notes, without a list of files; `accepted`: whatever images there are now."""
    record = now.record("imagefolder")
    config = wanted(accept=record.digest if accepted else None, **limit)
    return check_same_data(start, now, record, config, Path("none"))


def _gone(root: Path) -> None:
    (root / "train" / "cat" / "3.bmp").unlink()


def _a_test_image_gone(root: Path) -> None:
    (root / "val" / "dog" / "1.bmp").unlink()


def _new(root: Path) -> None:
    write_image(root / "train" / "dog" / "new.bmp")


def _replaced_by_one_of_the_same_size(root: Path) -> None:
    write_image(root / "train" / "dog" / "5.bmp", 99)


def _moved_to_another_class(root: Path) -> None:
    (root / "train" / "dog" / "5.bmp").rename(root / "train" / "cat" / "extra.bmp")


def _other_classes(root: Path) -> None:
    for part in ("train", "val"):
        (root / part / "cat").rename(root / part / "zebra")


CHANGES = {
    _gone: ["13 training images instead of 14", "train/cat/3.bmp is gone"],
    _a_test_image_gone: ["5 test images instead of 6", "val/dog/1.bmp is gone"],
    _new: ["15 training images instead of 14", "train/dog/new.bmp is new"],
    _replaced_by_one_of_the_same_size: ["other training images", "train/dog/5.bmp has changed"],
    _moved_to_another_class: ["other training images", "train/cat/extra.bmp is new", "is gone"],
    _other_classes: ["classes dog, zebra instead of cat, dog", "(the first of 10)"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_images_are_refused_unless_they_are_accepted(
    change: Callable[[Path], None], root: Path, tmp_path: Path
) -> None:
    before, kept = read(root), tmp_path / "images.jsonl"
    kept.write_bytes(list_files(before))
    start = start_of(before)
    assert check_same_data(start, read(root), before.record("imagefolder"), wanted(), kept) == []
    change(root)
    now = read(root)
    record = now.record("imagefolder")
    for accepted in (None, before.record("imagefolder").digest):
        with pytest.raises(ConfigError) as caught:
            check_same_data(start, now, record, wanted(accept=accepted), kept)
        for word in (*CHANGES[change], f"--set data.accept={record.digest}", "bring them back"):
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
    (note,) = check_same_data(start, now, record, wanted(accept=record.digest), kept)
    assert CHANGES[change][0] in note


def test_without_the_list_of_files_the_rest_is_said(root: Path, tmp_path: Path) -> None:
    start = start_of(read(root))
    _gone(root)
    for contents in (None, b"", b"[1]\n", b"\xff", b'["train"]\n', b"null\n"):
        kept = tmp_path / "images.jsonl"
        kept.unlink(missing_ok=True)
        if contents is not None:
            kept.write_bytes(contents)
        now = read(root)
        with pytest.raises(ConfigError, match="13 training images instead of 14"):
            check_same_data(start, now, now.record("imagefolder"), wanted(), kept)


def test_a_folder_that_moved_is_the_same(root: Path, tmp_path: Path) -> None:
    start = start_of(read(root))
    root.rename(tmp_path / "elsewhere")
    assert not checked(start, read(tmp_path / "elsewhere"))


def test_another_number_of_batches_can_not_be_accepted(root: Path) -> None:
    start = start_of(read(root))
    for number in range(3):
        (root / "train" / "cat" / f"{number}.bmp").unlink()
    with pytest.raises(ConfigError, match="now gives 3 batches an epoch, the run began with 4"):
        checked(start, read(root), accepted=True)


def test_another_number_of_classes_can_not_be_accepted(root: Path) -> None:
    start = start_of(read(root))
    for part, number in (("train", 6), ("val", 2)):
        (root / part / "eel").mkdir()
        (root / part / "cat" / f"{number}.bmp").rename(root / part / "eel" / "0.bmp")
    with pytest.raises(ConfigError, match=r"classes cat, dog, eel instead of .* bring back"):
        checked(start, read(root), accepted=True)


def test_a_checkpoint_without_a_digest_goes_on_with_a_note(root: Path) -> None:
    now = read(root)
    start = replace(start_of(now), data=None)
    (note,) = checked(start, now)
    assert "kept no digest" in note
    with pytest.raises(ConfigError, match="now gives 4 batches an epoch, the run began with 9"):
        checked(replace(start, steps_per_epoch=9), now)
    assert not checked(RunState(), now)


@pytest.mark.parametrize("limit", [{"train_limit": 13}, {"test_limit": 5}, {"train_limit": 15}])
def test_a_checkpoint_without_a_digest_had_other_images_under_a_limit(
    limit: dict[str, int], root: Path
) -> None:
    """Earlier versions took the first images, which are of the first classes."""
    now = read(root, **limit)
    start, digest = replace(start_of(now), data=None), now.record("imagefolder").digest
    if limit == {"train_limit": 15}:  # more than there are
        (note,) = checked(start, now, **limit)
        assert "kept no digest" in note
        return
    with pytest.raises(ConfigError, match=f"took the first images.*accept={digest}"):
        checked(start, now, **limit)
    (note,) = checked(start, now, accepted=True, **limit)
    assert "from here on the run has other images" in note


@pytest.mark.parametrize("changes", [{"size": 5}, {"classes": 3}, {"test_images": 9}])
def test_arrays_have_digests_too(changes: dict[str, int]) -> None:
    usual = {"size": 4, "train_images": 20, "test_images": 8, "classes": 4}
    one, same, other = (
        load_batches(DataConfig(name="synthetic", **{**usual, **more}), seed=1).record("synthetic")
        for more in ({}, {}, changes)
    )
    assert one == same == record_of_tree(json.loads(json.dumps(one.tree)))
    assert one.digest != other.digest


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["cat"]},
        {"classes": [1, 2]},
        {"training": {"per_class": [7, -1], "digest": "x"}},
        {"training": {"per_class": [7, 7, 7], "digest": "x"}},
        {"test": {"per_class": [3, 3]}},
        {"test": None},
        {"name": 3},
    ],
)
def test_a_record_that_was_spoilt_is_refused(change: dict[str, Any], root: Path) -> None:
    tree = json.loads(json.dumps(read(root).record("imagefolder").tree))
    with pytest.raises((ValueError, TypeError, LookupError)):
        record_of_tree({**tree, **change})


@pytest.mark.processes
@pytest.mark.usefixtures("sockets_gone")
def test_a_run_keeps_its_images_and_goes_on_without_a_broken_one(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, run = tmp_path / "f.yaml", tmp_path / "run"
    config.write_text(CONFIG.replace("ROOT", str(root)), encoding="utf-8")
    broken = root / "train" / "cat" / "3.bmp"
    shutil.copy(broken, tmp_path / "kept.bmp")
    assert launch(config, run, single=True, view="plain") == 0
    assert (
        "data imagefolder: 14 training and 6 test images of 2 classes: cat, dog"
        in capfd.readouterr().out
    )
    kept = json.loads((run / "data.json").read_text())
    assert (kept["classes"], kept["training_images"]) == (["cat", "dog"], 14)
    manifest = json.loads((run / "checkpoints" / "step-00000003" / "manifest.json").read_text())
    assert {**manifest["data"], "facts": kept["facts"]} == kept
    broken.write_bytes(b"broken")
    more = {"single": True, "resume": True, "overrides": ("schedule.epochs=2",)}
    assert launch(config, run, **more) == 2
    assert f"{broken}: can't be decoded" in capfd.readouterr().err
    more["overrides"] = (*more["overrides"], "data.on_bad_image=skip")
    assert launch(config, run, **more) == 2
    said = capfd.readouterr().err
    assert "13 training images instead of 14; train/cat/3.bmp is gone" in said
    accept = said.partition("--set ")[2].partition(")")[0]
    assert launch(config, run, **{**more, "overrides": (*more["overrides"], accept)}) == 0
    log = (run / "run.log").read_text()
    assert f"left out: {broken}: it is of no format" in log
    assert "data.accept: from here on the run has other images" in log
    assert "left out as they can't be decoded: 1 image file, " in log
    resumed = {**more, "overrides": ("schedule.epochs=3", "data.on_bad_image=skip")}
    assert launch(config, run, **resumed) == 0  # now these are the images of the run
