"""The fused end of the forward pass: three operators on the packed hidden states.

Each is registered as ``torch.ops.pyrerank.<name>``: on the CPU and the NPU it runs the kernel
csrc/ascendc/<name>.cpp, elsewhere (and where the extension was not built) its ``_reference`` twin
below, which is also its specification. Arithmetic is float32 throughout, and a row's result has
the same bits alone and in any batch. This module knows nothing of models or prompts.

A dtype that is not listed raises TypeError, any other wrong argument ValueError; both name the
argument, what it got and what it wanted, before anything is launched. Ids out of range do so on the
CPU. On a device, looking at them would wait for it: there such a row becomes NaN, and the caller
refuses it. No ids at all give an empty result.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

try:
    _C: Any = import_module("pyrerank._C")
except ModuleNotFoundError:  # installed without a compiler; a broken extension still raises
    _C = None

DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
POOL_MODES = ("last", "mean", "cls")
SMALLEST_NORM = 1e-12
ELEMENTS_PER_THREAD = 2**16  # of hidden: some 10 us of work


# ---- the operators ------------------------------------------------------------------------------


def last_token_gather(
    hidden: Tensor, cu_seqlens: Tensor | None = None, *, index: Tensor | None = None
) -> Tensor:
    """The last row of each sequence, or the rows at ``index``; exactly one of the two is given.

    Args:
        hidden: (T, H) bfloat16, float16 or float32; rows contiguous, any row stride.
        cu_seqlens: (B + 1,) int32: sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1], never
            empty.
        index: (B,) int32.

    Returns:
        (B, H), dtype of hidden.
    """
    rows: Tensor = torch.ops.pyrerank.last_token_gather.default(hidden, cu_seqlens, index=index)
    return rows


def score_head(
    hidden: Tensor, index: Tensor, norm_weight: Tensor, eps: float, w: Tensor, bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    """RMSNorm, dot product with the classifier vector and sigmoid of the rows at ``index``.

    Args:
        hidden: (T, H) bfloat16, float16 or float32; rows contiguous, any row stride.
        index: (B,) int32.
        norm_weight: (H,) dtype of hidden, or float32.
        eps: of the RMSNorm.
        w: (H,) float32.
        bias: added to the logit.

    Returns:
        score (B,) float32, and logit (B,) float32.
    """
    pair: tuple[Tensor, Tensor] = torch.ops.pyrerank.score_head.default(
        hidden, index, norm_weight, eps, w, bias
    )
    return pair


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
        hidden: (T, H) bfloat16, float16 or float32; rows contiguous, any row stride.
        cu_seqlens: (B + 1,) int32: sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1], never
            empty.
        norm_weight: (H,) dtype of hidden, or float32; None: no RMSNorm.
        eps: of the RMSNorm.
        mode: "last" or "cls" (first) token, or the "mean" of all.
        dim: 1 to H; None: H.
        normalize: whether vectors have length 1.

    Returns:
        (B, dim), dtype of hidden.
    """
    pooled: Tensor = torch.ops.pyrerank.fused_pool.default(
        hidden, cu_seqlens, norm_weight, eps, mode, dim, normalize
    )
    return pooled


# ---- their twins in plain torch -----------------------------------------------------------------


def last_token_gather_reference(
    hidden: Tensor, cu_seqlens: Tensor | None = None, *, index: Tensor | None = None
) -> Tensor:
    if cu_seqlens is not None:
        first, after = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
        index = torch.where((first >= 0) & (first < after), after - 1, -1)
    assert index is not None
    return _rows(hidden, index.long())


def score_head_reference(
    hidden: Tensor, index: Tensor, norm_weight: Tensor, eps: float, w: Tensor, bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    x = _rms_norm(_rows(hidden, index.long()).float(), norm_weight, eps)
    logit = x @ w + bias
    return torch.sigmoid(logit), logit


def fused_pool_reference(
    hidden: Tensor,
    cu_seqlens: Tensor,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    mode: str = "last",
    dim: int | None = None,
    normalize: bool = True,
) -> Tensor:
    first, after = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    valid = (first >= 0) & (first < after) & (after <= hidden.shape[0])
    if mode == "mean":
        x = _normed(hidden.float(), norm_weight, eps)
        sums = x.new_zeros(len(first) + 1, x.shape[1])
        token = torch.arange(len(x), device=x.device, dtype=cu_seqlens.dtype)
        # the last row collects what belongs to no sequence
        sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), token, right=True)
        sequence = torch.where(token >= cu_seqlens[0], sequence, len(first))
        pooled = sums.index_add_(0, sequence, x)[:-1] / (after - first).unsqueeze(1)
    else:
        position = torch.where(valid, after - 1 if mode == "last" else first, -1)
        pooled = _normed(_rows(hidden, position).float(), norm_weight, eps)
    pooled = pooled[:, :dim]
    if normalize:
        length = torch.linalg.vector_norm(pooled, dim=1, keepdim=True)
        pooled = pooled / length.clamp_min(SMALLEST_NORM)
    return pooled.masked_fill(~valid.unsqueeze(1), torch.nan).to(hidden.dtype)


