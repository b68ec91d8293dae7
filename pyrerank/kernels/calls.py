"""Calls of the three kernels of csrc/ascendc: what each refuses, allocates and hands over.

A function here takes the arguments of the operator of its name in `pyrerank.kernels.ops`, which
describes them, and raises TypeError or ValueError for those that are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrerank.kernels import extension
from pyrerank.kernels.checks import DTYPES, check_hidden, check_ids, check_values, check_weight

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
    check_hidden(hidden)
    name, ids = ("index", index) if cu_seqlens is None else ("cu_seqlens", cu_seqlens)
    if ids is None or (cu_seqlens is not None and index is not None):
        got = "neither" if ids is None else "both"
        raise ValueError(f"cu_seqlens, index: got {got}, wanted exactly one of them")
    batch = check_ids(name, ids, hidden)
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
    check_hidden(hidden)
    batch = check_ids("index", index, hidden)
    check_weight("norm_weight", norm_weight, hidden, hidden.dtype, torch.float32)
    check_weight("w", w, hidden, torch.float32)
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
    check_hidden(hidden)
    batch = check_ids("cu_seqlens", cu_seqlens, hidden)
    if norm_weight is not None:
        check_weight("norm_weight", norm_weight, hidden, hidden.dtype, torch.float32)
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
