"""Features of pictures, which the decoder reads in place of vision tokens' embeddings."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate

import torch

from pyrerank.engine.batch import MAX_SEQUENCES
from pyrerank.media.images import Visual
from pyrerank.media.sources import MIN_IMAGE_TOKENS
from pyrerank.model.patches import Grid, patches
from pyrerank.model.vision import VisionTower
from pyrerank.weights.config import MERGE, PAIR, PATCH


class Features:
    """The vision tower, and the features used last, which are not computed again.

    A pass of the tower has at most so many vision ``tokens``, but for a larger picture alone; at
    most ``capacity`` bytes are remembered.  ``encoded`` counts what went through the tower.
    """

    def __init__(self, tower: VisionTower, tokens: int, capacity: int) -> None:
        self.encoded = 0
        self._tower = tower
        # In the tower's attention, each picture and each pair of frames is a sequence.
        self._tokens = min(tokens, MIN_IMAGE_TOKENS * MAX_SEQUENCES)
        self._activations = tower.activation_bytes(self._tokens * MERGE**2)
        self._capacity = capacity
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def rows(self, visuals: Sequence[Visual]) -> torch.Tensor:
        """The features of images and videos, [1 + levels, V, hidden_size], which have V vision
        tokens one after the other; equal ones are encoded once."""
        unique = {visual.digest: visual for visual in visuals}
        found = {digest: self._kept[digest] for digest in unique if digest in self._kept}
        new = [visual for digest, visual in unique.items() if digest not in found]
        while new:
            ends = accumulate(_tokens(visual) for visual in new)
            count = max(1, sum(end <= self._tokens for end in ends))
            found |= self._encode(new[:count])
            new = new[count:]
        for digest in unique:
            self._kept[digest] = found[digest]
            self._kept.move_to_end(digest)
        kept = sum(rows.nbytes for rows in self._kept.values())
        while kept > self._capacity:
            kept -= self._kept.popitem(last=False)[1].nbytes
        return torch.cat([found[visual.digest] for visual in visuals], dim=1)

    def zeros(self, tokens: int) -> torch.Tensor:
        """Zeros of the shape, dtype and device that `rows` has for ``tokens`` vision tokens."""
        weight = self._tower.merger.linear_fc2.weight
        levels = 1 + len(self._tower.deepstack_merger_list)
        return weight.new_zeros(levels, tokens, len(weight))

    def device_memory(self) -> int:
        """How many bytes all this takes."""
        weights = sum(parameter.nbytes for parameter in self._tower.parameters())
        # three times: as the tower gives them, joined for the decoder, and as inputs of a graph
        rows = 3 * self.zeros(1).nbytes * self._tokens
        return weights + self._activations + rows + self._capacity

    def clear(self) -> None:
        self._kept.clear()

    def _encode(self, visuals: Sequence[Visual]) -> dict[bytes, torch.Tensor]:
        # again for each pass: captures of graphs give back what was reserved before
        self._tower.device.reserve(self._activations)
        pixels = patches([visual.frames for visual in visuals], self._tower.pos_embed.weight.dtype)
        out = self._tower(pixels, [_grid(visual) for visual in visuals])
        self.encoded += len(visuals)
        # Features are copied, because a slice would keep those of all pictures of the pass alive.
        pieces = out.split([_tokens(visual) for visual in visuals], dim=1)
        return {visual.digest: rows.clone() for visual, rows in zip(visuals, pieces, strict=True)}


def _grid(visual: Visual) -> Grid:
    frames, height, width, _ = visual.frames.shape
    return max(1, frames // PAIR), height // PATCH, width // PATCH


def _tokens(visual: Visual) -> int:
    return math.prod(_grid(visual)) // MERGE**2
