"""Calls the kernels through `_C` on tensors, and makes operands for them."""

import math
from types import ModuleType

import torch
from torch import Tensor

NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
DTYPES = list(NAMES)
EPS = 1e-6


def sizes(hidden: Tensor, count: int, threads: int) -> dict[str, object]:
    return {
        "T": hidden.shape[0],
        "H": hidden.shape[1],
        "row_stride": hidden.stride(0) if hidden.shape[0] > 1 else hidden.shape[1],
        "B": count,
        "dtype": NAMES[hidden.dtype],
        "threads": threads,
        "stream": 0,
    }


def gather(c: ModuleType, hidden: Tensor, ids: Tensor, spans: bool, threads: int = 1) -> Tensor:
    count = len(ids) - spans
    out = torch.full((count, hidden.shape[1]), 7, dtype=hidden.dtype)
    c.last_token_gather(
        hidden.data_ptr(),
        ids.data_ptr(),
        out.data_ptr(),
        ids_are_cu_seqlens=spans,
        **sizes(hidden, count, threads),
    )
    return out


def score(
    c: ModuleType,
    hidden: Tensor,
    index: Tensor,
    gain: Tensor,
    w: Tensor,
    bias: float = 0.0,
    threads: int = 1,
) -> tuple[Tensor, Tensor]:
    result, logit = torch.full((len(index),), 7.0), torch.full((len(index),), 7.0)
    c.score_head(
        hidden.data_ptr(),
        index.data_ptr(),
        gain.data_ptr(),
        w.data_ptr(),
        result.data_ptr(),
        logit.data_ptr(),
        norm_dtype=NAMES[gain.dtype],
        eps=EPS,
        bias=bias,
        **sizes(hidden, len(index), threads),
    )
    return result, logit


def pool(
    c: ModuleType,
    hidden: Tensor,
    cu: Tensor,
    gain: Tensor | None,
    mode: str,
    dim: int | None = None,
    normalize: bool = True,
    threads: int = 1,
) -> Tensor:
    dim = dim or hidden.shape[1]
    out = torch.full((len(cu) - 1, dim), 7, dtype=hidden.dtype)
    c.fused_pool(
        hidden.data_ptr(),
        cu.data_ptr(),
        0 if gain is None else gain.data_ptr(),
        out.data_ptr(),
        D=dim,
        norm_dtype=NAMES[hidden.dtype if gain is None else gain.dtype],
        eps=EPS,
        mode=mode,
        normalize=normalize,
        **sizes(hidden, len(cu) - 1, threads),
    )
    return out


def random_rows(tokens: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Rows of different sizes, as a view with a storage offset of 1 and gaps between its rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, width + 24, generator=generator)
    rows *= torch.linspace(0.05, 20, tokens).unsqueeze(1)
    return rows.to(dtype).flatten()[1:].as_strided((tokens, width), (width + 24, 1), 1)


def random_weights(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(width)
    gain = torch.rand(width, generator=generator) + 0.5
    return gain.to(dtype), torch.randn(width, generator=generator) / math.sqrt(width)
