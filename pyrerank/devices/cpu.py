"""The host's processor runs torch's products, and the kernels of csrc/cpu for everything between
them; where the extension was not built, or for other dtypes, plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrerank.devices.attention import BySequence, CausalAttention
from pyrerank.devices.base import Device
from pyrerank.engine.batch import Batch
from pyrerank.kernels import cpu as kernels

# With fewer rows a thread, libraries for the CPU take other ways through a matrix product, in which
# sums round differently.  With these and more, a row has the same bits in any batch, but not in
# bfloat16 with AMX, where oneDNN's sums depend on the number of rows up to several hundreds.
LEAST_ROWS = 64


class Cpu(Device):
    name = "cpu"
    # a larger pass is no faster: its largest tensors come from the system at each layer
    token_budget = 1024
    maps_weights = True

    @classmethod
    def at(cls, index: int) -> Cpu:
        return cls(torch.device("cpu"))

    @classmethod
    def count(cls) -> int:
        return 1

    @property
    def default_dtype(self) -> torch.dtype:
        return torch.bfloat16 if multiplies_bfloat16() else torch.float32

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if len(x) < LEAST_ROWS:
            padded = F.pad(x, (0, 0, 0, LEAST_ROWS - len(x)))
            return F.linear(padded, weight, bias)[: len(x)]
        return F.linear(x, weight, bias)

    def add_rms_norm(
        self, x: Tensor, y: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if kernels.takes(x):
            return kernels.add_rms_norm(x, y, weight, eps)
        return super().add_rms_norm(x, y, weight, eps)

    def residual(self, x: Tensor) -> Tensor:
        # 16 bits would lose a part of the sum in each layer
        return x.float() if kernels.takes(x) else x

    def swiglu(self, gate_up: Tensor) -> Tensor:
        return kernels.swiglu(gate_up) if kernels.takes(gate_up) else super().swiglu(gate_up)

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        if approximate == "tanh" and kernels.takes(x):
            return kernels.gelu(x)
        return super().gelu(x, approximate)

    def rotate(
        self, x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None = None, eps: float = 0.0
    ) -> Tensor:
        if kernels.takes_heads(x):
            return kernels.norm_rotate_(x, weight, eps, cos, sin)
        return super().rotate(x, cos, sin, weight, eps)

    def attention(self, dtype: torch.dtype, *, captured: bool) -> CausalAttention:
        return HostAttention()

    def full_attention(self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        if kernels.takes_heads(q):
            return kernels.attention(q, k, v, lengths, lengths, None, causal=False)
        return super().full_attention(q, k, v, lengths)


class HostAttention(BySequence):
    """The kernel of csrc/cpu for all sequences, or `BySequence` where it does not run."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        if kernels.takes_heads(query):
            lengths = batch.lengths, batch.kv_lengths, batch.kv_rows
            return kernels.attention(query, key, value, *lengths, causal=True)
        return super().__call__(query, key, value, batch)


def multiplies_bfloat16() -> bool:
    """Whether this processor has bfloat16 dot products (AVX512-BF16, AMX, Arm BF16)."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return False  # torch is too old to tell
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
