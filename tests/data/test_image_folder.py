"""Image folders: which files are images, which can be read, and what is seen of them."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from support.data import all_tests, everything, random_images

from pipeline.config.data import DataConfig
from pipeline.data.batches import load_batches
from pipeline.data.class_limited import share_of_every_class
from pipeline.data.facts import data_facts
from pipeline.data.image_folder import check_images
from pipeline.data.image_list import list_images
from pipeline.data.image_reading import ImageError, ImageReader, View, crop_box
from pipeline.errors import ConfigError, RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.data.image_list import ImageFolder

    Images = NDArray[np.uint8]
    Written = dict[str, list[tuple[str, int]]]

IN_COLOUR = View(8, 8, 3, None)


@pytest.fixture(autouse=True)
def written(tmp_path: Path) -> Written:
    """Classes cat and dog, 4 training and 3 test images each; paths and labels, in order."""
    written: Written = {"train": [], "val": []}
    for part, each in (("train", 4), ("val", 3)):
        for label, kind in enumerate(("cat", "dog")):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(each):
                path = tmp_path / part / kind / f"{number}.png"
                Image.fromarray(random_images(20 + number, 31 - number, 3)).save(path)
                written[part].append((str(path), label))
    return written


def folder_config(root: Path, **changes: Any) -> DataConfig:
    return DataConfig(name="imagefolder", root=str(root), **{"size": 7, "batch_size": 3, **changes})


# --- what is seen -------------------------------------------------------------------------


def test_a_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million files on a network disk it takes minutes, and they may change meanwhile."""
    listed: list[Path] = []

    def listing(root: Path) -> ImageFolder:
        listed.append(root)
        return list_images(root)

    for module in ("image_folder", "facts"):
        monkeypatch.setattr(f"pipeline.data.{module}.list_images", listing)
    load_batches(folder_config(tmp_path), seed=1)
    assert listed == [tmp_path]


def test_image_folders_are_read(tmp_path: Path, written: Written) -> None:
    batches = load_batches(folder_config(tmp_path), seed=1)
    images, labels = everything(batches)
    assert (images.shape, images.dtype) == ((8, 3, 7, 7), np.uint8)
    assert batches.train(1, 0)[0].flags.c_contiguous
    assert sorted(labels) == [label for _, label in written["train"]]
    assert list(all_tests(batches)[1]) == [label for _, label in written["val"]]


def test_the_test_view_is_the_middle_after_resizing(tmp_path: Path, written: Written) -> None:
    found = all_tests(load_batches(folder_config(tmp_path), seed=1))[0]
    for (path, _), image in zip(written["val"], found, strict=True):
        source = Image.open(path)
        high, wide = source.height, source.width
        assert high < wide
        resized = source.resize((int(8 * wide / high), 8), Image.Resampling.BILINEAR)
        left = round((resized.width - 7) / 2)
        middle = resized.crop((left, 0, left + 7, 7))
        np.testing.assert_array_equal(image, np.asarray(middle).transpose(2, 0, 1))


def test_a_random_view_depends_on_seed_epoch_and_image_alone(tmp_path: Path) -> None:
    one, same, other = (load_batches(folder_config(tmp_path), seed=seed) for seed in (1, 1, 2))
    one.train(3, 2)
    np.testing.assert_array_equal(one.train(2, 1)[0], same.train(2, 1)[0])
    every = np.arange(8)
    epochs = [one.training.take(every, epoch)[0] for epoch in (1, 2)]
    assert all((a != b).any() for a, b in zip(*epochs, strict=True))
    assert (other.training.take(every, 1)[0] != epochs[0]).any()
    alone = np.concatenate([one.training.take(every[k : k + 1], 1)[0] for k in range(8)])
    np.testing.assert_array_equal(alone, epochs[0])


def test_crop_boxes_fit_and_spread() -> None:
    draws = np.random.default_rng(1)
    boxes = np.array([crop_box(60, 80, draws) for _ in range(2000)])
    top, left, high, wide = boxes.T
    assert (boxes >= 0).all()
    assert (top + high).max() == 60
    assert (left + wide).max() == 80
    share, ratio = high * wide / 4800, wide / high
    assert 0.07 < share.min() < 0.1
    assert 0.95 < share.max() <= 1.01
    assert 0.7 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.4


