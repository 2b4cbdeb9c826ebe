"""Batched normalisation, crop, flip and cutout on stage 0's device.

    uint8     to [0, 1], then by mean and deviation, where there are any
    float32   by mean and deviation, where there are any; else as it is
    int64     token ids: as they are

The numbers are drawn on the host for (seed, batch id), so every device trains on the same
images; they go over in one small copy, and nothing waits for the device.

Legend of shapes: n images, C channels, H height, W width. A training image goes through
pad and crop, flip, normalise, cutout, in the paper's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from pipeline.seeding import Purpose, generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pipeline.learning.shares import Share


class Preprocess:
    """Examples as they leave the data set to the input of the first block: float32, or int64 token
    ids."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        crop_padding: int = 0,
        flip: bool = False,
        cutout: int = 0,
        seed: int,
        device: torch.device,
    ) -> None:
        """`mean` and `std` (of uint8, of values in [0, 1]): for each channel of (C, H, W), for each
        place of the last dimension of any other shape, one for all, or none; `crop_padding` and
        `cutout` in pixels, for (C, H, W) only."""
        assert len(mean) == len(std), f"{len(mean)} means, {len(std)} deviations"
        assert crop_padding >= 0, crop_padding
        assert cutout >= 0, cutout
        self._crop_padding, self._flip, self._cutout = crop_padding, flip, cutout
        self._seed, self._device = seed, device
        self._mean = torch.tensor(mean, dtype=torch.float32, device=device)
        self._std = torch.tensor(std, dtype=torch.float32, device=device)
        # a tensor, because CUDA kernels multiply by the rounded reciprocal of a Python number
        self._full = torch.tensor(255.0, device=device)

    def train(self, images: Tensor, batch_id: int, share: Share | None = None) -> Tensor:
        """(n, *shape) on the device to float32 of the same shape, augmented, contiguous; int64 as
        it is. What is given is not modified.

        Args:
            share: which of the batch's examples these are, None for all: each is augmented the
                same way however a batch is shared out.
        """
        if not (self._crop_padding or self._flip or self._cutout):
            return self._normalised(images)
        top, left, mirrored, hole_y, hole_x = self._draws(images, batch_id, share)
        if self._crop_padding or self._flip:
            images = self._cropped(images, top, left, mirrored)
        prepared = self._normalised(images)
        if self._cutout:
            if prepared is images:  # float32 that nothing was done to: not ours to change
                prepared = prepared.clone()
            prepared.masked_fill_(self._hole(images, hole_y, hole_x), 0.0)
        return prepared

    def evaluate(self, images: Tensor) -> Tensor:
        """(n, *shape) on the device to float32 of the same shape, normalised, contiguous; int64 as
        it is."""
        return self._normalised(images)

    def _normalised(self, x: Tensor) -> Tensor:
        if x.dtype == torch.int64:
            return x
        place = 1 if x.dim() == 4 else -1
        assert len(self._mean) in (0, 1, x.shape[place]), f"{self._mean} for {tuple(x.shape)}"
        places = (-1, 1, 1) if x.dim() == 4 else (-1,)
        mean, std = self._mean.view(places), self._std.view(places)
        if x.dtype == torch.uint8:
            fresh = x.to(torch.float32, memory_format=torch.contiguous_format).div_(self._full)
            return fresh.sub_(mean).div_(std) if len(mean) else fresh
        assert x.dtype == torch.float32, f"examples must be uint8, float32 or int64, not {x.dtype}"
        return x.sub(mean).div_(std) if len(mean) else x

    def _draws(self, images: Tensor, batch_id: int, share: Share | None) -> tuple[Tensor, ...]:
        """Five int64 columns (n, 1): top and left of the crop, mirrored, centre of the hole.

        Five draws per image, whatever is switched on: no trick changes the draws of another.
        """
        n, _, height, width = images.shape
        offsets = 2 * self._crop_padding + 1
        uniform = generator(self._seed, Purpose.AUGMENT, batch_id).random(
            (share.of if share else n, 5)
        )
        if share:
            uniform = uniform[share.rows]
        drawn = torch.from_numpy((uniform * (offsets, offsets, 2, height, width)).astype("int64"))
        if self._device.type == "cuda":
            drawn = drawn.pin_memory()  # else the copy may wait for the stream
        return drawn.to(self._device, non_blocking=True).unsqueeze(2).unbind(1)

    def _cropped(self, images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        """Each image's window of the padded image, mirrored where `mirrored` (n, 1) is 1."""
        n, channels, height, width = images.shape
        padded = pad(images, (self._crop_padding,) * 4)
        y = torch.arange(height, device=images.device)
        x = torch.arange(width, device=images.device)
        x = torch.where(mirrored * int(self._flip) == 1, width - 1 - x, x)
        pixels = (y + top).unsqueeze(2) * padded.shape[3] + (x + left).unsqueeze(1)
        index = pixels.view(n, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, index).view(images.shape)

    def _hole(self, images: Tensor, centre_y: Tensor, centre_x: Tensor) -> Tensor:
        """bool (n, 1, H, W): the square round each centre (n, 1), as far as it is inside."""
        height, width = images.shape[2:]
        rows = self._near(torch.arange(height, device=images.device), centre_y)
        columns = self._near(torch.arange(width, device=images.device), centre_x)
        return rows[:, None, :, None] & columns[:, None, None, :]

    def _near(self, position: Tensor, centre: Tensor) -> Tensor:
        first = centre - self._cutout // 2
        return (position >= first) & (position < first + self._cutout)
