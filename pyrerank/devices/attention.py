"""Attention within each of several packed sequences: the one place where devices differ.

An implementation takes query [T, heads, head_dim], key and value [rows, kv_heads, head_dim] (heads
a multiple of kv_heads) and what says which rows are whose, scales by 1 / sqrt(head_dim), and
returns [T, heads, head_dim] in the dtype of query.  The decoder's is causal and chosen once an
engine, by `choose`; the vision tower's is `full`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrerank.engine.batch import Batch
from pyrerank.kernels import host as cpu

Attend = Callable[[Tensor, Tensor, Tensor, Batch], Tensor]

# rows of `dense` at a time: its scores take heads x DENSE_ROWS x T numbers
DENSE_ROWS = 128
MASK = 2048  # rows of the mask that CANN's operator wants


def choose(device: torch.device, dtype: torch.dtype, *, captured: bool) -> Attend:
    """The causal implementation for a device and dtype.

    ``captured``: in a graph, whose lengths are other ones at each replay, so that only tensors (and
    on an NPU the arguments that `NPUGraph.update` replaces) may tell where a sequence ends.
    """
    half = dtype != torch.float32
    if device.type == "npu" and half:
        return FusedInfer(device)
    if not captured:
        return by_sequence
    return varlen if half and _varlen_attn() is not None else dense


@cache  # cuda only
def _varlen_attn() -> Any:
    """torch's operator, or None before 2.10.  Importing it takes a second."""
    with suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn
    return None


def full(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    """Every token against all of its sequence, of ``lengths`` tokens each.

    Never in a graph.  An NPU takes all sequences in one call in 16 bit; elsewhere each is a call of
    its own.
    """
    if query.device.type == "npu" and query.dtype != torch.float32:
        return _fused_infer(query, key, value, lengths, None, mask=None)
    if cpu.takes_heads(query):
        return cpu.attention(query, key, value, lengths, lengths, None, causal=False)
    pieces = zip(key.split(lengths), value.split(lengths), strict=True)
    return _one_by_one(query, pieces, lengths, causal=False)


def by_sequence(query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
    """Each sequence alone, so a neighbour changes no bit of it: by the kernel of csrc/cpu where it
    runs, elsewhere one call a sequence."""
    if cpu.takes_heads(query):
        lengths, rows = (batch.lengths, batch.kv_lengths), batch.kv_rows
        return cpu.attention(query, key, value, *lengths, rows, causal=True)
    pieces: Iterable[tuple[Tensor, Tensor]]
    if batch.kv_rows is None:
        pieces = zip(key.split(batch.kv_lengths), value.split(batch.kv_lengths), strict=True)
    else:
        # a sequence at a time: what was gathered is still in the processor's cache
        paths = batch.kv_rows.split(batch.kv_lengths)
        pieces = ((key.index_select(0, path), value.index_select(0, path)) for path in paths)
    return _one_by_one(query, pieces, batch.lengths, causal=True)


def _one_by_one(
    query: Tensor, pieces: Iterable[tuple[Tensor, Tensor]], lengths: list[int], *, causal: bool
) -> Tensor:
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


def dense(query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
    """Every query against every key, and a mask: for float32 in a graph, where no operator of
    torch_npu takes lengths that change.  ``batch`` must have ``kv_rows``."""
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


def varlen(query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:  # cuda only
    """torch's variable-length flash attention, causal from the last key back; CUDA, 16 bit.
    ``batch`` must have ``kv_rows``."""
    assert batch.kv_rows is not None
    key, value = (x.index_select(0, batch.kv_rows) for x in (key, value))
    ends = batch.cu_seqlens, batch.cu_keys
    longest = len(query), len(key)  # of any replay
    out: Tensor = _varlen_attn()(
        *(query, key, value, *ends, *longest), window_size=(-1, 0), enable_gqa=True
    )
    return out


@cache
def causal_mask(device: torch.device) -> Tensor:
    """bool [2048, 2048], true where attention may not look: the form that CANN's operator wants."""
    return torch.ones(MASK, MASK, dtype=torch.bool).triu(1).to(device)


class FusedInfer:
    """CANN's fused inference attention, causal; NPU, 16 bit."""

    def __init__(self, device: torch.device) -> None:
        self._mask = causal_mask(device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        if batch.kv_rows is not None:
            key, value = (x.index_select(0, batch.kv_rows) for x in (key, value))
        return _fused_infer(query, key, value, batch.lengths, batch.kv_lengths, mask=self._mask)

    @staticmethod
    def lengths(queries: list[int], keys: list[int] | None = None) -> dict[str, list[int]]:
        """The arguments that change from batch to batch; keys are as many as queries, or given."""
        ends = list(accumulate(queries))
        return {
            "actual_seq_qlen": ends,
            "actual_seq_kvlen": ends if keys is None else list(accumulate(keys)),
        }


def gathers(attend: Attend) -> bool:
    """Whether it gathers the keys of all sequences at once, which takes memory."""
    return attend is varlen or isinstance(attend, FusedInfer)


def padded_head_dim(head_dim: int, *, grouped: bool) -> int:
    """The head size that CANN's fused inference attention takes in place of ``head_dim``."""
    sizes = (128, 192) if grouped else (64, 128, 192)
    size = next((s for s in sizes if s >= head_dim), None)
    if size is None:
        raise ValueError(f"head_dim {head_dim}: attention on an NPU takes at most {sizes[-1]}")
    return size


def _fused_infer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    kv_lengths: list[int] | None,
    *,
    mask: Tensor | None,
) -> Tensor:
    """CANN's fused inference attention in TND layout; ``mask``: `causal_mask`, or None for none.

    What it asks for stands in op-plugin, docs/context/torch_npu-npu_fused_infer_attention_score_v2:
    head sizes 128 and 192, and 64 without grouping; contiguous inputs; at most 4096 lengths,
    cumulative, that end with T, which is at most 2**20, those of keys with the number of keys; for
    causal masking sparse mode 3 with the upper triangle of a 2048 x 2048 matrix, whatever the
    lengths are, in which the last query sees all keys of its sequence, the one before it all but
    one; without a mask sparse mode 0, in which every token sees all of its sequence.  What a query
    without a key gives is not said: no sequence has queries and fewer keys.  A sequence may have
    no query.
    """
    heads, head_dim = query.shape[1:]
    kv_heads = key.shape[1]
    size = padded_head_dim(head_dim, grouped=heads != kv_heads)
    if size != head_dim:
        query, key, value = (F.pad(x, (0, size - head_dim)) for x in (query, key, value))
    out: Tensor = torch.ops.npu.npu_fused_infer_attention_score_v2(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        # by keyword: NPUGraph.update replaces nothing else
        **FusedInfer.lengths(lengths, kv_lengths),
        atten_mask=mask,
        num_query_heads=heads,
        num_key_value_heads=kv_heads,
        softmax_scale=head_dim**-0.5,
        input_layout="TND",
        sparse_mode=0 if mask is None else 3,
    )[0]
    return out[..., :head_dim]
