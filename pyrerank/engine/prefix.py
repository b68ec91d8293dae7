"""The prefix: keys and values that one pass leaves for the next.  This module knows torch alone."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class Prefix:
    """Keys and values of P tokens, [P, kv_heads, head_dim] in each layer; at first P is 0.

    Each of ``layers`` layers calls `extend` once a pass, in order.  A pass leaves its ``rows``,
    int32, for the next one; see `Batch.prefix_rows`.
    """

    def __init__(self, layers: int) -> None:
        self.rows = torch.empty(0, dtype=torch.int32)
        # None stands for no tokens, so that no layer copies its keys to add nothing to them.
        self._layers: deque[tuple[Tensor, Tensor] | None] = deque([None] * layers)

    def cut(self, count: int) -> None:
        """Drops all but the first ``count`` tokens."""
        self._layers = deque(
            (layer[0][:count], layer[1][:count]) if layer and count else None
            for layer in self._layers
        )

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Puts keys and values of a pass, [T, kv_heads, head_dim], behind those of the prefix, and
        returns all P + T of each.  Their ``rows`` become the prefix of the next pass."""
        if prefix := self._layers.popleft():
            key, value = torch.cat((prefix[0], key)), torch.cat((prefix[1], value))
        self._layers.append(
            (key.index_select(0, self.rows), value.index_select(0, self.rows))
            if len(self.rows)
            else None
        )
        return key, value
