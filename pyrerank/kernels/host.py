"""The kernels of csrc/cpu as functions over tensors: what of a layer is no matrix product.

Each makes one pass over memory and computes in float32; plain torch, which takes several, rounds
between them.  A row has the same bits alone and in any batch.

The kernels see addresses, so each function here checks dtypes, shapes and strides first: it raises
TypeError or ValueError, which name the argument, what it got and what it wanted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrerank.kernels import ops

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def runs(x: Tensor) -> bool:
    """Whether there are kernels for ``x``: on the CPU, with the extension, in one of `DTYPES`."""
    return x.device.type == "cpu" and ops._C is not None and x.dtype in DTYPES


def runs_heads(x: Tensor) -> bool:
    """Whether there are for x [T, heads, head_dim]: `runs`, and an even head_dim that fits."""
    return runs(x) and x.shape[2] % 2 == 0 and 0 < x.shape[2] <= ops._C.max_head_dim


def add_rms_norm(x: Tensor, y: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + y, or x, and its norm.

    x: [T, H] contiguous, of the dtype of weight or float32, which x + y has as well.
    y: [T, H] contiguous, of the dtype of weight [H], which the norm has as well.
    """
    rows, width = _size("x", x, 2)
    _check("weight", weight, (width,), *DTYPES)
    _check("x", x, (rows, width), weight.dtype, torch.float32)
    if y is not None:
        _check("y", y, (rows, width), weight.dtype)
    total = x if y is None else torch.empty_like(x)
    normed = torch.empty_like(x, dtype=weight.dtype)
    ops._C.add_rms_norm(
        x.data_ptr(),
        0 if y is None else y.data_ptr(),
        weight.data_ptr(),
        total.data_ptr(),
        normed.data_ptr(),
        rows=rows,
        width=width,
        dtype=DTYPES[weight.dtype],
        sum_dtype=DTYPES[x.dtype],
        eps=eps,
        threads=torch.get_num_threads(),
    )
    return total, normed


def norm_rotate_(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Norm and rotation of x [T, heads, head_dim], whose rows may lie apart, in place.

    cos, sin: [T, 1, head_dim], of the dtype of x or float32.
    """
    rows, heads, head_dim = _size("x", x, 3)
    _check("x", x, (rows, heads, head_dim), *DTYPES, apart=True)
    if weight is not None:
        _check("weight", weight, (head_dim,), x.dtype)
    _check("cos", cos, (rows, 1, head_dim), x.dtype, torch.float32)
    _check("sin", sin, (rows, 1, head_dim), cos.dtype)
    ops._C.norm_rotate(
        x.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        rows=rows,
        row_stride=x.stride(0),
        heads=heads,
        head_dim=head_dim,
        dtype=DTYPES[x.dtype],
        angle_dtype=DTYPES[cos.dtype],
        eps=eps,
        threads=torch.get_num_threads(),
    )
    return x


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, the two halves of gate_up [T, 2 I], contiguous."""
    rows, width = _size("gate_up", gate_up, 2)
    _check("gate_up", gate_up, (rows, width // 2 * 2), *DTYPES)
    return _by_row(ops._C.swiglu, gate_up, width // 2)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form of x [T, I], contiguous."""
    rows, width = _size("x", x, 2)
    _check("x", x, (rows, width), *DTYPES)
    return _by_row(ops._C.gelu, x, width)


def _by_row(kernel: Callable[..., None], x: Tensor, width: int) -> Tensor:
    out = x.new_empty(x.shape[0], width)
    kernel(
        x.data_ptr(),
        out.data_ptr(),
        rows=out.shape[0],
        width=width,
        dtype=DTYPES[x.dtype],
        threads=torch.get_num_threads(),
    )
    return out


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
    """Attention within each sequence, as `pyrerank.devices.attention` says; rows may lie apart.

    lengths: of the sequences in query; with ``causal`` each at most that in kv_lengths.
    kv_rows: int32, contiguous, the keys of each sequence, kv_lengths of them, rows of key and value
        (which is not looked at); None: its own.
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
        raise ValueError(
            f"kv_lengths: got {kv_lengths} for lengths {lengths}, wanted a key a query"
        )
    out = query.new_empty(query.shape)
    ops._C.attention(
        *((x.data_ptr(), x.stride(0), x.shape[1]) for x in (query, key, value)),
        out.data_ptr(),
        lengths=lengths,
        kv_lengths=kv_lengths,
        kv_rows=0 if kv_rows is None else kv_rows.data_ptr(),
        head_dim=head_dim,
        causal=causal,
        dtype=DTYPES[out.dtype],
        threads=torch.get_num_threads(),
    )
    return out


def _size(name: str, x: Tensor, dimensions: int) -> torch.Size:
    if x.dim() != dimensions:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, wanted {dimensions} dimensions")
    return x.shape


def _check(
    name: str, x: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype, apart: bool = False
) -> None:
    """``apart``: rows may lie apart, each of which is contiguous."""
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
