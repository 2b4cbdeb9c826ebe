"""A few damaged image files; `fuzz/images.py` tries as many as one likes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fuzz.imagefiles import FORMATS, files, is_read_or_refused, readers, sources
from pipeline.data.image_reading import ImageError

if TYPE_CHECKING:
    from pipeline.data.image_reading import ImageReader

SCRIPT = Path(__file__).with_name("images.py")


@pytest.fixture
def every_reader() -> list[ImageReader]:
    return readers()


def test_sound_files_of_all_formats_are_read(
    every_reader: list[ImageReader], tmp_path: Path
) -> None:
    found = sources()
    assert len(found) > 40
    for number, data in enumerate(found):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        # 65535 and 4095 are white for some; the last takes 12 bits, which all but floats have
        assert any(is_read_or_refused(path, reader) for reader in every_reader), data[:20]
    assert set(FORMATS) == {"png", "jpeg", "bmp", "ppm", "tiff", "webp", "gif"}


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_read_or_refused(
    seed: int, every_reader: list[ImageReader], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    read = 0
    for name, data in files(seed, 250):
        path = tmp_path / name
        path.write_bytes(data)
        read += is_read_or_refused(path, every_reader[len(data) % len(every_reader)])
    assert 20 < read < 230
    assert "Traceback" not in capfd.readouterr().err


def test_a_broken_rule_is_found(tmp_path: Path) -> None:
    """The rules themselves can fail."""

    class Silent:
        def look(self, path: str, *, whole: bool) -> None:
            raise ImageError("another", "no\nreason")

    path = tmp_path / "0.png"
    with pytest.raises(AssertionError):
        is_read_or_refused(path, Silent())  # type: ignore[arg-type]


def test_the_script_tries_files_and_says_how_many() -> None:
    command = [sys.executable, str(SCRIPT), "--minutes", "0.001", "--seed", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["files"] >= 2000
    assert found["peak_rss_mb"] < 1024
