"""The digits of scikit-learn as a folder of PNGs, to try what image folders do with them:

    python -m benchmarks.digit_images DIR

Every fifth image is for testing, as in `data.name: digits`.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Write 1437 training and 360 test images, 8 × 8 grey pixels each, as
    DIR/train/CLASS/NUMBER.png and DIR/val/CLASS/NUMBER.png."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)
    for number, (image, label) in enumerate(zip(images, digits.target, strict=True)):
        part = folder / ("train" if number % 5 else "val") / str(label)
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(part / f"{number:04d}.png")
    click.echo(f"{folder}: 1437 training and 360 test images of 10 classes")


if __name__ == "__main__":
    main()