@pytest.mark.parametrize(
    ("height", "width", "box"), [(2, 200, (0, 98, 2, 3)), (200, 2, (98, 0, 3, 2))]
)
def test_a_strip_is_cropped_in_the_middle(
    height: int, width: int, box: tuple[int, int, int, int]
) -> None:
    boxes = [crop_box(height, width, np.random.default_rng(seed)) for seed in range(20)]
    assert boxes.count(box) >= 15  # 8 % of such a strip is wider than any allowed ratio


@pytest.mark.parametrize("side", [7, 8, 20])
def test_a_square_image_can_be_seen_whole(side: int, tmp_path: Path, written: Written) -> None:
    """The digits as PNGs: their 8 × 8 pixels arrive as they are, in training as in tests."""
    for path, _ in written["train"]:
        Image.fromarray(random_images(side, side, 3)).save(path)
    config = folder_config(tmp_path, size=side, resize=side, random_crop=False)
    images = everything(load_batches(config, seed=1))[0]
    for image in images:
        np.testing.assert_array_equal(image, random_images(side, side, 3).transpose(2, 0, 1))


def test_resizing_by_a_key_is_that_of_the_default(tmp_path: Path) -> None:
    usual = all_tests(load_batches(folder_config(tmp_path), seed=1))[0]
    for resize, same in ((7 * 256 // 224, True), (7, False), (14, False)):
        other = all_tests(load_batches(folder_config(tmp_path, resize=resize), seed=1))[0]
        assert np.array_equal(usual, other) is same, resize


def test_grey_images_have_one_channel(tmp_path: Path, written: Written) -> None:
    config = folder_config(tmp_path, channels=1, resize=7)
    found = all_tests(load_batches(config, seed=1))[0]
    assert found.shape == (6, 1, 7, 7)
    path = written["val"][0][0]
    grey = Image.open(path).convert("L").resize((10, 7), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[0, 0], np.asarray(grey.crop((2, 0, 9, 7))))


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_are_measured(channels: int, tmp_path: Path) -> None:
    config = folder_config(
        tmp_path, channels=channels, normalise="measured", random_crop=False, resize=7
    )
    batches = load_batches(config, seed=1)
    pixels = everything(batches)[0] / 255
    np.testing.assert_allclose(batches.facts.mean, pixels.mean((0, 2, 3)), atol=6e-5)
    np.testing.assert_allclose(batches.facts.std, pixels.std((0, 2, 3)), atol=6e-5)
    assert data_facts(config).mean != batches.facts.mean


def test_mean_and_deviation_can_be_measured_of_any_data_set() -> None:
    facts = load_batches(DataConfig(name="digits", normalise="measured"), seed=1).facts
    assert (facts.mean, facts.std) == ((0.3053,), (0.3762,))


def test_mean_and_deviation_can_be_given(tmp_path: Path) -> None:
    given = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    facts = load_batches(folder_config(tmp_path, **given), seed=1).facts
    assert (facts.mean, facts.std) == tuple(given.values())
    with pytest.raises(ConfigError, match=r"data\.mean: 3 numbers for the 1 channels"):
        data_facts(DataConfig(name="digits", **given))


def test_images_of_one_colour_have_no_deviation(tmp_path: Path, written: Written) -> None:
    for path, _ in written["train"]:
        Image.new("RGB", (9, 9), "grey").save(path)
    with pytest.raises(ConfigError, match=r"the standard deviation of a channel is 0"):
        load_batches(folder_config(tmp_path, normalise="measured"), seed=1)


# --- which files ----------------------------------------------------------------------------


def copy_image(tmp_path: Path, *names: str) -> None:
    for name in names:
        data = (tmp_path / "train" / "cat" / "0.png").read_bytes()
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def training_paths(root: Path) -> list[str]:
    return [file.path for file in list_images(root).training.files]


def test_files_come_in_torchvisions_order(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    copy_image(tmp_path, "cat/b/9.PNG", "cat/b-c/0.jpeg", "cat/b/c/d/1.png", "cat/B/2.webp")
    copy_image(tmp_path, "dog/film.png/0.png", "dog/notes.txt", "dog/x.gif", "dog/a.png.bak")
    (tmp_path / "elsewhere").mkdir()
    copy_image(tmp_path, "../elsewhere/7.png", "../elsewhere/in/8.tif")
    (tmp_path / "train" / "cat" / "linked").symlink_to("../../elsewhere")
    (tmp_path / "train" / "dog" / "one.bmp").symlink_to("../cat/0.png")
    theirs = ImageFolder(tmp_path / "train")
    listed = list_images(tmp_path)
    assert [(listed.training.path(f), f.label) for f in listed.training.files] == theirs.samples
    assert list(listed.classes) == theirs.classes
    assert data_facts(folder_config(tmp_path)).train_images == len(theirs) == 16


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat/0.gif", "dog/1.GIF", "dog/in/x.jfif"], [".gif (2), .jfif (1); images are .jpg"]),
        (["cat/7", "cat/8.tfrecord.gz"], ["nothing (1), .gz (1); images are"]),
        ([f"dog/{n}.{n % 7}" for n in range(70)], [".0 (10), .1 (10)", "and 2 more; images"]),
        (["loose.png", "x.JPG", "notes.txt"], ["2 image files in train or val itself, beside"]),
        (["one.webp", "dog/heic.heic"], [".heic (1)", "not read: 1 image file in train or val"]),
        (["cat/.DS_Store", ".a.png", "cat/@eaDir/0.gif"], []),
    ],
)
def test_files_that_are_passed_over_are_told(
    names: list[str], said: list[str], tmp_path: Path
) -> None:
    """Somebody may take them for images of the run."""
    copy_image(tmp_path, *names)
    told = load_batches(folder_config(tmp_path), seed=1).notes
    assert bool(told) is bool(said)
    for words in said:
        assert words in " ".join(told)


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".cache", "$RECYCLE.BIN"]
)
def test_what_a_system_keeps_for_itself_is_no_class_and_no_image(name: str, tmp_path: Path) -> None:
    before = training_paths(tmp_path)
    copy_image(
        tmp_path, f"{name}/0-checkpoint.png", f"cat/{name}/0.png", "cat/._0.png", "dog/.x.png"
    )
    assert training_paths(tmp_path) == before
    assert list_images(tmp_path).classes == ("cat", "dog")


