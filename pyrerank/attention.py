"""Variable-length causal attention over packed sequences: the one place where devices differ."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]
) -> torch.Tensor:
    """Causal self-attention within each packed sequence, scaled by 1 / sqrt(head_dim).

    Args:
        query: [T, heads, head_dim].
        key: [T, kv_heads, head_dim], heads a multiple of kv_heads.
        value: like ``key``.
        lengths: tokens of each sequence, adding up to T.

    Returns:
        [T, heads, head_dim] in the dtype of ``query``.
    """
    out = torch.empty_like(query)
    pieces = zip(*(x.split(lengths) for x in (out, query, key, value)), strict=True)
    for o, q, k, v in pieces:
        # (1, heads, tokens, head_dim); one call a sequence, so a neighbour changes no bit of it
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        o.copy_(
            F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(
                0, 1
            )
        )
    return out
