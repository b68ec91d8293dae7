"""The kernels of csrc/cpu as functions over tensors: what of a layer is no matrix product.

They do in one pass over memory, in float32, what `pyrerank.layers` and `pyrerank.attention` say in
plain torch, which rounds between steps.  A row has the same bits alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrerank import ops

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def runs(x: Tensor) -> bool:
    """Whether there are kernels for ``x``: on the CPU, and the extension built for it."""
    return x.device.type == "cpu" and hasattr(ops._C, "swiglu") and x.dtype in DTYPES


def add_rms_norm(x: Tensor, y: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + y, or x, and its norm; x and y [T, H] contiguous."""
    total = x if y is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    ops._C.add_rms_norm(
        x.data_ptr(),
        0 if y is None else y.data_ptr(),
        weight.data_ptr(),
        total.data_ptr(),
        normed.data_ptr(),
        rows=x.shape[0],
        width=x.shape[1],
        dtype=DTYPES[x.dtype],
        eps=eps,
        threads=torch.get_num_threads(),
    )
    return total, normed


def norm_rotate_(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Norm and rotation of x [T, heads, head_dim], whose rows may lie apart, in place.

    cos, sin: [T, 1, head_dim], of the dtype of x or float32.
    """
    rows, heads, head_dim = x.shape
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
    return _by_row(ops._C.swiglu, gate_up, gate_up.shape[1] // 2)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form of x [T, I], contiguous."""
    return _by_row(ops._C.gelu, x, x.shape[1])


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
    """Attention within each sequence, as `pyrerank.attention` says; rows may lie apart.

    kv_rows: int32, contiguous, the keys of each sequence, kv_lengths of them; None: its own.
    """
    out = query.new_empty(query.shape)
    ops._C.attention(
        *((x.data_ptr(), x.stride(0), x.shape[1]) for x in (query, key, value)),
        out.data_ptr(),
        lengths=lengths,
        kv_lengths=kv_lengths,
        kv_rows=0 if kv_rows is None else kv_rows.data_ptr(),
        head_dim=query.shape[2],
        causal=causal,
        dtype=DTYPES[out.dtype],
        threads=torch.get_num_threads(),
    )
    return out
