"""Everything that pyrerank does on Ascend NPUs (A2, A3) stands here, but for the kernels that
`pyrerank.kernels.ops` launches."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import accumulate
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrerank.checks import warn
from pyrerank.devices.attention import BySequence, CausalAttention, Dense, Gathering, causal_mask
from pyrerank.devices.base import Accelerator, Capture, Lengths
from pyrerank.devices.versions import installed
from pyrerank.engine.batch import Batch
from pyrerank.errors import DeviceError
from pyrerank.kernels.extension import npu_kernels


class Ascend(Accelerator):
    name = "npu"
    shown_by = "`npu-smi info` lists, and ASCEND_RT_VISIBLE_DEVICES"
    graphs_by_default = True

    @classmethod
    def count(cls) -> int:
        return int(_torch_npu().device_count())

    @classmethod
    def is_here(cls) -> bool:
        if installed("torch_npu") is None:
            return False
        try:
            return cls.count() > 0
        except DeviceError as error:
            warn(f"no NPU is used: {error}; device='cpu' or 'cuda' does without", RuntimeWarning)
            return False

    def prepare(self) -> None:
        npu_kernels()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed: Tensor = torch.ops.npu.npu_rms_norm(x, weight, eps)[0]
        return normed

    def add_rms_norm(
        self, x: Tensor, y: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if y is None:
            return x, self.rms_norm(x, weight, eps)
        normed, _, total = torch.ops.npu.npu_add_rms_norm(x, y, weight, eps)
        return total, normed

    def swiglu(self, gate_up: Tensor) -> Tensor:
        product: Tensor = torch.ops.npu.npu_swiglu(gate_up, -1)
        return product

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        # F.gelu launches the same operator for both forms, before CANN 9 that of the tanh form
        out: Tensor = torch.ops.npu.npu_gelu(x, approximate=approximate)
        return out

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        # the operator wants four dimensions; [1, T, heads, head_dim] is its layout BSND
        turned: Tensor = torch.ops.npu.npu_rotary_mul(x[None], cos[None], sin[None])[0]
        return turned

    def attention(self, dtype: torch.dtype, *, captured: bool) -> CausalAttention:
        if dtype != torch.float32:
            return FusedInfer(self.torch_device)
        return Dense() if captured else BySequence()

    def full_attention(self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        if q.dtype != torch.float32:
            return _fused_infer(q, k, v, (lengths, lengths), mask=None)
        return super().full_attention(q, k, v, lengths)

    def padded_head_dim(self, head_dim: int) -> int:
        return _padded_head_dim(head_dim, grouped=False)

    def capture(self, calls: int, attention: CausalAttention) -> Capture:
        return AclGraphs(self, calls if isinstance(attention, FusedInfer) else 0)


class AclGraphs(Capture):
    """Captures passes as ACL graphs, in which `NPUGraph.update` replaces the lengths of ``updated``
    attention calls, or of none where tensors tell them."""

    def __init__(self, device: Ascend, updated: int) -> None:
        super().__init__(device)
        self._updated = updated
        with device.runtime.device(device.torch_device):
            self._update_stream = device.runtime.Stream()

    def record(self, forward: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        graph = self._device.runtime.NPUGraph()
        graph.auto_dispatch_capture = bool(self._updated)
        dispatch: Any = nullcontext()
        if self._updated:
            dispatch = graph.graph_dispatch_mode
            dispatch.update_stream = self._update_stream  # torch_npu's own is of another device
        out = self._record(graph, forward, dispatch)
        if self._updated and len(dispatch.graph_dispatch_records) != self._updated:
            raise RuntimeError(
                f"torch_npu can update {len(dispatch.graph_dispatch_records)} of "
                f"{self._updated} attention calls; this torch_npu is too old for graphs"
            )
        return graph, out

    def replay(self, graph: Any, calls: Sequence[Lengths]) -> None:
        if self._updated:
            # exactly once a replay, which waits for it
            graph.update(cpu_update_input=[cumulative(*lengths) for lengths in calls])
        graph.replay()


class FusedInfer(Gathering):
    """CANN's fused inference attention, causal, in 16 bit."""

    def __init__(self, device: torch.device) -> None:
        self._mask = causal_mask(device)

    def constant_bytes(self) -> int:
        return self._mask.nbytes

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        if batch.kv_rows is not None:
            key, value = (x.index_select(0, batch.kv_rows) for x in (key, value))
        lengths = batch.lengths, batch.kv_lengths
        return _fused_infer(query, key, value, lengths, mask=self._mask)


def _torch_npu() -> ModuleType:
    """Imports torch_npu, and returns ``torch.npu``, which it registers."""
    release = torch.__version__.split("+")[0]
    found = installed("torch_npu")
    advice = f"pip install torch_npu=={release}, the release made for torch {release}"
    if found is None:
        raise DeviceError(f"device npu needs torch_npu, which is not installed: {advice}")
    if found.split(".")[:2] != release.split(".")[:2]:
        raise DeviceError(f"torch_npu {found} does not fit torch {torch.__version__}: {advice}")
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # whatever its import runs into
        raise DeviceError(
            f"torch_npu {found} does not import ({error}); it needs CANN: "
            "source /usr/local/Ascend/ascend-toolkit/set_env.sh, then see `pyrerank info`"
        ) from error
    module: ModuleType = torch.npu  # type: ignore[attr-defined]
    return module


def cumulative(queries: list[int], keys: list[int]) -> dict[str, list[int]]:
    """The arguments of attention that say where sequences end."""
    return {
        "actual_seq_qlen": list(accumulate(queries)),
        "actual_seq_kvlen": list(accumulate(keys)),
    }


def _padded_head_dim(head_dim: int, *, grouped: bool) -> int:
    sizes = (128, 192) if grouped else (64, 128, 192)
    size = next((s for s in sizes if s >= head_dim), None)
    if size is None:
        raise ValueError(f"head_dim {head_dim}: attention on an NPU takes at most {sizes[-1]}")
    return size


def _fused_infer(
    query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, *, mask: Tensor | None
) -> Tensor:
    """CANN's fused inference attention in TND layout; ``mask``: `causal_mask`, or None for none.

    Its demands stand in op-plugin, docs/context/torch_npu-npu_fused_infer_attention_score_v2:

    - Head sizes are 128 and 192, and 64 without grouping.  Inputs are contiguous.
    - There are at most 4096 lengths, cumulative; those of queries end with T, which is at most
      2**20, those of keys with the number of keys.  A sequence may have no query.  The document
      does not say what a query without a key gives, so callers give each a key.
    - Causal masking is sparse mode 3 with the upper triangle of a 2048 x 2048 matrix, whatever the
      lengths are.  The last query sees all keys of its sequence, the one before it all but one.
    - Without a mask, in sparse mode 0, every token sees all of its sequence.
    """
    heads, head_dim = query.shape[1:]
    kv_heads = key.shape[1]
    size = _padded_head_dim(head_dim, grouped=heads != kv_heads)
    if size != head_dim:
        query, key, value = (F.pad(x, (0, size - head_dim)) for x in (query, key, value))
    out: Tensor = torch.ops.npu.npu_fused_infer_attention_score_v2(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        # by keyword: NPUGraph.update replaces nothing else
        **cumulative(*lengths),
        atten_mask=mask,
        num_query_heads=heads,
        num_key_value_heads=kv_heads,
        softmax_scale=head_dim**-0.5,
        input_layout="TND",
        sparse_mode=0 if mask is None else 3,
    )[0]
    return out[..., :head_dim]
