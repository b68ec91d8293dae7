"""The small steps between matrix products: fused on an NPU by torch_npu's operators, on the CPU by
the kernels of csrc/cpu, and elsewhere in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pyrerank.kernels import host as cpu

# With fewer rows a thread, libraries for the CPU take other ways through a matrix product, in which
# sums round differently. With these and more, a row has the same bits in any batch; not in bfloat16
# with AMX, where oneDNN's sums depend on the number of rows up to several hundreds.
LEAST_ROWS = 64


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x weight^T + bias of x [T, in]."""
    if x.device.type == "cpu" and len(x) < LEAST_ROWS:
        return F.linear(F.pad(x, (0, 0, 0, LEAST_ROWS - len(x))), weight, bias)[: len(x)]
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`linear` with its weight and bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    if x.device.type == "npu":
        normed: torch.Tensor = torch.ops.npu.npu_rms_norm(x, weight, eps)[0]
        return normed
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(
    x: torch.Tensor, y: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + y, or x, of [T, hidden_size], and its `rms_norm`."""
    if cpu.takes(x):
        return cpu.add_rms_norm(x, y, weight, eps)
    if y is not None and x.device.type == "npu":
        normed, _, total = torch.ops.npu.npu_add_rms_norm(x, y, weight, eps)
        return total, normed
    total = x if y is None else x + y
    return total, rms_norm(total, weight, eps)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, the two halves of the last dimension."""
    if cpu.takes(gate_up):
        return cpu.swiglu(gate_up)
    if gate_up.device.type == "npu":
        product: torch.Tensor = torch.ops.npu.npu_swiglu(gate_up, -1)
        return product
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu(x: torch.Tensor, approximate: str) -> torch.Tensor:
    """GELU, exact ("none") or in its tanh form ("tanh"), of x [T, width]."""
    if approximate == "tanh" and cpu.takes(x):
        return cpu.gelu(x)
    if x.device.type == "npu":
        # F.gelu launches the same operator for both, before CANN 9 that of the tanh form
        out: torch.Tensor = torch.ops.npu.npu_gelu(x, approximate=approximate)
        return out
    return F.gelu(x, approximate=approximate)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of x [T, heads, head_dim], pairs (i, i + head_dim / 2).

    cos, sin: [T, 1, head_dim], dtype of x, or float32, in which it is then done.  May overwrite x.
    """
    if cpu.takes_heads(x):
        return cpu.norm_rotate_(x, None, 0.0, cos, sin)
    x, dtype = x.to(cos.dtype), x.dtype
    if x.device.type == "npu":
        # the operator wants four dimensions; [1, T, heads, head_dim] is its layout BSND
        turned = torch.ops.npu.npu_rotary_mul(x[None], cos[None], sin[None])[0]
    else:
        a, b = x.chunk(2, dim=-1)
        turned = x * cos + torch.cat((-b, a), -1) * sin
        del a, b
    del x  # before another copy is made
    return turned.to(dtype)


def norm_rotate(
    x: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """`rotate` after the norm of each head.  May overwrite x."""
    if cpu.takes_heads(x):
        return cpu.norm_rotate_(x, weight, eps, cos, sin)
    return rotate(rms_norm(x, weight, eps), cos, sin)