LOOPS = {
    "to itself": {"again": "."},
    "to all classes": {"all": ".."},
    "to the root": {"deep/root": "../../../.."},
    "to each other": {"a/other": "../b", "b/other": "../a"},
    "to nothing but itself": {"loop": "loop"},
    "twice at each of 40 levels": {
        f"level{level}/{way}": f"../level{(level + 1) % 40}" for level in range(40) for way in "xy"
    },
}


@pytest.mark.parametrize("links", LOOPS.values(), ids=LOOPS.keys())
def test_links_in_circles_lead_nowhere(links: dict[str, str], tmp_path: Path) -> None:
    before = training_paths(tmp_path)
    for name, target in links.items():
        link = tmp_path / "train" / "cat" / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
    assert training_paths(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"remove": ["train/dog", "val/dog"]}, ["one class (cat)", "at least 2"]),
        ({"remove": ["train/dog", "val/dog", "train/cat", "val/cat"]}, ["no class", "at least 2"]),
        ({"remove": ["val/dog"]}, ["in only one of train and val: dog"]),
        ({"make": ["train/cow"]}, ["in only one of train and val: cow"]),
        ({"make": ["train/cow", "val/cow"]}, ["without an image: cow", ".png"]),
        (
            {"make": ["train/cow", "val/cow"], "write": ["cow/0.gif"]},
            ["cow (files not read end in .gif (1)"],
        ),
        ({"remove": ["train"]}, ["holds val/, and imagefolder needs train/CLASS/… with val/"]),
        ({"remove": ["train", "val"]}, ["holds no folder, and imagefolder needs", "at least 2"]),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    change: dict[str, list[str]], words: list[str], tmp_path: Path
) -> None:
    import shutil

    for name in change.get("remove", []):
        shutil.rmtree(tmp_path / name)
    for name in change.get("make", []):
        (tmp_path / name).mkdir()
    copy_image(tmp_path, *change.get("write", []))
    for ask in (data_facts, lambda config: load_batches(config, seed=1)):
        with pytest.raises(ConfigError) as caught:
            ask(folder_config(tmp_path))
        assert all(word in str(caught.value) for word in words), caught.value
        assert "\n" not in str(caught.value)


