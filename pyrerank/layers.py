"""The small steps between matrix products, fused where torch_npu has an operator."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    if x.device.type == "npu":
        normed: torch.Tensor = torch.ops.npu.npu_rms_norm(x, weight, eps)[0]
        return normed
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + y, and its `rms_norm`."""
    if x.device.type == "npu":
        normed, _, total = torch.ops.npu.npu_add_rms_norm(x, y, weight, eps)
        return total, normed
    total = x + y
    return total, rms_norm(total, weight, eps)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, the two halves of the last dimension."""
    if gate_up.device.type == "npu":
        product: torch.Tensor = torch.ops.npu.npu_swiglu(gate_up, -1)
        return product
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu(x: torch.Tensor, approximate: str) -> torch.Tensor:
    """GELU, exact ("none") or in its tanh form ("tanh")."""
    if x.device.type == "npu":
        # F.gelu launches the same operator for both, before CANN 9 that of the tanh form
        out: torch.Tensor = torch.ops.npu.npu_gelu(x, approximate=approximate)
        return out
    return F.gelu(x, approximate=approximate)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of x [T, heads, head_dim], pairs (i, i + head_dim / 2).

    cos, sin: [T, 1, head_dim], dtype of x.
    """
    if x.device.type == "npu":
        # the operator wants four dimensions; [1, T, heads, head_dim] is its layout BSND
        turned: torch.Tensor = torch.ops.npu.npu_rotary_mul(x[None], cos[None], sin[None])[0]
        return turned
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), -1) * sin