def _rows(hidden: Tensor, index: Tensor) -> Tensor:
    """hidden[index], and rows of NaN where there is no such row."""
    if len(hidden) == 0:
        return hidden.new_full((len(index), hidden.shape[1]), torch.nan)
    valid = (index >= 0) & (index < len(hidden))
    rows = hidden.index_select(0, index.clamp(0, len(hidden) - 1))
    return rows.masked_fill(~valid.unsqueeze(1), torch.nan)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.square().mean(1, keepdim=True) + eps) * weight.float()


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else _rms_norm(x, weight, eps)


# ---- checks -------------------------------------------------------------------------------------
# Everything a tensor can tell without looking at its values. Sizes the kernels cannot hold are
# refused by csrc/host/tiling.cpp.


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


def _check_ids(name: str, ids: Tensor, hidden: Tensor) -> None:
    if ids.dtype != torch.int32:
        raise TypeError(f"{name}: got {ids.dtype}, wanted int32")
    if ids.dim() != 1:
        raise ValueError(f"{name}: got shape {tuple(ids.shape)}, wanted one dimension")
    if name == "cu_seqlens" and ids.shape[0] == 0:
        raise ValueError("cu_seqlens: got no element, wanted B + 1 offsets")
    _check_device(name, ids, hidden)


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


def _check_gather(hidden: Tensor, cu_seqlens: Tensor | None, index: Tensor | None) -> None:
    _check_hidden(hidden)
    if (cu_seqlens is None) == (index is None):
        got = "neither" if index is None else "both"
        raise ValueError(f"cu_seqlens, index: got {got}, wanted exactly one of them")
    if cu_seqlens is not None:
        _check_ids("cu_seqlens", cu_seqlens, hidden)
    if index is not None:
        _check_ids("index", index, hidden)


def _check_score(hidden: Tensor, index: Tensor, norm_weight: Tensor, w: Tensor) -> None:
    _check_hidden(hidden)
    _check_ids("index", index, hidden)
    _check_weight("norm_weight", norm_weight, hidden, hidden.dtype, torch.float32)
    _check_weight("w", w, hidden, torch.float32)


def _check_pool(
    hidden: Tensor, cu_seqlens: Tensor, norm_weight: Tensor | None, mode: str, dim: int | None
) -> int:
    """Returns the elements of a result."""
    _check_hidden(hidden)
    _check_ids("cu_seqlens", cu_seqlens, hidden)
    if norm_weight is not None:
        _check_weight("norm_weight", norm_weight, hidden, hidden.dtype, torch.float32)
    if mode not in POOL_MODES:
        raise ValueError(f"mode: got {mode!r}, wanted one of {', '.join(POOL_MODES)}")
    if dim is not None and not 1 <= dim <= hidden.shape[1]:
        raise ValueError(f"dim: got {dim}, wanted 1 to {hidden.shape[1]}")
    return hidden.shape[1] if dim is None else dim


def _check_index_values(index: Tensor, tokens: int) -> None:
    values = index.tolist()
    if not values or (min(values) >= 0 and max(values) < tokens):
        return
    for position, token in enumerate(values):
        if not 0 <= token < tokens:
            wanted = f"0 to {tokens - 1}, a row of hidden"
            raise ValueError(f"index[{position}]: got {token}, wanted {wanted}")


def _check_cu_seqlens_values(cu_seqlens: Tensor, tokens: int) -> None:
    offsets = cu_seqlens.tolist()
    if offsets[0] < 0 or offsets[-1] > tokens:
        got = f"{offsets[0]} to {offsets[-1]}"
        raise ValueError(
            f"cu_seqlens: got {got}, wanted offsets within the {tokens} rows of hidden"
        )
    for b in range(len(offsets) - 1):
        if offsets[b] >= offsets[b + 1]:
            got = f"{offsets[b]} to {offsets[b + 1]} for sequence {b}"
            raise ValueError(f"cu_seqlens: got {got}, wanted at least one token a sequence")


# ---- results ------------------------------------------------------------------------------------
# Each checks an operator's arguments and allocates its results: all that happens to fake tensors,
# and the first step of every real call.


def _new_gather(
    hidden: Tensor, cu_seqlens: Tensor | None = None, *, index: Tensor | None = None
) -> Tensor:
    _check_gather(hidden, cu_seqlens, index)
    ids = cu_seqlens if cu_seqlens is not None else index
    assert ids is not None
    return hidden.new_empty(ids.shape[0] - (cu_seqlens is not None), hidden.shape[1])


def _new_score(
    hidden: Tensor, index: Tensor, norm_weight: Tensor, eps: float, w: Tensor, bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    _check_score(hidden, index, norm_weight, w)
    score = index.new_empty(index.shape[0], dtype=torch.float32)
    return score, torch.empty_like(score)


def _new_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    mode: str = "last",
    dim: int | None = None,
    normalize: bool = True,
) -> Tensor:
    width = _check_pool(hidden, cu_seqlens, norm_weight, mode, dim)
    return hidden.new_empty(cu_seqlens.shape[0] - 1, width)