def layout(tmp_path: Path, *folders: str) -> Path:
    """A folder that holds these, with eight pictures each."""
    root = tmp_path / "own"
    for name in folders:
        (root / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(root / name / f"{number}.png")
    return root


IN_TRAIN = ("train/cat", "train/dog")


@pytest.mark.parametrize(
    ("folders", "test", "unread"),
    [
        ((*IN_TRAIN, "val/cat", "val/dog"), "val", ()),
        ((*IN_TRAIN, "test/cat", "test/dog"), "test", ()),
        ((*IN_TRAIN, "valid/cat", "valid/dog", "test/cat", "test/dog"), "valid", ("test",)),
        ((*IN_TRAIN, "val/cat", "val/dog", "test/cat", "test/dog"), "val", ("test",)),
        (IN_TRAIN, "", ()),
        ((*IN_TRAIN, "test"), "", ("test",)),  # to predict
    ],
)
def test_parts_are_found_by_the_names_that_people_give_them(
    folders: Sequence[str], test: str, unread: tuple[str, ...], tmp_path: Path
) -> None:
    found = list_images(layout(tmp_path, *folders))
    assert (found.classes, found.training.name) == (("cat", "dog"), "train")
    assert (found.test.name, found.unread) == (test, unread)
    assert (len(found.training.files), len(found.test.files)) == (16, 16 if test else 0)
    assert bool(found.passed_over()) is bool(unread)


@pytest.mark.parametrize("classes", [("cat", "dog"), ("bus", "train"), ("test", "train", "val")])
def test_one_folder_of_classes_has_a_share_to_test_on(
    classes: tuple[str, ...], tmp_path: Path
) -> None:
    """Whatever they are called."""
    root = layout(tmp_path, *classes)
    assert list_images(root).classes == classes
    config = folder_config(root, batch_size=4)
    assert not load_batches(config, seed=1).evaluation_batches
    batches = load_batches(config.model_copy(update={"validation": 0.25}), seed=1)
    record = batches.record("imagefolder")
    assert record.training.per_class == (6,) * len(classes)
    assert record.test.per_class == (2,) * len(classes)
    assert batches.evaluation(0)[0].shape[0] == min(4, 2 * len(classes))
    assert {name for name, *_ in batches.files()} == {"."}


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "limit", "expected"),
    [
        ((40, 40, 40), 32, (11, 11, 10)),
        ((1, 1000, 10), 20, (1, 18, 1)),
        ((10, 20, 30), 6, (1, 2, 3)),
        ((7, 7), 14, (7, 7)),
        ((3, 500, 2, 500), 5, (1, 1, 1, 2)),
    ],
)
def test_a_limit_takes_a_share_of_every_class(
    counts: tuple[int, ...], limit: int, expected: tuple[int, ...]
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    chosen = share_of_every_class(labels, limit, len(counts))
    assert tuple(np.bincount(labels[chosen])) == expected
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, share_of_every_class(labels, limit, len(counts)))


def test_a_limit_of_an_image_folder_is_the_same_for_all_seeds(tmp_path: Path) -> None:
    config = folder_config(tmp_path, train_limit=5, test_limit=2)
    one, other = (load_batches(config, seed=seed) for seed in (1, 2))
    assert sorted(everything(one)[1]) == [0, 0, 0, 1, 1]
    assert list(all_tests(one)[1]) == [0, 1]
    assert list(one.files()) == list(other.files())
    assert (one.facts.train_images, data_facts(config).train_images, one.evaluation_batches) == (
        5,
        5,
        1,
    )
    assert [path for _, path, *_ in one.files()] != [
        path for _, path, *_ in load_batches(folder_config(tmp_path), 1).files()
    ][:7]


def test_a_validation_share_is_seen_as_in_a_test(tmp_path: Path) -> None:
    plain, validated = (
        load_batches(folder_config(tmp_path, **keys), seed=1) for keys in ({}, {"validation": 0.25})
    )
    images, labels = all_tests(validated)
    assert sorted(labels) == [0, 1]
    in_tests = {image.tobytes() for image in plain.training.take(np.arange(8), None)[0]}
    assert {image.tobytes() for image in images} <= in_tests
    assert len(everything(validated)[1]) == 6
    assert list(validated.files()) == list(plain.files())
    digests = {batches.record("imagefolder").training.digest for batches in (plain, validated)}
    assert len(digests) == 2


@pytest.mark.parametrize(("limits", "gaps"), [((1, 6), 1), ((1, 1), 2), ((2, 2), 0)])
def test_a_limit_below_the_number_of_classes_is_told(
    limits: tuple[int, int], gaps: int, tmp_path: Path
) -> None:
    config = folder_config(tmp_path, train_limit=limits[0], test_limit=limits[1])
    found = load_batches(config, seed=1).record("imagefolder").gaps("imagefolder")
    assert len(found) == gaps
    assert all("1 of 2 classes have no" in line for line in found)


