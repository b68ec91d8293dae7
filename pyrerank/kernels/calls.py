"""Calls of the three kernels of csrc/ascendc: what each refuses, allocates and hands over.

A function here takes the arguments of the operator of its name in `pyrerank.kernels.ops`, which
describes them, and raises TypeError or ValueError for those that are wrong. Sizes that the kernels
cannot hold are refused by csrc/host/tiling.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyrerank.kernels import extension

DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
POOL_MODES = ("last", "mean", "cls")
ELEMENTS_PER_THREAD = 2**16  # of hidden: some 10 us of work


@dataclass
class Call:
    """A call of a kernel, whose arguments were checked as far as that waits for no device.

    Attributes:
        ids: the argument that says which rows of ``hidden`` are read, and its name.
        weights: the other tensors, in the kernel's order.
        shapes: those of the results, in ``dtype``, or in that of ``hidden``.
        rows: how many rows of ``hidden`` are read, if that is not one a result.
    """

    hidden: Tensor
    ids: tuple[str, Tensor]
    weights: tuple[Tensor | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    scalars: dict[str, Any]
    dtype: torch.dtype | None = None
    rows: int | None = None

    def new_results(self) -> Any:
        """A tensor, or a tuple of several: NaN until a kernel has written them."""
        results = [self.hidden.new_full(s, torch.nan, dtype=self.dtype) for s in self.shapes]
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, kernel: str) -> Any:
        """Runs the kernel of that name, where hidden is."""
        results = self.new_results()
        check_values(*self.ids, self.hidden)
        inputs = [t if t is None else t.contiguous() for t in (self.ids[1], *self.weights)]
        outputs = results if isinstance(results, tuple) else (results,)
        addresses = extension.addresses(self.hidden, *inputs, *outputs)
        tokens, width = self.hidden.shape
        batch = self.shapes[0][0]
        elements = width * (batch if self.rows is None else self.rows)
        sizes = self.scalars | {
            "T": tokens,
            "H": width,
            "B": batch,
            "row_stride": self.hidden.stride(0) if tokens > 1 else width,
            "dtype": DTYPES[self.hidden.dtype],
            "threads": min(torch.get_num_threads(), 1 + elements // ELEMENTS_PER_THREAD),
        }
        if self.hidden.is_cpu:
            getattr(extension._C, kernel)(*addresses, **sizes, stream=0)
            return results
        launch = getattr(extension.npu_kernels(), kernel)
        with torch.npu.device(self.hidden.device):  # type: ignore[attr-defined]
            # reading the handle drains torch_npu's task queue, so that earlier work runs before
            stream = torch.npu.current_stream().npu_stream  # type: ignore[attr-defined]
            launch(*addresses, **sizes, stream=stream)
        return results


def last_token_gather(
    hidden: Tensor, cu_seqlens: Tensor | None = None, *, index: Tensor | None = None
) -> Call:
    _check_hidden(hidden)
    name, ids = ("index", index) if cu_seqlens is None else ("cu_seqlens", cu_seqlens)
    if ids is None or (cu_seqlens is not None and index is not None):
        got = "neither" if ids is None else "both"
        raise ValueError(f"cu_seqlens, index: got {got}, wanted exactly one of them")
    batch = _check_ids(name, ids, hidden)
    return Call(
        hidden,
        ids=(name, ids),
        weights=(),
        shapes=((batch, hidden.shape[1]),),
        scalars={"ids_are_cu_seqlens": name == "cu_seqlens"},
    )


def score_head(
    hidden: Tensor, index: Tensor, norm_weight: Tensor, eps: float, w: Tensor, bias: float = 0.0
) -> Call:
    _check_hidden(hidden)
    batch = _check_ids("index", index, hidden)
    _check_weight("norm_weight", norm_weight, hidden, hidden.dtype, torch.float32)
    _check_weight("w", w, hidden, torch.float32)
    return Call(
        hidden,
        ids=("index", index),
        weights=(norm_weight, w),
        shapes=((batch,), (batch,)),
        scalars={"norm_dtype": DTYPES[norm_weight.dtype], "eps": eps, "bias": bias},
        dtype=torch.float32,
    )


def fused_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    mode: str = "last",
    dim: int | None = None,
    normalize: bool = True,
) -> Call:
    _check_hidden(hidden)
    batch = _check_ids("cu_seqlens", cu_seqlens, hidden)
    if norm_weight is not None:
        _check_weight("norm_weight", norm_weight, hidden, hidden.dtype, torch.float32)
    if mode not in POOL_MODES:
        raise ValueError(f"mode: got {mode!r}, wanted one of {', '.join(POOL_MODES)}")
    tokens, width = hidden.shape
    if dim is not None and not 1 <= dim <= width:
        raise ValueError(f"dim: got {dim}, wanted 1 to {width}")
    size = width if dim is None else dim
    norm_dtype = DTYPES[hidden.dtype if norm_weight is None else norm_weight.dtype]
    scalars = {"D": size, "norm_dtype": norm_dtype, "eps": eps}
    return Call(
        hidden,
        ids=("cu_seqlens", cu_seqlens),
        weights=(norm_weight,),
        shapes=((batch, size),),
        scalars=scalars | {"mode": mode, "normalize": normalize},
        rows=tokens if mode == "mean" else None,
    )


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


def _check_ids(name: str, ids: Tensor, hidden: Tensor) -> int:
    """The number of results that ``ids``, called "index" or "cu_seqlens", asks for."""
    if ids.dtype != torch.int32:
        raise TypeError(f"{name}: got {ids.dtype}, wanted int32")
    if ids.dim() != 1:
        raise ValueError(f"{name}: got shape {tuple(ids.shape)}, wanted one dimension")
    if name == "cu_seqlens" and ids.shape[0] == 0:
        raise ValueError("cu_seqlens: got no element, wanted B + 1 offsets")
    _check_device(name, ids, hidden)
    return ids.shape[0] - (name == "cu_seqlens")


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


def check_values(name: str, ids: Tensor, hidden: Tensor) -> None:
    """Checks that ids are rows of hidden, where looking at them waits for no device."""
    if not hidden.is_cpu:
        return
    tokens, values = len(hidden), ids.tolist()
    if name == "index":
        if values and (min(values) < 0 or max(values) >= tokens):
            i = next(i for i, token in enumerate(values) if not 0 <= token < tokens)
            wanted = f"0 to {tokens - 1}, a row of hidden"
            raise ValueError(f"index[{i}]: got {values[i]}, wanted {wanted}")
        return
    if values[0] < 0 or values[-1] > tokens:
        wanted = f"offsets within the {tokens} rows of hidden"
        raise ValueError(f"cu_seqlens: got {values[0]} to {values[-1]}, wanted {wanted}")
    for sequence, (first, after) in enumerate(pairwise(values)):
        if first >= after:
            got = f"{first} to {after} for sequence {sequence}"
            raise ValueError(f"cu_seqlens: got {got}, wanted at least one token a sequence")
