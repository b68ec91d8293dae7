"""Measures times of kernels, of the same in plain torch, and of whole calls. None can be wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

from checks import Bench, Check
from checks.engine import open_engine
from pyrerank.bench import machine
from pyrerank.bench.kernels import Case, measure


def kernel(bench: Bench, name: str) -> tuple[str, Any]:
    """Times as `pyrerank bench kernels`: eager as callers wait, replayed the device alone."""
    rows = []
    for width in (2048,) if bench.quick else (1024, 2048, 4096):
        for count in (1, 8) if bench.quick else (1, 8, 64, 256):
            case = Case(name, count, width, "bfloat16", tokens=1)
            row = measure(case, bench.on, rounds=5 if bench.quick else 20)
            rows.append({"H": width, "B": count} | row)
    shown = rows[-1]

    def times(suffix: str) -> str:
        mine, eager = (shown[f"{who}{suffix}_us"]["median"] for who in ("kernel", "eager"))
        return f"{mine:.1f} us, plain torch {eager:.1f} us"

    text = f"H {shown['H']}, B {shown['B']}: {times('')}"
    if "kernel_replayed_us" in shown:
        text += f"; replayed {times('_replayed')}"
    return label(text), rows


def whole_calls(bench: Bench, shape: str) -> tuple[str, Any]:
    """Times as bench/replay.py: 1, 8 and 64 documents of 200 tokens."""
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
        for name in ("last_token_gather", "score_head", "fused_pool last")
    },
    "whole calls, tiny": partial(whole_calls, shape="tiny"),
    "whole calls, 0.6B": partial(whole_calls, shape="0.6B"),
}
