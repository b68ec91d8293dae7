"""Checks the three kernels against their twins in plain torch, and against float64.

What may differ is what tests/kernels/test_kernels.py allows: sums of float32 in another order, and
the result's own rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from checks import Bench, Check, Comparison, Figure, Skip, record
from pyrerank.kernels import ops

NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 2**-23}
ARITHMETIC = 2e-6
EPS = 1e-6
MODELS = [1024, 2048, 2560, 4096]  # hidden_size of 0.6B, VL-2B, 4B and 8B
EDGE = [16, 80, 528, 2064, 8192]
BATCHES = [1, 2, 7, 41, 64, 129, 512]
QUICK = [(1024, 1), (2048, 64), (2560, 41), (4096, 129), (80, 7), (8192, 2)]
MODES = ("last", "mean", "cls")


def sizes(quick: bool) -> list[tuple[int, int]]:
    """(H, B)."""
    return QUICK if quick else [(width, count) for width in MODELS + EDGE for count in BATCHES]


def hidden_states(tokens: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(tokens, 1, generator=generator).mul(6).sub(3).exp()  # 0.05 to 20
    return (torch.randn(tokens, width, generator=generator) * scale).to(dtype)


def weights(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(width)
    gain = (1 + 0.2 * torch.randn(width, generator=generator)).to(dtype)
    return gain, torch.randn(width, generator=generator) / math.sqrt(width)


def spans(count: int, longest: int, seed: int) -> Tensor:
    """cu_seqlens of ``count`` sequences of 1 to ``longest`` tokens."""
    lengths = torch.randint(1, longest + 1, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))).int()


# ---- one case a kernel: the call, its arguments, and how to judge what it returns ---------------

Judge = Callable[[Comparison, str, Any], None]
Case = tuple[str, Callable[..., object], list[Tensor], Judge]


def gather_case(width: int, count: int, dtype: torch.dtype, seed: int) -> Case:
    cu = spans(count, 9, seed)
    hidden = hidden_states(int(cu[-1]), width, dtype, seed)
    want = ops.last_token_gather_reference(hidden, cu)

    def judge(comparison: Comparison, case: str, got: Any) -> None:
        comparison.add(case, got, want, 0.0)

    return f"H {width}, B {count}", ops.last_token_gather, [hidden, cu], judge


def score_case(width: int, count: int, dtype: torch.dtype, seed: int) -> Case:
    hidden = hidden_states(count + 5, width, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, len(hidden), (count,), generator=generator).int()
    gain, w = weights(width, dtype if seed % 2 else torch.float32)
    bias = 0.25 * (seed % 3)

    def call(hidden: Tensor, index: Tensor, gain: Tensor, w: Tensor) -> object:
        return ops.score_head(hidden, index, gain, EPS, w, bias)

    x, g = hidden[index.long()].double(), gain.double() * w.double()
    rms = (x.square().mean(1) + EPS).sqrt()
    logit = x @ g / rms + bias
    tolerance = ARITHMETIC * (x.abs() @ g.abs() / rms + abs(bias)) + 1e-7
    twin = ops.score_head_reference(hidden, index, gain, EPS, w, bias)

    def judge(comparison: Comparison, case: str, got: Any) -> None:
        score, got_logit = got
        comparison.add(f"{case}, logit", got_logit, logit, tolerance)
        comparison.add(f"{case}, score", score, logit.sigmoid(), tolerance / 4 + 2e-7)
        comparison.add(f"{case}, logit of the twin", got_logit, twin[1], 2 * tolerance)

    return f"H {width}, B {count}", call, [hidden, index, gain, w], judge


def pool_case(width: int, count: int, dtype: torch.dtype, seed: int) -> Case:
    mode, normalize, normed = MODES[seed % 3], seed % 4 != 3, seed % 5 != 4
    dim = None if seed % 2 else max(1, width // 3)
    cu = spans(count, 2 if count > 64 else 13, seed)
    hidden = hidden_states(int(cu[-1]), width, dtype, seed)
    gain = weights(width, dtype)[0] if normed else None
    arguments = [hidden, cu] + ([] if gain is None else [gain])

    def call(hidden: Tensor, cu: Tensor, gain: Tensor | None = None) -> object:
        return ops.fused_pool(hidden, cu, gain, EPS, mode, dim, normalize)

    x = hidden.double()
    if gain is not None:
        x = x / (x.square().mean(1, keepdim=True) + EPS).sqrt() * gain.double()
    pieces = [x[a:b] for a, b in zip(cu.tolist(), cu.tolist()[1:], strict=False)]
    pooled = [p.mean(0) if mode == "mean" else p[-1 if mode == "last" else 0] for p in pieces]
    want = torch.stack(pooled)[:, :dim]
    if normalize:
        want = want / want.norm(dim=1, keepdim=True).clamp_min(ops.SMALLEST_NORM)
    arithmetic = 4 * ARITHMETIC * want.abs().amax(1, keepdim=True) + 1e-7
    tolerance = ROUNDING[dtype] * want.abs() + arithmetic
    twin = ops.fused_pool_reference(hidden, cu, gain, EPS, mode, dim, normalize)

    def judge(comparison: Comparison, case: str, got: Any) -> None:
        comparison.add(case, got, want, tolerance)
        comparison.add(f"{case}, the twin", got, twin, 2 * tolerance)

    return f"{mode}, H {width}, B {count}", call, arguments, judge


CASES = {"last_token_gather": gather_case, "score_head": score_case, "fused_pool": pool_case}


def cases(bench: Bench, kernel: str, dtype: torch.dtype) -> Iterator[Case]:
    for seed, (width, count) in enumerate(sizes(bench.quick)):
        yield CASES[kernel](width, count, dtype, seed)


# ---- checks -------------------------------------------------------------------------------------


def eager(bench: Bench, kernel: str, dtype: torch.dtype) -> Figure:
    comparison = Comparison()
    for case, call, arguments, judge in cases(bench, kernel, dtype):
        judge(comparison, case, call(*(tensor.to(bench.device) for tensor in arguments)))
    return comparison.figure()


def replayed(bench: Bench, kernel: str, dtype: torch.dtype) -> Figure:
    """A graph is replayed with other contents than it was captured with."""
    comparison = Comparison()
    for case, call, arguments, judge in cases(bench, kernel, dtype):
        # At capture, hidden states are all ones; ids and weights are as they will be.
        static = [tensor.to(bench.device) for tensor in arguments]
        static[0].fill_(1)
        graph, out = record(bench, partial(call, *static))
        static[0].copy_(arguments[0])
        for _ in range(2):  # the second must not read what the first has left
            graph.replay()
            judge(comparison, case, out)
        del graph
    return comparison.figure()


def strided(bench: Bench, kernel: str, dtype: torch.dtype) -> Figure:
    """Rows may be a part of a wider tensor."""
    comparison = Comparison()
    for case, call, arguments, judge in cases(bench, kernel, dtype):
        tokens, width = arguments[0].shape
        wide = torch.full((tokens + 2, width + 29), torch.nan, dtype=dtype, device=bench.device)
        wide[1:-1, 3 : 3 + width].copy_(arguments[0])
        rest = [tensor.to(bench.device) for tensor in arguments[1:]]
        judge(comparison, case, call(wide[1:-1, 3 : 3 + width], *rest))
    return comparison.figure()


def bad_ids(bench: Bench, kernel: str, dtype: torch.dtype) -> Figure:
    """Rows that do not exist and sequences without a token give NaN, the others their values."""
    if bench.device.type == "cpu":
        raise Skip("the CPU refuses them")
    comparison = Comparison()
    for width, _ in QUICK:
        hidden = hidden_states(9, width, dtype, width)
        gain, w = weights(width, dtype)
        index = torch.tensor([0, -1, 8, 9, 2**31 - 1, -(2**31), 4], dtype=torch.int32)
        cu = torch.tensor([0, 3, 3, 7, 5, 9, 9], dtype=torch.int32)  # two empty, one backwards
        there = [tensor.to(bench.device) for tensor in (hidden, index, cu, gain, w)]
        if kernel == "last_token_gather":
            got = ops.last_token_gather(there[0], index=there[1])
            want = ops.last_token_gather_reference(hidden, index=index)
            comparison.add(f"H {width}, index", got, want, 0.0)
            got = ops.last_token_gather(there[0], there[2])
            comparison.add(
                f"H {width}, cu_seqlens", got, ops.last_token_gather_reference(hidden, cu), 0.0
            )
        elif kernel == "score_head":
            pairs = zip(
                ops.score_head(there[0], there[1], there[3], EPS, there[4]),
                ops.score_head_reference(hidden, index, gain, EPS, w),
                strict=True,
            )
            for got, want in pairs:
                comparison.add(f"H {width}", got, want, 1e-4)
        else:
            for mode in ("last", "cls"):
                got = ops.fused_pool(there[0], there[2], there[3], EPS, mode)
                want = ops.fused_pool_reference(hidden, cu, gain, EPS, mode)
                comparison.add(f"H {width}, {mode}", got, want, 2 * ROUNDING[dtype] + 1e-6)
    return comparison.figure()


def same_bits(bench: Bench, kernel: str, dtype: torch.dtype) -> Figure:
    """A row's result has the same bits alone and in any batch."""
    for width in MODELS:
        hidden = hidden_states(130, width, dtype, width).to(bench.device)
        gain, w = (tensor.to(bench.device) for tensor in weights(width, dtype))
        every = torch.arange(130, dtype=torch.int32, device=bench.device)
        cu = torch.arange(131, dtype=torch.int32, device=bench.device)
        whole = _outputs(kernel, hidden, every, cu, gain, w)
        for row in (0, 41, 129):
            alone = _outputs(kernel, hidden[row:], every[:1], cu[:2], gain, w)
            Comparison().add(f"H {width}, row {row}", alone[0], whole[row], 0.0)
    return f"{3 * len(MODELS)} rows"


def _outputs(
    kernel: str, hidden: Tensor, index: Tensor, cu: Tensor, gain: Tensor, w: Tensor
) -> Tensor:
    if kernel == "last_token_gather":
        return ops.last_token_gather(hidden, index=index)
    if kernel == "score_head":
        return ops.score_head(hidden, index, gain, EPS, w)[1]
    return ops.fused_pool(hidden[: len(cu) - 1], cu, gain, EPS, "mean")


CHECKS: dict[str, Check] = {
    f"{kernel}, {NAMES[dtype]}, {name}": partial(check, kernel=kernel, dtype=dtype)
    for kernel in CASES
    for dtype in NAMES
    for name, check in {
        "eager": eager,
        "replayed": replayed,
        "strided rows": strided,
        "bad ids give NaN": bad_ids,
        "same bits in any batch": same_bits,
    }.items()
}
