"""Times: kernels against the same in plain torch, and whole calls. None is right or wrong."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from checks import Bench, Check, record
from checks.engine import open_engine
from checks.kernels import EPS, hidden_states, weights
from pyrerank import machine, ops

WARM_UP = 3  # measurements that are not counted
CALLS = 20  # of one measurement


def microseconds(bench: Bench, call: Callable[[], object]) -> float:
    """Of one call, when CALLS are issued one after the other: the median of several."""
    taken = []
    for _ in range(WARM_UP + (5 if bench.quick else 20)):
        bench.synchronize()
        if bench.device.type == "cpu":
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            taken.append(1e6 * (time.perf_counter() - start) / CALLS)
            continue
        module = getattr(torch, bench.device.type)
        begin, end = (module.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        taken.append(1e3 * begin.elapsed_time(end) / CALLS)
    return statistics.median(taken[WARM_UP:])


def operands(kernel: str, width: int, count: int) -> tuple[Tensor, ...]:
    hidden = hidden_states(max(count, 2), width, torch.bfloat16, 0)
    index = torch.arange(count, dtype=torch.int32)
    gain, w = weights(width, torch.bfloat16)
    if kernel == "score_head":
        return hidden, index, gain, w
    cu = torch.arange(count + 1, dtype=torch.int32)
    return (hidden, cu, gain) if kernel == "fused_pool" else (hidden, cu)


def call(kernel: str, arguments: tuple[Tensor, ...], twin: bool) -> object:
    function = getattr(ops, kernel + "_reference" * twin)
    if kernel == "score_head":
        hidden, index, gain, w = arguments
        return function(hidden, index, gain, EPS, w)
    if kernel == "fused_pool":
        return function(*arguments, EPS)
    return function(*arguments)


def kernel(bench: Bench, name: str) -> tuple[str, Any]:
    """Eager: what a caller waits for. Replayed: CALLS in one graph, the device alone."""
    rows = []
    for width in (2048,) if bench.quick else (1024, 2048, 4096):
        for count in (1, 8) if bench.quick else (1, 8, 64, 256):
            arguments = tuple(tensor.to(bench.device) for tensor in operands(name, width, count))
            row: dict[str, Any] = {"H": width, "B": count}
            for twin in (False, True):
                run = partial(call, name, arguments, twin)
                row["twin_us" if twin else "kernel_us"] = microseconds(bench, run)
                if bench.device.type == "npu":

                    def several(run: Callable[[], object] = run) -> list[object]:
                        return [run() for _ in range(CALLS)]

                    graph, _ = record(bench, several)
                    key = "twin_replayed_us" if twin else "kernel_replayed_us"
                    row[key] = microseconds(bench, graph.replay) / CALLS
                    del graph
            rows.append(row)
    shown = rows[-1]
    text = f"H {shown['H']}, B {shown['B']}: {shown['kernel_us']:.1f} us, plain torch " + (
        f"{shown['twin_us']:.1f} us"
    )
    if "kernel_replayed_us" in shown:
        text += (
            f"; replayed {shown['kernel_replayed_us']:.1f} us and "
            f"{shown['twin_replayed_us']:.1f} us"
        )
    return label(text), rows


def whole_calls(bench: Bench, shape: str) -> tuple[str, Any]:
    """bench/replay.py's figures: 1, 8 and 64 documents of 200 tokens."""
    import replay

    engine = open_engine(bench, shape, "bfloat16", token_budget=8192)
    counts, rounds = ((1, 2), 3) if bench.quick else ((1, 8, 64), 20)
    rows = [replay.measure(engine, count, 200, rounds) for count in counts]
    texts = []
    for row in rows:
        text = f"{row['documents']} documents {row['eager_ms']['median']:.1f} ms"
        if "replay_ms" in row:
            text += f", replayed {row['replay_ms']['median']:.1f} ms"
        texts.append(text)
    return label("; ".join(texts)), rows


def label(text: str) -> str:
    return f"{text} (simulated: means nothing)" if machine.simulated() else text


CHECKS: dict[str, Check] = {
    **{
        f"{name}, bfloat16": partial(kernel, name=name)
        for name in ("last_token_gather", "score_head", "fused_pool")
    },
    "whole calls, tiny": partial(whole_calls, shape="tiny"),
    "whole calls, 0.6B": partial(whole_calls, shape="0.6B"),
}
