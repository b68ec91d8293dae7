"""Attention within each of several packed sequences, in plain torch, for devices that have no
operator of their own."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrerank.engine.batch import SHARED_PER_TOKEN, Batch

DENSE_ROWS = 128  # rows of scores that `Dense` has at a time: heads x DENSE_ROWS x K numbers
MASK = 2048  # rows and columns of `causal_mask`, which are those that CANN's operator wants


class CausalAttention:
    """The decoder's attention: causal, grouped, scaled by 1 / sqrt(head_dim)."""

    # The keys that are in memory at once, for each token of a pass, at most; more than 1 means that
    # the keys of all sequences are gathered.
    key_copies: ClassVar[int] = 1

    def score_numbers(self, heads: int) -> int:
        """How many numbers the scores of attention take for each token of a pass."""
        return 0

    def constant_bytes(self) -> int:
        """Device memory that does not depend on a pass."""
        return 0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        """Attends each sequence's queries to its keys, the last query to all of them.

        Takes query [T, heads, head_dim] with key and value [rows, kv_heads, head_dim], heads a
        multiple of kv_heads; returns [T, heads, head_dim] in the dtype of query.
        """
        raise NotImplementedError


class Gathering(CausalAttention):
    """Gathers the keys of all sequences before it attends."""

    key_copies = 2 + SHARED_PER_TOKEN


class BySequence(CausalAttention):
    """Each sequence by a call of its own, so that a neighbour changes no bit of it."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        pieces: Iterable[tuple[Tensor, Tensor]]
        if batch.kv_rows is None:
            pieces = zip(key.split(batch.kv_lengths), value.split(batch.kv_lengths), strict=True)
        else:
            # a sequence at a time: the gathered rows are still in the processor's cache
            paths = batch.kv_rows.split(batch.kv_lengths)
            pieces = ((key.index_select(0, path), value.index_select(0, path)) for path in paths)
        return one_by_one(query, pieces, batch.lengths, causal=True)


class Dense(CausalAttention):
    """Every query against every key, and a mask: for float32 in a graph, where no operator takes
    lengths that change.  The batch must have ``kv_rows``."""

    def score_numbers(self, heads: int) -> int:
        return 3 * heads * DENSE_ROWS

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        tokens, heads, head_dim = query.shape
        keys, kv_heads = key.shape[:2]
        integers = partial(torch.arange, device=query.device, dtype=torch.int32)
        sequence = torch.searchsorted(batch.cu_seqlens, integers(tokens), right=True) - 1
        # (sequences, keys): 1 where a sequence looks
        paths = batch.kv_rows
        assert paths is not None
        owner = torch.searchsorted(batch.cu_keys, integers(len(paths)), right=True) - 1
        seen = query.new_zeros(len(batch.lengths) * keys)
        seen.index_copy_(0, owner * keys + paths, query.new_ones(len(paths)))
        seen = seen.view(-1, keys)
        # a query looks no further than its own key, which is as far from its sequence's end
        ahead = (batch.cu_keys - batch.cu_seqlens).index_select(0, sequence + 1)
        own = paths.index_select(0, integers(tokens) + ahead)
        row = integers(keys)
        k, v = key.permute(1, 2, 0), value.transpose(0, 1)  # (kv_heads, head_dim, keys) and back
        out = torch.empty_like(query)
        for start in range(0, tokens, DENSE_ROWS):
            rows = slice(start, start + DENSE_ROWS)
            # the query heads of a key head are more rows of it: (kv_heads, rows x group, head_dim)
            q = query[rows].unflatten(1, (kv_heads, -1)).transpose(0, 1).flatten(1, 2)
            scores = torch.bmm(q * head_dim**-0.5, k).unflatten(1, (-1, heads // kv_heads))
            hidden = (seen.index_select(0, sequence[rows]) == 0) | (own[rows, None] < row)
            scores.masked_fill_(hidden[:, None], -torch.inf)
            mixed = torch.bmm(scores.softmax(-1).flatten(1, 2), v)
            out[rows] = mixed.unflatten(1, (-1, heads // kv_heads)).transpose(0, 1).flatten(1, 2)
        return out


def one_by_one(
    query: Tensor, pieces: Iterable[tuple[Tensor, Tensor]], lengths: list[int], *, causal: bool
) -> Tensor:
    """Attends each sequence's queries to its piece of keys and values, in a call of its own."""
    out = torch.empty_like(query)
    for o, q, (k, v) in zip(out.split(lengths), query.split(lengths), pieces, strict=True):
        # (1, heads, tokens, head_dim)
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        queries, keys = q.shape[2], k.shape[2]
        mask = last_rows(queries, keys, q.device) if causal and 1 < queries < keys else None
        mixed = F.scaled_dot_product_attention(
            *(q, k, v), mask, is_causal=causal and queries == keys, enable_gqa=True
        )
        o.copy_(mixed[0].transpose(0, 1))
    return out


def last_rows(queries: int, keys: int, device: torch.device) -> Tensor:
    """bool [queries, keys], true where the last ``queries`` of ``keys`` tokens may look."""
    if keys > MASK:
        return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).to(device)
    return ~causal_mask(device)[keys - queries : keys, :keys]


@cache
def causal_mask(device: torch.device) -> Tensor:
    """bool [MASK, MASK], true where a token (row) may not look at another (column)."""
    return torch.ones(MASK, MASK, dtype=torch.bool).triu(1).to(device)
