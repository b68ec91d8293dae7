"""Checks of an operator's arguments, which raise as `pyrerank.kernels.ops` says.

Sizes that the kernels cannot hold are refused by csrc/host/tiling.cpp.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


def check_hidden(hidden: Tensor) -> None:
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


def check_ids(name: str, ids: Tensor, hidden: Tensor) -> int:
    """The number of results that ``ids``, called "index" or "cu_seqlens", asks for."""
    if ids.dtype != torch.int32:
        raise TypeError(f"{name}: got {ids.dtype}, wanted int32")
    if ids.dim() != 1:
        raise ValueError(f"{name}: got shape {tuple(ids.shape)}, wanted one dimension")
    if name == "cu_seqlens" and ids.shape[0] == 0:
        raise ValueError("cu_seqlens: got no element, wanted B + 1 offsets")
    _check_device(name, ids, hidden)
    return ids.shape[0] - (name == "cu_seqlens")


def check_weight(name: str, weight: Tensor, hidden: Tensor, *dtypes: torch.dtype) -> None:
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


def check_values(name: str, ids: Tensor, hidden: Tensor) -> None:
    """Checks that ids are rows of hidden, where looking at them waits for no device."""
    if not hidden.is_cpu:
        return
    tokens, values = len(hidden), ids.tolist()
    if name == "index":
        for i, token in enumerate(values):
            if not 0 <= token < tokens:
                wanted = f"0 to {tokens - 1}, a row of hidden"
                raise ValueError(f"index[{i}]: got {token}, wanted {wanted}")
        return
    if values[0] < 0 or values[-1] > tokens:
        got = f"{values[0]} to {values[-1]}"
        raise ValueError(
            f"cu_seqlens: got {got}, wanted offsets within the {tokens} rows of hidden"
        )
    for sequence, (first, after) in enumerate(pairwise(values)):
        if first >= after:
            got = f"{first} to {after} for sequence {sequence}"
            raise ValueError(f"cu_seqlens: got {got}, wanted at least one token a sequence")
