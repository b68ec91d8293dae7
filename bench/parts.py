"""Says where the time of a call on a CPU goes, and what two choices of the engine cost there.

    OMP_NUM_THREADS=2 python bench/parts.py VL-0.6B

It prints three tables: shares of a call's time; a call with and without the padding of small
products, which keeps scores the same in any batch (`pyrerank.devices.cpu.LEAST_ROWS`); and the
engine's attention beside torch's.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import random_checkpoint
import torch
import torch.nn.functional as F
from workloads import WORKLOADS, Source

from pyrerank import Reranker
from pyrerank.bench import machine
from pyrerank.bench.kernels import quartiles
from pyrerank.bench.report import line, number
from pyrerank.devices import cpu
from pyrerank.kernels import cpu as kernels

PARTS = {
    "products of matrices": [(F, "linear")],
    "attention": [(kernels, "attention")],
    "norms, rotation, activations": [
        (kernels, name) for name in ("add_rms_norm", "norm_rotate_", "swiglu", "gelu")
    ],
}


@contextmanager
def timed(seconds: Counter[str]) -> Iterator[None]:
    """Adds to ``seconds`` the time that each of PARTS takes in this context."""

    def timing(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[part] += time.perf_counter() - start
            return result

        return call

    saved = [(owner, name, getattr(owner, name)) for part in PARTS.values() for owner, name in part]
    for part, functions in PARTS.items():
        for owner, name in functions:
            setattr(owner, name, timing(part, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, function in saved:
            setattr(owner, name, function)


def shares(engine: Reranker, source: Source, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name in ("1x32", "1x100", "pairs"):
        found: dict[str, list[float]] = {part: [] for part in PARTS}
        for _ in range(rounds):
            seconds: Counter[str] = Counter()
            job = WORKLOADS[name].job(source, 32)
            start = time.perf_counter()
            with timed(seconds):
                engine.score(job["query"], job["documents"])
            whole = time.perf_counter() - start
            for part in PARTS:
                found[part].append(seconds[part] / whole)
        rows.append({"workload": name} | {part: quartiles(found[part]) for part in PARTS})
    return rows


def padding(engine: Reranker, source: Source, rounds: int) -> list[dict[str, Any]]:
    """The processor time of the whole process with padding, over that without."""
    rows, least = [], cpu.LEAST_ROWS
    for count in (1, 8):
        ratios = []
        for n in range(rounds):
            job = WORKLOADS["1x100"].job(source, count)
            taken = {}
            for limit in (1, least)[:: 1 if n % 2 else -1]:
                cpu.LEAST_ROWS = limit
                start = time.process_time()
                engine.score(job["query"], job["documents"])
                taken[limit] = time.process_time() - start
            ratios.append(taken[least] / taken[1])
        rows.append({"documents": count, "padded_over_not": quartiles(ratios)})
    return rows


def attention(rounds: int) -> list[dict[str, Any]]:
    """Times causal attention in 16 packed sequences: 16 heads on 8, head_dim 128, bfloat16."""
    rows = []
    for tokens in (100, 200, 400):
        lengths = [tokens] * 16
        starts = [n * tokens for n in range(17)]
        q, k, v = (torch.randn(starts[-1], heads, 128).bfloat16() for heads in (16, 8, 8))

        def ours(q=q, k=k, v=v, lengths=lengths) -> None:
            kernels.attention(q, k, v, lengths, lengths, None, causal=True)

        def torchs(q=q, k=k, v=v, starts=starts) -> None:
            for begin, end in pairwise(starts):
                one = (x[None, begin:end].transpose(1, 2) for x in (q, k, v))
                F.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True)

        flops = 4 * 16 * 16 * 128 * tokens * (tokens + 1) / 2
        speeds: dict[str, list[float]] = {"pyrerank": [], "torch": []}
        for n in range(rounds + 1):
            for name, run in (("pyrerank", ours), ("torch", torchs))[:: 1 if n % 2 else -1]:
                start = time.perf_counter()
                for _ in range(8):
                    run()
                speeds[name].append(8e-12 * flops / (time.perf_counter() - start))
        row = {f"{name}_tflops": quartiles(values[1:]) for name, values in speeds.items()}
        ratios = [a / b for a, b in zip(*speeds.values(), strict=True)][1:]
        rows.append({"tokens": tokens} | row | {"faster": quartiles(ratios)})
    return rows


def tables(report: dict[str, Any]) -> str:
    lines = []
    for name in ("shares", "padding", "attention"):
        lines += ["", line(*report[name][0]), line(*["---"] * len(report[name][0]))]
        for row in report[name]:
            shown = (number(v["median"]) if isinstance(v, dict) else v for v in row.values())
            lines.append(line(*shown))
    return "\n".join(lines[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of a call on a CPU goes.")
    parser.add_argument("shape", choices=random_checkpoint.SHAPES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        random_checkpoint.write(folder / "model", arguments.shape)
        engine = Reranker(folder / "model", device="cpu", dtype="bfloat16")
        source = Source(engine.core.checkpoint.tokenizer(), folder, random.Random(0))
        job = WORKLOADS["1x32"].job(source, 4)
        engine.score(job["query"], job["documents"])  # so that weights are in memory
        report = {
            "machine": machine.describe(torch.device("cpu")),
            "model": arguments.shape,
            "rounds": arguments.rounds,
            "shares": shares(engine, source, arguments.rounds),
            "padding": padding(engine, source, arguments.rounds),
            "attention": attention(arguments.rounds),
        }
    print(tables(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
