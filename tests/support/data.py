"""All of a data set at once, and images to make one of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.data.batches import Batches

    Images = NDArray[np.uint8]


def everything(batches: Batches, epoch: int = 1) -> tuple[Images, NDArray[np.int64]]:
    """The training images and labels of an epoch, in its order."""
    pairs = [batches.train(epoch, index) for index in range(batches.steps_per_epoch)]
    return np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])


def all_tests(batches: Batches) -> tuple[Images, NDArray[np.int64]]:
    """The test images and labels."""
    pairs = [batches.evaluation(index) for index in range(batches.evaluation_batches)]
    return np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])


def random_images(*shape: int) -> Images:
    """The same for the same shape."""
    return np.random.default_rng(len(shape)).integers(0, 256, shape, dtype=np.uint8)
