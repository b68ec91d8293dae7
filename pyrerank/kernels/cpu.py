"""The kernels of csrc/cpu as functions over tensors: all parts of a layer but its matrix products.

Each kernel makes one pass over memory and computes in float32; plain torch takes several passes,
and rounds between them.  A row has the same bits alone and in any batch.  A function here raises
TypeError or ValueError for wrong dtypes, shapes and strides, because a kernel sees addresses only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrerank.kernels import extension

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def takes(x: Tensor) -> bool:
    """Whether the kernels were built, and ``x`` is on the CPU in one of `DTYPES`."""
    return x.is_cpu and extension._C is not None and x.dtype in DTYPES


def takes_heads(x: Tensor) -> bool:
    """Whether they take x [T, heads, head_dim]: its head_dim must be even, and fit a buffer."""
    return takes(x) and x.shape[2] % 2 == 0 and 0 < x.shape[2] <= extension._C.max_head_dim


def add_rms_norm(x: Tensor, y: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum x + y, or x where y is None, and the RMSNorm of that.

    Args:
        x: [T, H] contiguous, in the dtype of weight or float32.
        y: [T, H] contiguous, in the dtype of weight.
        weight: [H].

    Returns:
        The sum, [T, H] in the dtype of x, and its norm, [T, H] in the dtype of weight.
    """
    rows, width = _size("x", x, 2)
    _check("weight", weight, (width,), *DTYPES)
    _check("x", x, (rows, width), weight.dtype, torch.float32)
    if y is not None:
        _check("y", y, (rows, width), weight.dtype)
    total = x if y is None else torch.empty_like(x)
    normed = torch.empty_like(x, dtype=weight.dtype)
    dtypes = {"dtype": DTYPES[weight.dtype], "sum_dtype": DTYPES[x.dtype]}
    pointers = extension.addresses(x, y, weight, total, normed)
    _run("add_rms_norm", *pointers, rows=rows, width=width, eps=eps, **dtypes)
    return total, normed


def norm_rotate_(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """RMSNorm of each head, unless weight is None, and rotation, in place; returns x.

    Args:
        x: [T, heads, head_dim]; rows may lie apart.
        weight: [head_dim], in the dtype of x.
        cos, sin: [T, 1, head_dim], in the dtype of x or float32.
    """
    rows, heads, head_dim = _size("x", x, 3)
    _check("x", x, (rows, heads, head_dim), *DTYPES, apart=True)
    if weight is not None:
        _check("weight", weight, (head_dim,), x.dtype)
    _check("cos", cos, (rows, 1, head_dim), x.dtype, torch.float32)
    _check("sin", sin, (rows, 1, head_dim), cos.dtype)
    sizes = {"rows": rows, "row_stride": x.stride(0), "heads": heads, "head_dim": head_dim}
    dtypes = {"dtype": DTYPES[x.dtype], "angle_dtype": DTYPES[cos.dtype]}
    _run("norm_rotate", *extension.addresses(x, weight, cos, sin), eps=eps, **sizes, **dtypes)
    return x


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, [T, I], where gate_up [T, 2 I], contiguous, holds gate and up in a row."""
    rows, width = _size("gate_up", gate_up, 2)
    _check("gate_up", gate_up, (rows, width // 2 * 2), *DTYPES)
    return _by_row("swiglu", gate_up, width // 2)


def gelu(x: Tensor) -> Tensor:
    """GELU of x [T, I], contiguous, in its tanh form."""
    rows, width = _size("x", x, 2)
    _check("x", x, (rows, width), *DTYPES)
    return _by_row("gelu", x, width)


def _by_row(kernel: str, x: Tensor, width: int) -> Tensor:
    out = x.new_empty(x.shape[0], width)
    pointers = extension.addresses(x, out)
    _run(kernel, *pointers, rows=out.shape[0], width=width, dtype=DTYPES[x.dtype])
    return out


def _run(kernel: str, *pointers: object, **sizes: Any) -> None:
    getattr(extension._C, kernel)(*pointers, **sizes, threads=torch.get_num_threads())


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    kv_lengths: list[int],
    kv_rows: Tensor | None,
    *,
    causal: bool,
) -> Tensor:
    """Attention within each sequence.  The last query of a sequence attends to its last key.

    Args:
        query: [T, heads, head_dim]; rows may lie apart, as those of key and value may.
        key, value: [keys, kv_heads, head_dim].
        lengths: how many rows of query each sequence has.
        kv_lengths: how many keys it has, with ``causal`` at least as many.
        kv_rows: int32, contiguous: the rows of key and value that each sequence attends to, whose
            values are not checked; None: sequences lie one after the other in key, too.
        causal: whether a query attends to no key after its own.

    Returns:
        [T, heads, head_dim], contiguous.
    """
    rows, heads, head_dim = _size("query", query, 3)
    keys, kv_heads, _ = _size("key", key, 3)
    shape = (rows, heads // kv_heads * kv_heads, head_dim)
    _check("query", query, shape, *DTYPES, apart=True)
    _check("key", key, (keys, kv_heads, head_dim), query.dtype, apart=True)
    _check("value", value, (keys, kv_heads, head_dim), query.dtype, apart=True)
    if kv_rows is not None:
        _check("kv_rows", kv_rows, (sum(kv_lengths),), torch.int32)
    if sum(lengths) != rows or (kv_rows is None and sum(kv_lengths) > keys):
        raise ValueError(
            f"lengths, kv_lengths: got sums of {sum(lengths)} and {sum(kv_lengths)}, wanted {rows} "
            f"and at most {keys}, the rows of query and of key"
        )
    pairs = list(zip(lengths, kv_lengths, strict=True))
    if min(map(min, pairs), default=0) < 0 or (causal and any(q > k for q, k in pairs)):
        got = f"{kv_lengths} for lengths {lengths}"
        raise ValueError(f"kv_lengths: got {got}, wanted a key a query")
    out = query.new_empty(query.shape)
    strided = [(x.data_ptr(), x.stride(0), x.shape[1]) for x in (query, key, value)]
    pointer, rows_pointer = extension.addresses(out, kv_rows)
    _run(
        "attention",
        *strided,
        pointer,
        lengths=lengths,
        kv_lengths=kv_lengths,
        kv_rows=rows_pointer,
        head_dim=head_dim,
        causal=causal,
        dtype=DTYPES[out.dtype],
    )
    return out


def _size(name: str, x: Tensor, dimensions: int) -> torch.Size:
    if x.dim() != dimensions:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, wanted {dimensions} dimensions")
    return x.shape


def _check(
    name: str, x: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype, apart: bool = False
) -> None:
    if x.dtype not in dtypes or not x.is_cpu:
        wanted = " or ".join(map(str, dict.fromkeys(dtypes)))
        raise TypeError(f"{name}: got {x.dtype} on {x.device}, wanted {wanted} on the CPU")
    if x.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, wanted {shape}")
    if not (x[:1] if apart else x).is_contiguous():
        raise ValueError(
            f"{name}: got strides {x.stride()}, wanted {'rows that are' if apart else 'it'} "
            "contiguous; pass a contiguous copy"
        )
