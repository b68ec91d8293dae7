"""The fused end of the forward pass: three operators on the packed hidden states.

Importing this module registers each as ``torch.ops.pyrerank.<name>``, which the function of that
name calls. On the CPU and the NPU an operator runs the kernel csrc/ascendc/<name>.cpp, as it was
built for the host's processor or as CANN compiled it. Elsewhere, and where the extension was not
built, it runs what is written in the function: plain torch, which is also its specification, and
can be called by itself as ``<name>_reference``. Arithmetic is float32 throughout, and a row's
result has the same bits alone and in any batch.

The arguments of the three, where they have them:
    hidden: (T, H) bfloat16, float16 or float32; rows contiguous, any row stride.
    index: (B,) int32, rows of hidden.
    cu_seqlens: (B + 1,) int32: sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1], never empty.
    norm_weight: (H,) dtype of hidden, or float32; ``eps`` is that of the RMSNorm.

A dtype that is not listed raises TypeError, any other wrong argument ValueError; both name the
argument, what it got and what it wanted, before anything is launched. Ids out of range do so on the
CPU. On a device, looking at them would wait for it: there such a row becomes NaN, and the caller
refuses it. Results are NaN until a kernel has written them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import unwrap
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from pyrerank.kernels import calls, extension
from pyrerank.kernels.calls import Call, check_values

SMALLEST_NORM = 1e-12
_LIBRARY = torch.library.Library("pyrerank", "DEF")  # registered as long as it lives

P = ParamSpec("P")
R = TypeVar("R")


def _operator(call: Callable[P, Call]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Registers the function that follows as an operator, of whose kernel ``call`` makes a call."""

    def register(reference: Callable[P, R]) -> Callable[P, R]:
        name = reference.__name__

        def kernel(*args: P.args, **kwargs: P.kwargs) -> Any:
            return call(*args, **kwargs).run(name)

        def twin(*args: P.args, **kwargs: P.kwargs) -> Any:
            checked = call(*args, **kwargs)
            check_values(*checked.ids, checked.hidden)
            return reference(*args, **kwargs)

        def fake(*args: P.args, **kwargs: P.kwargs) -> Any:
            return call(*args, **kwargs).new_results()

        _LIBRARY.define(torch.library.infer_schema(reference, op_name=name, mutates_args=()))
        for device in "CPU", "PrivateUse1":  # which is the NPU
            _LIBRARY.impl(name, twin if extension._C is None else kernel, device)
        _LIBRARY.impl(name, twin, "CUDA")
        torch.library.register_fake(f"pyrerank::{name}", fake, lib=_LIBRARY)
        registered: Callable[P, R] = getattr(torch.ops.pyrerank, name).default

        @wraps(reference)
        def operator(*args: P.args, **kwargs: P.kwargs) -> R:
            return registered(*args, **kwargs)

        return operator

    return register


@_operator(calls.last_token_gather)
def last_token_gather(
    hidden: Tensor, cu_seqlens: Tensor | None = None, *, index: Tensor | None = None
) -> Tensor:
    """The last row of each sequence, or the rows at ``index``; exactly one of the two is given.

    Returns:
        (B, H), dtype of hidden.
    """
    if cu_seqlens is not None:
        first, after = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
        index = torch.where((first >= 0) & (first < after), after - 1, -1)
    assert index is not None
    return _rows(hidden, index.long())


@_operator(calls.score_head)
def score_head(
    hidden: Tensor, index: Tensor, norm_weight: Tensor, eps: float, w: Tensor, bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    """RMSNorm, dot product with the classifier vector and sigmoid of the rows at ``index``.

    Args:
        w: (H,) float32.
        bias: added to the logit.

    Returns:
        score (B,) float32, and logit (B,) float32.
    """
    x = _rms_norm(_rows(hidden, index.long()).float(), norm_weight, eps)
    logit = x @ w + bias
    return torch.sigmoid(logit), logit


@_operator(calls.fused_pool)
def fused_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    mode: str = "last",
    dim: int | None = None,
    normalize: bool = True,
) -> Tensor:
    """One vector a sequence: RMSNorm of each token, pooling, truncation to ``dim``, L2 norm.

    Args:
        norm_weight: without it, nothing is normed.
        mode: "last" or "cls" (first) token, or the "mean" of all.
        dim: 1 to H; None: H.
        normalize: whether vectors have length 1.

    Returns:
        (B, dim), dtype of hidden.
    """
    first, after = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    valid = (first >= 0) & (first < after) & (after <= hidden.shape[0])
    if mode == "mean":
        x = _rms_norm(hidden.float(), norm_weight, eps)
        sums = x.new_zeros(len(first) + 1, x.shape[1])
        token = torch.arange(len(x), device=x.device, dtype=cu_seqlens.dtype)
        # tokens that belong to no sequence are added to one more row, which is left out
        sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), token, right=True)
        sequence = torch.where(token >= cu_seqlens[0], sequence, len(first))
        pooled = sums.index_add_(0, sequence, x)[:-1] / (after - first).unsqueeze(1)
    else:
        position = torch.where(valid, after - 1 if mode == "last" else first, -1)
        pooled = _rms_norm(_rows(hidden, position).float(), norm_weight, eps)
    pooled = pooled[:, :dim]
    if normalize:
        length = torch.linalg.vector_norm(pooled, dim=1, keepdim=True)
        pooled = pooled / length.clamp_min(SMALLEST_NORM)
    return pooled.masked_fill(~valid.unsqueeze(1), torch.nan).to(hidden.dtype)


last_token_gather_reference = unwrap(last_token_gather)
score_head_reference = unwrap(score_head)
fused_pool_reference = unwrap(fused_pool)


def _rows(hidden: Tensor, index: Tensor) -> Tensor:
    """hidden[index], and rows of NaN where there is no such row."""
    if len(hidden) == 0:
        return hidden.new_full((len(index), hidden.shape[1]), torch.nan)
    valid = (index >= 0) & (index < len(hidden))
    rows = hidden.index_select(0, index.clamp(0, len(hidden) - 1))
    return rows.masked_fill(~valid.unsqueeze(1), torch.nan)


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return x
    return x / torch.sqrt(x.square().mean(1, keepdim=True) + eps) * weight.float()
