"""Features of pictures, which the decoder reads in place of vision tokens' embeddings.

Those used last are remembered, so that a picture that comes again is not computed again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch

from pyrerank.engine.batch import MAX_SEQUENCES
from pyrerank.media.images import Visual
from pyrerank.media.sources import MIN_IMAGE_TOKENS
from pyrerank.model.patches import Grid, patches
from pyrerank.model.vision import VisionTower
from pyrerank.weights.config import MERGE, PAIR, PATCH


class Features:
    """The vision tower, and the features that it gave lately.

    Args:
        tower: the vision tower, on the engine's device.
        tokens: most vision tokens of one pass of the tower; a larger picture has a pass of its own.
        capacity: most bytes of features to remember, on the device; those used last stay.

    Attributes:
        encoded: how many images and videos went through the tower so far.
    """

    def __init__(self, tower: VisionTower, tokens: int, capacity: int) -> None:
        self.encoded = 0
        self._tower = tower
        # In the tower's attention, each picture and each pair of frames is a sequence.
        self._tokens = min(tokens, MIN_IMAGE_TOKENS * MAX_SEQUENCES)
        self._capacity = capacity
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def rows(self, visuals: Sequence[Visual]) -> torch.Tensor:
        """The features of images and videos, [1 + levels, V, hidden_size], which have V vision
        tokens one after the other; equal ones are encoded once."""
        unique = {visual.digest: visual for visual in visuals}
        found = {digest: self._kept[digest] for digest in unique if digest in self._kept}
        for run in self._runs([v for digest, v in unique.items() if digest not in found]):
            found |= self._encode(run)
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
        """How many bytes it takes: the tower's weights, one pass of the tower, the capacity, and
        three times the features of a pass: as the tower gives them, joined for the decoder, and as
        inputs of a graph."""
        weights = sum(parameter.nbytes for parameter in self._tower.parameters())
        activations = self._tower.activation_bytes(self._tokens * MERGE**2)
        rows = self.zeros(1).nbytes * self._tokens
        return weights + activations + 3 * rows + self._capacity

    def clear(self) -> None:
        """Forgets all features."""
        self._kept.clear()

    def _runs(self, visuals: Sequence[Visual]) -> Iterator[list[Visual]]:
        run: list[Visual] = []
        total = 0
        for visual in visuals:
            tokens = _tokens(visual)
            if run and total + tokens > self._tokens:
                yield run
                run, total = [], 0
            run.append(visual)
            total += tokens
        if run:
            yield run

    def _encode(self, visuals: Sequence[Visual]) -> dict[bytes, torch.Tensor]:
        # again for each pass: captures of graphs give back what was reserved before
        self._tower.device.reserve(self._tower.activation_bytes(self._tokens * MERGE**2))
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
