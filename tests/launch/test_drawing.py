"""Pictures for a page: colours by name, text as text, and nothing that another picture has, too."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from launch.drawing import INKS, Sheet, along, css, errors_axis, ink, png

if TYPE_CHECKING:
    from pathlib import Path


def drawn(salt: str = "a") -> str:
    sheet = Sheet((3, 2))
    sheet.axes.plot([1, 2, 3], [0.004, 0.05, 0.0912345], color=ink("run-1"), marker="o")
    sheet.axes.plot([1, 2, 3], [0.01, 0.02, 0.03], color=along(0.25))
    sheet.axes.set_xlabel("$no_{formula}$ 日本")
    errors_axis(sheet.axes)
    return sheet.svg(salt)


def test_colours_are_those_of_the_page() -> None:
    text = drawn()
    assert "var(--run-1)" in text
    assert "color-mix(in oklab, var(--last) 25%, var(--first))" in text
    assert not re.search(r"#[0-9a-f]{6}\b", text.replace("#000000", ""))
    assert [css(ink(name)) for name in INKS] == [f"var(--{name})" for name in INKS]


def test_text_stays_as_it_is() -> None:
    text = drawn()
    assert ">$no_{formula}$ 日本</text>" in text
    assert ">0.005</text>" in text
    assert "DejaVu" not in text


def test_no_two_pictures_share_an_id() -> None:
    one, other = (set(re.findall(r' id="([^"]+)"', drawn(salt))) for salt in "ab")
    assert one
    assert not one & other
    assert drawn() == drawn()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("colors", [1, 2, 256, 257])
def test_pixels_are_kept(tmp_path: Path, channels: int, colors: int) -> None:
    numbers = np.arange(19 * 17) % colors
    each = [numbers % 256, numbers // 2 % 256, numbers // 256, 255 - numbers % 256][:channels]
    pixels = np.stack(each, axis=-1).astype(np.uint8).reshape(19, 17, channels)
    (tmp_path / "a.png").write_bytes(png(pixels))
    image = Image.open(tmp_path / "a.png")
    assert np.array_equal(np.asarray(image.convert("RGBA"))[..., :channels], pixels)
    assert (image.mode == "P") == (colors <= 256)


def test_few_colours_take_few_bytes() -> None:
    """Squares of similarities are 100 × 100 pixels of 49 colours: 6 bits each would do."""
    draws = np.random.default_rng(1)
    pixels = draws.integers(0, 256, (49, 4), dtype=np.uint8)[draws.integers(0, 49, (100, 100))]
    assert len(png(pixels)) < 8_000
