"""CUDA devices: plain torch, and in graphs torch's variable-length attention."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyrerank.devices.attention import BySequence, CausalAttention, Dense, Gathering
from pyrerank.devices.base import Accelerator
from pyrerank.engine.batch import Batch


class Cuda(Accelerator):
    name = "cuda"
    shown_by = "`nvidia-smi` lists, and CUDA_VISIBLE_DEVICES"

    @classmethod
    def count(cls) -> int:
        return torch.cuda.device_count()

    def attention(self, dtype: torch.dtype, *, captured: bool) -> CausalAttention:
        if not captured:
            return BySequence()
        half = dtype != torch.float32
        return Varlen() if half and _varlen_attn() is not None else Dense()


class Varlen(Gathering):
    """torch's variable-length flash attention, causal from the last key back, in 16 bit."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        if batch.kv_rows is not None:
            key, value = (x.index_select(0, batch.kv_rows) for x in (key, value))
        ends = batch.cu_seqlens, batch.cu_keys
        longest = len(query), len(key)  # of any replay
        out: Tensor = _varlen_attn()(
            *(query, key, value, *ends, *longest), window_size=(-1, 0), enable_gqa=True
        )
        return out


@cache
def _varlen_attn() -> Any:
    """torch's operator, or None before 2.10.  Importing it takes a second."""
    with suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn
    return None
