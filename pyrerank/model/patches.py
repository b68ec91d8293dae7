"""Patches: pixels of pictures in the order in which the vision tower reads them.

A grid (t, h, w) counts patches of 16 x 16 pixels: t is 1 for an image and the number of frame pairs
for a video, h and w are even.  Patches, and the rows that the tower makes of them, go pair by pair,
and in a pair by blocks of 2 x 2 patches from left to right and from top to bottom.  A block becomes
one row, which takes the place of one ``<|image_pad|>`` or ``<|video_pad|>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pyrerank.weights.config import CHANNELS, MERGE, PAIR, PATCH

Grid = tuple[int, int, int]


def patches(pictures: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
    """Cuts images and videos into what the tower reads, normalised with mean and deviation 1/2 as
    for every published model, and rounded to ``dtype``.

    A picture is uint8 [F, height, width, 3]: F is 1, an image, or even, and height and width are
    multiples of 32.  Returns [n, 1536], one picture after the other; a row is [3, 2, 16, 16]:
    channel, frame of the pair, y, x.
    """
    # a pair of frames at a time: in float32 they take more memory than all before and after
    pairs = [pair for pixels in pictures for pair in _pairs(pixels)]
    counts = [pair[0].size // CHANNELS // PATCH**2 for pair in pairs]
    out = torch.empty(sum(counts), CHANNELS * PAIR * PATCH**2, dtype=dtype)
    for rows, pair in zip(out.split(counts), pairs, strict=True):
        _, height, width, _ = pair.shape
        blocks = torch.from_numpy(pair.copy()).view(
            *(PAIR, height // PATCH // MERGE, MERGE, PATCH),
            *(width // PATCH // MERGE, MERGE, PATCH, CHANNELS),
        )
        cut = blocks.permute(1, 4, 2, 5, 7, 0, 3, 6).flatten(4).flatten(0, 3)
        rows.copy_(cut.float().sub_(127.5).div_(127.5))
    return out


def _pairs(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """The pairs of frames of a video, [2, height, width, 3] each; of an image, the image twice."""
    frames, height, width, channels = pixels.shape
    assert pixels.dtype == np.uint8 and channels == CHANNELS, (pixels.dtype, pixels.shape)
    assert frames == 1 or frames % PAIR == 0, pixels.shape
    step = PATCH * MERGE
    assert height % step == 0 and width % step == 0 and pixels.size, pixels.shape
    if frames == 1:
        pixels = np.broadcast_to(pixels, (PAIR, height, width, channels))
    yield from pixels.reshape(-1, PAIR, height, width, channels)


def block_order(height: int, width: int) -> Tensor:
    """float32 [height * width, 2], y and x of every patch of a grid, in the tower's order."""
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    blocks = places.view(height // MERGE, MERGE, width // MERGE, MERGE, 2)
    return blocks.transpose(1, 2).reshape(-1, 2)