# ---- kernels ------------------------------------------------------------------------------------


def _launch(
    kernel: Callable[..., None], hidden: Tensor, rows: int, *addresses: int, **sizes: Any
) -> None:
    """Runs a kernel that reads ``rows`` rows of hidden."""
    tokens, width = hidden.shape
    sizes |= {
        "T": tokens,
        "H": width,
        "row_stride": hidden.stride(0) if tokens > 1 else width,
        "dtype": DTYPES[hidden.dtype],
        "threads": min(torch.get_num_threads(), 1 + rows * width // ELEMENTS_PER_THREAD),
    }
    if hidden.is_cpu:
        kernel(hidden.data_ptr(), *addresses, **sizes, stream=0)
        return
    with torch.npu.device(hidden.device):  # type: ignore[attr-defined]
        # reading the handle drains torch_npu's task queue, so what was issued before runs before
        stream = torch.npu.current_stream().npu_stream  # type: ignore[attr-defined]
        kernel(hidden.data_ptr(), *addresses, **sizes, stream=stream)


def _last_token_gather(
    hidden: Tensor, cu_seqlens: Tensor | None = None, *, index: Tensor | None = None
) -> Tensor:
    out = _new_gather(hidden, cu_seqlens, index=index)
    spans = cu_seqlens is not None
    ids = cu_seqlens if cu_seqlens is not None else index
    assert ids is not None
    ids = ids.contiguous()
    if hidden.is_cpu:
        (_check_cu_seqlens_values if spans else _check_index_values)(ids, hidden.shape[0])
    _launch(
        _C.last_token_gather,
        hidden,
        out.shape[0],
        ids.data_ptr(),
        out.data_ptr(),
        B=out.shape[0],
        ids_are_cu_seqlens=spans,
    )
    return out


def _score_head(
    hidden: Tensor, index: Tensor, norm_weight: Tensor, eps: float, w: Tensor, bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    score, logit = _new_score(hidden, index, norm_weight, eps, w, bias)
    if hidden.is_cpu:
        _check_index_values(index, hidden.shape[0])
    index, norm_weight, w = index.contiguous(), norm_weight.contiguous(), w.contiguous()
    _launch(
        _C.score_head,
        hidden,
        index.shape[0],
        index.data_ptr(),
        norm_weight.data_ptr(),
        w.data_ptr(),
        score.data_ptr(),
        logit.data_ptr(),
        B=index.shape[0],
        norm_dtype=DTYPES[norm_weight.dtype],
        eps=eps,
        bias=bias,
    )
    return score, logit


def _fused_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    mode: str = "last",
    dim: int | None = None,
    normalize: bool = True,
) -> Tensor:
    out = _new_pool(hidden, cu_seqlens, norm_weight, eps, mode, dim, normalize)
    if hidden.is_cpu:
        _check_cu_seqlens_values(cu_seqlens, hidden.shape[0])
    cu_seqlens = cu_seqlens.contiguous()
    weight = None if norm_weight is None else norm_weight.contiguous()
    _launch(
        _C.fused_pool,
        hidden,
        hidden.shape[0] if mode == "mean" else out.shape[0],
        cu_seqlens.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        out.data_ptr(),
        B=out.shape[0],
        D=out.shape[1],
        norm_dtype=DTYPES[hidden.dtype if weight is None else weight.dtype],
        eps=eps,
        mode=mode,
        normalize=normalize,
    )
    return out


# ---- registration -------------------------------------------------------------------------------


def _checked(new: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
    """The twin behind the operator's checks."""

    def run(*args: Any, **kwargs: Any) -> Any:
        new(*args, **kwargs)
        return reference(*args, **kwargs)

    return run


_LIBRARY = torch.library.Library("pyrerank", "DEF")  # registered as long as it lives

for _schema, _kernel, _new, _reference in (
    (
        "last_token_gather(Tensor hidden, Tensor? cu_seqlens=None, *, Tensor? index=None)"
        " -> Tensor",
        _last_token_gather,
        _new_gather,
        last_token_gather_reference,
    ),
    (
        "score_head(Tensor hidden, Tensor index, Tensor norm_weight, float eps, Tensor w,"
        " float bias=0.0) -> (Tensor score, Tensor logit)",
        _score_head,
        _new_score,
        score_head_reference,
    ),
    (
        "fused_pool(Tensor hidden, Tensor cu_seqlens, Tensor? norm_weight=None, float eps=1e-6,"
        ' str mode="last", int? dim=None, bool normalize=True) -> Tensor',
        _fused_pool,
        _new_pool,
        fused_pool_reference,
    ),
):
    _name = _schema.partition("(")[0]
    _twin = _checked(_new, _reference)
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_name, _twin if _C is None else _kernel, "CPU")
    _LIBRARY.impl(_name, _twin if _C is None else _kernel, "PrivateUse1")
    _LIBRARY.impl(_name, _twin, "CUDA")
    torch.library.register_fake(f"pyrerank::{_name}", _new, lib=_LIBRARY)
