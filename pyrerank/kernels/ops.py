"""The fused end of the forward pass: three operators on the packed hidden states.

Importing this module registers each as ``torch.ops.pyrerank.<name>``. On the CPU and the NPU an
operator runs the kernel csrc/ascendc/<name>.cpp: for a tensor in the host's memory as it was built
for the host's processor, for a tensor on an NPU as CANN compiled it. Elsewhere (and where the
extension was not built) it runs its ``_reference`` twin below, which is also its specification.
Arithmetic is float32 throughout, and a row's result has the same bits alone and in any batch. This
module knows nothing of models or prompts.

A dtype that is not listed raises TypeError, any other wrong argument ValueError; both name the
argument, what it got and what it wanted, before anything is launched. Ids out of range do so on the
CPU. On a device, looking at them would wait for it: there such a row becomes NaN, and the caller
refuses it. No ids at all give an empty result. Results are NaN until a kernel has written them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from pyrerank.errors import DeviceError
from pyrerank.kernels.checks import DTYPES as DTYPES
from pyrerank.kernels.checks import POOL_MODES as POOL_MODES
from pyrerank.kernels.checks import check_gather, check_pool, check_score, check_values

# The kernels for the host's processor; None: pyrerank was installed without a compiler.
_C: Any
try:
    _C = import_module("pyrerank._C")
except ModuleNotFoundError:  # an extension that is there and broken raises ImportError
    _C = None
if _C is not None and _C.build_info()["target"] != "cpu":
    _C = None  # an older build's, whose kernels would take the host's addresses for an NPU's


@cache
def npu_kernels() -> Any:
    """The module whose kernels are launched on an NPU.

    That is what CANN compiled. Where nothing was built with CANN it is the module for the host's
    processor, which launches its kernels on a simulated NPU, and refuses to on a real one.

    Raises:
        DeviceError: kernels were compiled by CANN, and its libraries do not load.
    """
    try:
        return import_module("pyrerank._C_npu")
    except ModuleNotFoundError:
        return _C
    except ImportError as error:
        raise DeviceError(
            f"pyrerank's kernels for the NPU do not load ({error}): source the set_env.sh of the "
            "CANN toolkit that they were built with, or reinstall pyrerank; device='cpu' works "
            "without them"
        ) from error


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


# ---- results ------------------------------------------------------------------------------------
# Each checks an operator's arguments and allocates its results: all that happens to fake tensors,
# and the first step of every call of a kernel.


def _new_gather(
    hidden: Tensor, cu_seqlens: Tensor | None = None, *, index: Tensor | None = None
) -> Tensor:
    check_gather(hidden, cu_seqlens, index=index)
    ids = cu_seqlens if cu_seqlens is not None else index
    assert ids is not None
    rows = ids.shape[0] - (cu_seqlens is not None)
    return hidden.new_full((rows, hidden.shape[1]), torch.nan)


def _new_score(
    hidden: Tensor, index: Tensor, norm_weight: Tensor, eps: float, w: Tensor, bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    check_score(hidden, index, norm_weight, eps, w, bias)
    nothing = partial(index.new_full, index.shape, torch.nan, dtype=torch.float32)
    return nothing(), nothing()


def _new_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    mode: str = "last",
    dim: int | None = None,
    normalize: bool = True,
) -> Tensor:
    check_pool(hidden, cu_seqlens, norm_weight, eps, mode, dim, normalize)
    width = hidden.shape[1] if dim is None else dim
    return hidden.new_full((cu_seqlens.shape[0] - 1, width), torch.nan)


# ---- kernels ------------------------------------------------------------------------------------


def _launch(kernel: str, hidden: Tensor, rows: int, *addresses: int, **sizes: Any) -> None:
    """Runs the named kernel, which reads ``rows`` rows of hidden, where hidden is."""
    tokens, width = hidden.shape
    sizes |= {
        "T": tokens,
        "H": width,
        "row_stride": hidden.stride(0) if tokens > 1 else width,
        "dtype": DTYPES[hidden.dtype],
        "threads": min(torch.get_num_threads(), 1 + rows * width // ELEMENTS_PER_THREAD),
    }
    if hidden.is_cpu:
        getattr(_C, kernel)(hidden.data_ptr(), *addresses, **sizes, stream=0)
        return
    launch = getattr(npu_kernels(), kernel)
    with torch.npu.device(hidden.device):  # type: ignore[attr-defined]
        # reading the handle drains torch_npu's task queue, so what was issued before runs before
        stream = torch.npu.current_stream().npu_stream  # type: ignore[attr-defined]
        launch(hidden.data_ptr(), *addresses, **sizes, stream=stream)


def _last_token_gather(
    hidden: Tensor, cu_seqlens: Tensor | None = None, *, index: Tensor | None = None
) -> Tensor:
    out = _new_gather(hidden, cu_seqlens, index=index)
    check_values(hidden, cu_seqlens, index)
    ids = cu_seqlens if cu_seqlens is not None else index
    assert ids is not None
    ids = ids.contiguous()
    _launch(
        "last_token_gather",
        hidden,
        out.shape[0],
        ids.data_ptr(),
        out.data_ptr(),
        B=out.shape[0],
        ids_are_cu_seqlens=cu_seqlens is not None,
    )
    return out


def _score_head(
    hidden: Tensor, index: Tensor, norm_weight: Tensor, eps: float, w: Tensor, bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    score, logit = _new_score(hidden, index, norm_weight, eps, w, bias)
    check_values(hidden, None, index)
    index, norm_weight, w = index.contiguous(), norm_weight.contiguous(), w.contiguous()
    _launch(
        "score_head",
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
    check_values(hidden, cu_seqlens, None)
    cu_seqlens = cu_seqlens.contiguous()
    weight = None if norm_weight is None else norm_weight.contiguous()
    _launch(
        "fused_pool",
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


def _checked(check: Callable[..., None], reference: Callable[..., Any]) -> Callable[..., Any]:
    """The twin behind the operator's checks."""
    parameters = signature(reference)

    def run(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        given = parameters.bind(*args, **kwargs).arguments
        check_values(given["hidden"], given.get("cu_seqlens"), given.get("index"))
        return reference(*args, **kwargs)

    return run


_LIBRARY = torch.library.Library("pyrerank", "DEF")  # registered as long as it lives

for _schema, _kernel, _check, _new, _reference in (
    (
        "last_token_gather(Tensor hidden, Tensor? cu_seqlens=None, *, Tensor? index=None)"
        " -> Tensor",
        _last_token_gather,
        check_gather,
        _new_gather,
        last_token_gather_reference,
    ),
    (
        "score_head(Tensor hidden, Tensor index, Tensor norm_weight, float eps, Tensor w,"
        " float bias=0.0) -> (Tensor score, Tensor logit)",
        _score_head,
        check_score,
        _new_score,
        score_head_reference,
    ),
    (
        "fused_pool(Tensor hidden, Tensor cu_seqlens, Tensor? norm_weight=None, float eps=1e-6,"
        ' str mode="last", int? dim=None, bool normalize=True) -> Tensor',
        _fused_pool,
        check_pool,
        _new_pool,
        fused_pool_reference,
    ),
):
    _name = _schema.partition("(")[0]
    _twin = _checked(_check, _reference)
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_name, _twin if _C is None else _kernel, "CPU")
    _LIBRARY.impl(_name, _twin if _C is None else _kernel, "PrivateUse1")
    _LIBRARY.impl(_name, _twin, "CUDA")
    torch.library.register_fake(f"pyrerank::{_name}", _new, lib=_LIBRARY)
