"""What the operators of `pyrerank.kernels.ops` refuse, before anything is launched.

A dtype that is not listed raises TypeError, any other wrong argument ValueError; both name the
argument, what it got and what it wanted. Sizes that the kernels cannot hold are refused by
csrc/host/tiling.cpp.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
POOL_MODES = ("last", "mean", "cls")


def _check_hidden(hidden: Tensor) -> None:
    if hidden.dtype not in DTYPES:
        raise TypeError(f"hidden: got {hidden.dtype}, wanted bfloat16, float16 or float32")
    if hidden.dim() != 2:
        raise ValueError(f"hidden: got shape {tuple(hidden.shape)}, wanted (tokens, H)")
    tokens, width = hidden.shape
    row_stride, stride = strides = hidden.stride()
    if stride != 1 or (tokens > 1 and row_stride < width):
        raise ValueError(
            f"hidden: got strides {strides}, wanted rows that are contiguous and do not "
            f"overlap; pass hidden.contiguous()"
        )


def _check_ids(name: str, ids: Tensor, hidden: Tensor) -> None:
    if ids.dtype != torch.int32:
        raise TypeError(f"{name}: got {ids.dtype}, wanted int32")
    if ids.dim() != 1:
        raise ValueError(f"{name}: got shape {tuple(ids.shape)}, wanted one dimension")
    if name == "cu_seqlens" and ids.shape[0] == 0:
        raise ValueError("cu_seqlens: got no element, wanted B + 1 offsets")
    _check_device(name, ids, hidden)


def _check_weight(name: str, weight: Tensor, hidden: Tensor, *dtypes: torch.dtype) -> None:
    if weight.dtype not in dtypes:
        wanted = " or ".join(dict.fromkeys(DTYPES[dtype] for dtype in dtypes))
        raise TypeError(f"{name}: got {weight.dtype}, wanted {wanted}")
    if weight.dim() != 1 or weight.shape[0] != hidden.shape[1]:
        wanted = f"({hidden.shape[1]},), one weight an element of a row of hidden"
        raise ValueError(f"{name}: got shape {tuple(weight.shape)}, wanted {wanted}")
    _check_device(name, weight, hidden)


def _check_device(name: str, tensor: Tensor, hidden: Tensor) -> None:
    if tensor.device != hidden.device:
        raise ValueError(f"{name}: got device {tensor.device}, wanted hidden's, {hidden.device}")


def check_gather(
    hidden: Tensor, cu_seqlens: Tensor | None = None, *, index: Tensor | None = None
) -> None:
    _check_hidden(hidden)
    if (cu_seqlens is None) == (index is None):
        got = "neither" if index is None else "both"
        raise ValueError(f"cu_seqlens, index: got {got}, wanted exactly one of them")
    if cu_seqlens is not None:
        _check_ids("cu_seqlens", cu_seqlens, hidden)
    if index is not None:
        _check_ids("index", index, hidden)


def check_score(
    hidden: Tensor, index: Tensor, norm_weight: Tensor, eps: float, w: Tensor, bias: float = 0.0
) -> None:
    _check_hidden(hidden)
    _check_ids("index", index, hidden)
    _check_weight("norm_weight", norm_weight, hidden, hidden.dtype, torch.float32)
    _check_weight("w", w, hidden, torch.float32)


def check_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    mode: str = "last",
    dim: int | None = None,
    normalize: bool = True,
) -> None:
    _check_hidden(hidden)
    _check_ids("cu_seqlens", cu_seqlens, hidden)
    if norm_weight is not None:
        _check_weight("norm_weight", norm_weight, hidden, hidden.dtype, torch.float32)
    if mode not in POOL_MODES:
        raise ValueError(f"mode: got {mode!r}, wanted one of {', '.join(POOL_MODES)}")
    if dim is not None and not 1 <= dim <= hidden.shape[1]:
        raise ValueError(f"dim: got {dim}, wanted 1 to {hidden.shape[1]}")


def check_values(hidden: Tensor, cu_seqlens: Tensor | None, index: Tensor | None) -> None:
    """That ids are within hidden, where looking at them waits for no device."""
    if not hidden.is_cpu:
        return
    if cu_seqlens is not None:
        _check_cu_seqlens_values(cu_seqlens, len(hidden))
    if index is not None:
        _check_index_values(index, len(hidden))


def _check_index_values(index: Tensor, tokens: int) -> None:
    values = index.tolist()
    if not values or (min(values) >= 0 and max(values) < tokens):
        return
    for position, token in enumerate(values):
        if not 0 <= token < tokens:
            wanted = f"0 to {tokens - 1}, a row of hidden"
            raise ValueError(f"index[{position}]: got {token}, wanted {wanted}")


def _check_cu_seqlens_values(cu_seqlens: Tensor, tokens: int) -> None:
    offsets = cu_seqlens.tolist()
    if offsets[0] < 0 or offsets[-1] > tokens:
        got = f"{offsets[0]} to {offsets[-1]}"
        raise ValueError(
            f"cu_seqlens: got {got}, wanted offsets within the {tokens} rows of hidden"
        )
    for b in range(len(offsets) - 1):
        if offsets[b] >= offsets[b + 1]:
            got = f"{offsets[b]} to {offsets[b + 1]} for sequence {b}"
            raise ValueError(f"cu_seqlens: got {got}, wanted at least one token a sequence")
