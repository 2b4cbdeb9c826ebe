"""Makes the pictures of reports in docs/images/: `python docs/pictures/report.py`.

Trains the network of configs/digits.yaml by two losses, unless that was done before, and has
Chromium (`apt-get install chromium`) show parts of `pipeline-report`'s page. Two minutes on two
cores.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

import pipeline
from launch.report.report import write_report

DOCS = Path(__file__).parents[1]
IMAGES, CONFIG = DOCS / "images", DOCS.parent / "configs/digits.yaml"
RUNS = Path("runs/report")
LOSSES = ("pred", "predsim")
TRACED = 60
"""Batches: an epoch has 45."""
PICTURES = {  # name: runs, sections, width in CSS pixels, dark
    "report": (LOSSES, ("results", "curves"), 1200, False),
    "report_similarity": (("predsim",), ("similarity",), 1200, False),
    "report_timeline": (("predsim",), ("timeline",), 900, False),
    "report_dark": (LOSSES, ("depth", "confusion"), 1200, True),
}
_TALLEST = 4000
_MARGIN = 12


def train() -> None:
    """Train the runs that are not there."""
    RUNS.mkdir(parents=True, exist_ok=True)
    for loss in LOSSES:
        if not (RUNS / loss).exists():
            options = {"loss.name": loss, "runtime.eval_depths": True}
            given = {"config": CONFIG, "stages": 3, "gpus": "cpu", "options": options}
            pipeline.fit(**given, run_dir=RUNS / loss, trace=TRACED)


def with_sections(page: str, names: tuple[str, ...]) -> str:
    """The page without its header and all other sections."""
    page = re.sub(r"<header>.*?</header>|<footer>.*?</footer>", "", page, flags=re.DOTALL)
    found = re.findall(r'(<section id="(\w+)">.*?</section>)', page, re.DOTALL)
    kept = "".join(text for text, name in found if name in names)
    return re.sub(r"<main>.*</main>", lambda _: f"<main>{kept}</main>", page, flags=re.DOTALL)


def show(page: Path, picture: Path, width: int, *, dark: bool) -> None:
    """Have Chromium show a page, and cut off what is empty below and above."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", f"--user-data-dir={profile}", "--hide-scrollbars",
                f"--window-size={width},{_TALLEST}", f"--screenshot={picture}",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}", page.as_uri(),
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
    image = Image.open(picture).convert("RGB")
    empty = Image.new("RGB", image.size, image.getpixel((0, 0)))
    box = ImageChops.difference(image, empty).getbbox()
    assert box, "an empty page"
    top, bottom = max(0, box[1] - _MARGIN), min(image.height, box[3] + _MARGIN)
    cut = image.crop((0, top, width, bottom))
    cut.quantize(256, kmeans=1).save(picture, optimize=True)


def main() -> None:
    train()
    IMAGES.mkdir(exist_ok=True)
    texts: dict[tuple[str, ...], str] = {}
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        for name, (losses, sections, width, dark) in PICTURES.items():
            if losses not in texts:
                runs = [RUNS / loss for loss in losses]
                write_report(runs, page, "last", data=None, exit_at=0.9, examples=None)
                texts[losses] = page.read_text(encoding="utf-8")
            page.write_text(with_sections(texts[losses], sections), encoding="utf-8")
            show(page, IMAGES / f"{name}.png", width, dark=dark)


if __name__ == "__main__":
    main()
