"""Augmentation of a batch equals that of each image by itself, written out slowly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.learning.augment import Preprocess
from pipeline.seeding import Purpose, generator

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")
TRICKS = [
    (0, False, 0), (2, False, 0), (0, True, 0), (0, False, 4), (0, False, 5), (3, True, 0),
    (3, True, 6), (9, True, 9), (1, True, 1),
]  # fmt: skip


def preprocess(
    padding: int = 0, flip: bool = False, cutout: int = 0, seed: int = 7, device: torch.device = CPU
) -> Preprocess:
    return Preprocess(
        MEAN, STD, crop_padding=padding, flip=flip, cutout=cutout, seed=seed, device=device
    )


def some_images(n: int = 24, height: int = 9, width: int = 11) -> torch.Tensor:
    draws = np.random.default_rng(1)
    return torch.from_numpy(draws.integers(0, 256, (n, 3, height, width), dtype=np.uint8))


def numbered(n: int, size: int) -> torch.Tensor:
    """Every pixel of an image has a value of its own, and none is 0."""
    grid = torch.arange(1, size * size + 1, dtype=torch.uint8).view(1, 1, size, size)
    return grid.expand(n, 3, size, size)


def slow_train(
    image: np.ndarray, draw: np.ndarray, padding: int, flip: bool, cutout: int
) -> np.ndarray:
    """One image (C, H, W), pixel by pixel: pad, crop, flip, normalise, cut out."""
    channels, height, width = image.shape
    top, left = (int(draw[k] * (2 * padding + 1)) - padding for k in (0, 1))
    first_row = int(draw[3] * height) - cutout // 2
    first_column = int(draw[4] * width) - cutout // 2
    result = np.zeros(image.shape, dtype=np.float32)
    for c, y, x in np.ndindex(channels, height, width):
        in_hole = 0 <= y - first_row < cutout and 0 <= x - first_column < cutout
        if in_hole:
            continue
        from_y = y + top
        from_x = (width - 1 - x if flip and draw[2] >= 0.5 else x) + left
        inside = 0 <= from_y < height and 0 <= from_x < width
        value = np.float32(image[c, from_y, from_x] if inside else 0) / np.float32(255)
        result[c, y, x] = (value - np.float32(MEAN[c])) / np.float32(STD[c])
    return result


@pytest.mark.parametrize(("padding", "flip", "cutout"), TRICKS)
def test_a_batch_equals_each_image_by_itself(padding: int, flip: bool, cutout: int) -> None:
    images = some_images()
    found = preprocess(padding, flip, cutout).train(images, 5)
    draws = generator(7, Purpose.AUGMENT, 5).random((len(images), 5))
    expected = [
        slow_train(image.numpy(), draw, padding, flip, cutout)
        for image, draw in zip(images, draws, strict=True)
    ]
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))


@pytest.mark.parametrize(("padding", "flip", "cutout"), TRICKS)
def test_form_of_the_result(padding: int, flip: bool, cutout: int) -> None:
    images = some_images()
    for given in (images, images.to(memory_format=torch.channels_last)):
        before = given.clone()
        prepare = preprocess(padding, flip, cutout)
        for result in (prepare.train(given, 1), prepare.evaluate(given)):
            assert (result.shape, result.dtype) == (images.shape, torch.float32)
            assert result.is_contiguous()
        assert torch.equal(given, before)


def test_same_position_same_result_whatever_came_before() -> None:
    images, prepare = some_images(), preprocess(3, True, 4)
    first = prepare.train(images, 8)
    prepare.train(images, 9)
    prepare.evaluate(images)
    assert torch.equal(prepare.train(images, 8), first)
    assert torch.equal(preprocess(3, True, 4).train(images, 8), first)


def test_batches_and_seeds_differ() -> None:
    images = some_images()
    first = preprocess(3, True, 4).train(images, 8)
    assert not torch.equal(preprocess(3, True, 4).train(images, 9), first)
    assert not torch.equal(preprocess(3, True, 4, seed=8).train(images, 8), first)


def test_evaluation_only_normalises() -> None:
    images = some_images()
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    expected = (images.float() / 255 - mean) / std
    state = torch.get_rng_state()
    for tricks in TRICKS:
        assert torch.equal(preprocess(*tricks).evaluate(images), expected)
    assert torch.equal(preprocess().train(images, 1), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_of_the_images_are_mirrored() -> None:
    images = numbered(2000, 4)
    plain, found = preprocess().train(images, 1), preprocess(flip=True).train(images, 1)
    same = (found == plain).flatten(1).all(1)
    mirrored = (found == plain.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 900 < int(mirrored.sum()) < 1100


def test_crops_reach_every_offset_about_equally_often() -> None:
    images, padding = numbered(5000, 5), 2
    found = preprocess(padding).evaluate(torch.nn.functional.pad(images, (padding,) * 4))
    windows = found[:1].unfold(2, 5, 1).unfold(3, 5, 1)[0]  # (C, 5, 5, H, W)
    cropped = preprocess(padding).train(images, 1)
    hits = [
        int((cropped == windows[:, y, x]).flatten(1).all(1).sum())
        for y, x in np.ndindex(2 * padding + 1, 2 * padding + 1)
    ]
    assert sum(hits) == 5000
    assert min(hits) > 140
    assert max(hits) < 260


@pytest.mark.parametrize("cutout", [3, 4])
def test_the_hole_is_a_square_clipped_at_the_edges(cutout: int) -> None:
    white = torch.full((3000, 3, 8, 8), 255, dtype=torch.uint8)
    holes = preprocess(cutout=cutout).train(white, 1) == 0
    assert (holes == holes[:, :1]).all()
    rows, columns = holes[:, 0].any(2), holes[:, 0].any(1)
    assert (holes[:, 0] == rows[:, :, None] & columns[:, None, :]).all()
    inside = [max(0, min(c - cutout // 2 + cutout, 8) - max(c - cutout // 2, 0)) for c in range(8)]
    for extent in (rows.sum(1), columns.sum(1)):
        assert set(extent.tolist()) == set(inside)
    assert rows.sum(1).float().mean() == pytest.approx(np.mean(inside), abs=0.05)
    assert (rows.sum(1) == cutout).any()


def test_a_smaller_batch_gets_the_same_draws() -> None:
    images, prepare = some_images(), preprocess(3, True, 4)
    assert torch.equal(prepare.train(images[:5], 2), prepare.train(images, 2)[:5])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(2, 3, 4, 4).double(), "uint8, float32 or int64, not torch.float64"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), r"for \(2, 1, 4, 4\)"),
    ],
)
def test_images_of_the_wrong_form_are_a_bug(images: torch.Tensor, words: str) -> None:
    for prepare in (preprocess().evaluate, lambda wrong: preprocess(flip=True).train(wrong, 1)):
        with pytest.raises(AssertionError, match=words):
            prepare(images)


FORMS = [((3, 4, 5), (1, 1)), ((7,), ()), ((6, 7), ())]
"""Shape of an example; where its mean goes, beside one dimension."""


@pytest.mark.parametrize(("shape", "beside"), FORMS)
@pytest.mark.parametrize("numbers", ["each", "one", "none"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_examples_of_any_shape_are_normalised_by_channel_or_last_dimension(
    shape: tuple[int, ...], beside: tuple[int, ...], numbers: str, dtype: torch.dtype
) -> None:
    places = {"each": shape[0] if len(shape) == 3 else shape[-1], "one": 1, "none": 0}[numbers]
    mean, std = np.linspace(0.2, 0.5, places, dtype="f4"), np.linspace(1, 2, places, dtype="f4")
    x = (torch.rand(5, *shape) * 255).to(dtype)
    kept = x.clone()
    expected = x.numpy().astype(np.float32)
    if dtype == torch.uint8:
        expected /= np.float32(255)
    if places:
        expected = (expected - mean.reshape(-1, *beside)) / std.reshape(-1, *beside)
    prepare = Preprocess(mean.tolist(), std.tolist(), seed=1, device=CPU)
    for found in (prepare.train(x, 1), prepare.evaluate(x)):
        np.testing.assert_array_equal(found.numpy(), expected)
    assert torch.equal(x, kept)


def test_float_images_are_augmented_as_bytes_are() -> None:
    images = some_images()
    of_bytes = Preprocess((), (), crop_padding=2, flip=True, cutout=3, seed=7, device=CPU)
    found = of_bytes.train(images.float() / 255, 5)
    np.testing.assert_array_equal(found.numpy(), of_bytes.train(images, 5).numpy())


def test_cutout_leaves_what_was_given_as_it_is() -> None:
    images = some_images().float()
    kept = images.clone()
    cut = Preprocess((), (), cutout=3, seed=7, device=CPU).train(images, 5)
    assert torch.equal(images, kept)
    assert not torch.equal(cut, kept)


def test_token_ids_go_through_as_they_are() -> None:
    ids = torch.arange(20).view(4, 5)
    prepare = Preprocess((), (), seed=7, device=CPU)
    assert prepare.train(ids, 1) is ids
    assert prepare.evaluate(ids) is ids


@pytest.mark.parametrize("wrong", [{"padding": -1}, {"cutout": -1}])
def test_negative_sizes_are_a_bug(wrong: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        preprocess(**wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_a_gpu_gives_the_same_images_without_waiting() -> None:
    device, images = torch.device("cuda"), some_images()
    prepare, on_device = preprocess(3, True, 4, device=device), images.to("cuda")
    prepare.train(on_device, 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = prepare.train(on_device, 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), preprocess(3, True, 4).train(images, 5))