# --- files that can't be read ------------------------------------------------------------------


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])


def text(path: Path) -> None:
    path.write_text("broken")


def link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def png_of(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


BROKEN: dict[str, Callable[[Path], object]] = {
    "cut off": cut_off,
    "text": text,
    "empty": lambda path: path.write_bytes(b""),
    "a pipe": pipe,
    "a link to nothing": lambda path: link(path, "nowhere.png"),
    "a link to a device": lambda path: link(path, "/dev/zero"),
    "a bomb": lambda path: path.write_bytes(png_of(30000, 30000, bytes(1000))),
    "a strip": lambda path: path.write_bytes(png_of(1, 60_000_000, bytes(1000))),
    "PostScript": lambda path: path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    ),
}


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN.keys())
def test_a_bad_file_is_named_before_anything_starts(
    damage: Callable[[Path], object], part: str, tmp_path: Path, written: Written
) -> None:
    first, second = Path(written[part][1][0]), Path(written[part][4][0])
    damage(first)
    second.write_bytes(b"" if damage is text else b"broken")
    with pytest.raises(ConfigError) as caught:
        load_batches(folder_config(tmp_path), seed=1)
    message = str(caught.value)
    assert message.startswith(f"{first}: can't be decoded as an image: ")
    assert "2 of 14 image files" in message
    assert "data.on_bad_image=skip" in message
    assert "\n" not in message


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN.keys())
def test_bad_files_can_be_left_out(
    damage: Callable[[Path], object], tmp_path: Path, written: Written
) -> None:
    """As if they were not there: the same batches, whoever asks, and in every order."""
    bad = [Path(written["train"][1][0]), Path(written["val"][5][0])]
    for path in bad:
        damage(path)
    config = folder_config(tmp_path, on_bad_image="skip")
    batches = load_batches(config, seed=1)
    assert [Path(image.path) for image in batches.left_out] == bad
    for path in bad:
        path.unlink()
    without = load_batches(folder_config(tmp_path), seed=1)
    assert batches.facts == without.facts
    assert batches.record("imagefolder") == without.record("imagefolder")
    for found, expected in zip(everything(batches), everything(without), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_only_decoding_finds_is_found_by_skip(tmp_path: Path, written: Written) -> None:
    """Header and end are right, the middle is not."""
    path = Path(written["train"][2][0])
    path.write_bytes(png_of(20, 20, b"\0" * 50))
    assert not load_batches(folder_config(tmp_path), seed=1).left_out
    (left_out,) = load_batches(folder_config(tmp_path, on_bad_image="skip"), seed=1).left_out
    assert left_out.path == str(path)


def test_what_only_training_finds_is_named(tmp_path: Path, written: Written) -> None:
    batches = load_batches(folder_config(tmp_path), seed=1)
    path = Path(written["val"][4][0])
    cut_off(path)
    with pytest.raises(RunError, match=rf"{path}: can't be decoded as an image"):
        batches.evaluation(1)


def test_a_class_of_which_nothing_can_be_read_is_refused(tmp_path: Path, written: Written) -> None:
    for path, label in written["val"]:
        if label == 1:
            text(Path(path))
    with pytest.raises(ConfigError, match=r"no image of dog can be read \(first of 3: "):
        load_batches(folder_config(tmp_path, on_bad_image="skip"), seed=1)


def test_looking_is_told_and_the_same_in_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_image(tmp_path, *(f"cat/{number}.png" for number in range(10, 300)))
    text(tmp_path / "train" / "cat" / "200.png")
    reader, listed = ImageReader(IN_COLOUR), list_images(tmp_path)
    found, told = [], list[tuple[str, int, int]]()
    for slow_s in (1.0, 0.0):
        monkeypatch.setattr("pipeline.data.image_folder._SLOW_S", slow_s)
        with pytest.raises(ConfigError, match="1 of 304 image files"):
            check_images(listed, reader, skip=False, progress=lambda *what: told.append(what))
        assert told[-1] == ("looking at images", 304, 304)
        found.append(check_images(listed, reader, skip=True, progress=lambda *_: None))
    assert found[0] == found[1]


# --- modes and formats ---------------------------------------------------------------------------

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp")


@pytest.mark.parametrize("written_as", SUFFIXES)
def test_every_format_is_read_under_every_name(written_as: str, tmp_path: Path) -> None:
    source = tmp_path / f"source{written_as}"
    Image.fromarray(random_images(20, 31, 3)).save(source)
    reader = ImageReader(IN_COLOUR)
    for called in SUFFIXES:
        path = tmp_path / f"other{called}"
        path.write_bytes(source.read_bytes())
        reader.look(str(path), whole=True)
        expected = np.asarray(Image.open(source).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(reader.decode(str(path))), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize(("channels", "plain"), [(3, "RGB"), (1, "L")])
def test_pixels_of_8_bits_are_as_torchvision_reads_them(
    mode: str, channels: int, plain: str, tmp_path: Path
) -> None:
    path = tmp_path / "0.tif"
    Image.fromarray(random_images(9, 11, 3)).convert(mode).save(path)
    found = ImageReader(View(8, 8, channels, None)).decode(str(path))
    assert found.tobytes() == Image.open(path).convert(plain).tobytes()


DEEP = {
    "png16": (np.uint16, ".png", 65535),
    "png12": (np.uint16, ".png", 4095),
    "tif16": (np.uint16, ".tif", 65535),
    "tif16 big endian": (">u2", ".tif", 65535),
    "tif32": (np.int32, ".tif", 2**30),
    "float": (np.float32, ".tif", 1.0),
    "float 255": (np.float32, ".tif", 255.0),
}


def write_deep(path: Path, kind: str) -> NDArray[np.float64]:
    """Writes grey values from 0 to white; gives them as shares of white."""
    dtype, _, white = DEEP[kind]
    shares = np.linspace(0, 1, 120).reshape(10, 12)
    pixels = (shares * white).astype(dtype)
    Image.fromarray(pixels).save(path)
    found: NDArray[np.float64] = pixels.astype(np.float64) / white
    return found


@pytest.mark.parametrize("kind", DEEP)
def test_deeper_pixels_are_scaled(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"0{DEEP[kind][1]}"
    shares = write_deep(path, kind)
    reader = ImageReader(View(8, 8, 3, DEEP[kind][2]))
    reader.look(str(path))
    found = np.asarray(reader.decode(str(path)))
    for channel in range(3):
        np.testing.assert_array_equal(found[..., channel], np.rint(255 * shares))


@pytest.mark.parametrize("kind", DEEP)
def test_deeper_pixels_are_refused_where_white_is_not_known(
    kind: str, tmp_path: Path, written: Written
) -> None:
    path = Path(written["val"][2][0]).with_suffix(DEEP[kind][1])
    write_deep(path, kind)
    for on_bad_image in ("stop", "skip"):  # it is the config that is wrong, not the file
        with pytest.raises(ConfigError, match=rf"{path}: pixels of mode (I|F).*data\.white="):
            load_batches(folder_config(tmp_path, on_bad_image=on_bad_image), seed=1)
    load_batches(folder_config(tmp_path, white=DEEP[kind][2]), seed=1)


@pytest.mark.parametrize(
    ("pixels", "white"),
    [
        (np.full((4, 4), 5000, np.uint16), 4095),
        (np.full((4, 4), -1, np.int32), 255),
        (np.full((4, 4), 200, np.float32), 1.0),
        (np.full((4, 4), np.nan, np.float32), 1.0),
        (np.full((4, 4), np.inf, np.float32), 1.0),
    ],
)
def test_values_that_do_not_lie_between_black_and_white_are_refused(
    pixels: NDArray[Any], white: float, tmp_path: Path
) -> None:
    path = tmp_path / "0.tif"
    Image.fromarray(pixels).save(path)
    with pytest.raises(ImageError, match=r"0\.tif: .* not between 0 and data\.white"):
        ImageReader(View(8, 8, 3, white)).look(str(path))


def test_of_16_bit_colour_the_upper_8_bits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (5, 6, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(png_of(6, 5, rows, depth=16))
    for white in (None, 65535):
        found = np.asarray(ImageReader(View(8, 8, 3, white)).decode(str(path)))
        np.testing.assert_array_equal(found, pixels >> 8)
    with pytest.raises(ImageError, match=r"0\.png: .*RGB;16B.*upper 8 of 16 bits"):
        ImageReader(View(8, 8, 3, 4095)).look(str(path))
