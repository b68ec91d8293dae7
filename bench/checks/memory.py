"""Checks device memory: what weights and one pass take, and that calls leave nothing behind."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch

from checks import Bench, Check, Skip, Wrong
from checks.engine import open_engine, texts

MIB = 2**20


def accelerator(bench: Bench) -> Any:
    if bench.device.type == "cpu":
        raise Skip("memory of an accelerator")
    module = getattr(torch, bench.device.type)
    module.synchronize()
    module.empty_cache()
    module.reset_peak_memory_stats(bench.device)
    return module


def weights(bench: Bench, shape: str) -> tuple[str, Any]:
    """Loading holds no second copy of the weights."""
    module = accelerator(bench)
    before = module.memory_allocated(bench.device)
    engine = open_engine(bench, shape, "bfloat16", graph=False)
    index = engine.core.checkpoint.path / "model.safetensors.index.json"
    stored = json.loads(index.read_text())["metadata"]["total_size"]
    held = module.memory_allocated(bench.device) - before
    peak = module.max_memory_allocated(bench.device) - before
    figure = f"weights {stored / MIB:.0f} MiB, held {held / MIB:.0f}, peak {peak / MIB:.0f}"
    # Beside them there are a matrix on its way into a merged one, the mask of attention, and
    # rounding.
    if not stored <= peak <= stored + 128 * MIB:
        raise Wrong(figure)
    return figure, {"weights": stored, "held": held, "peak": peak}


def one_pass(bench: Bench, shape: str, graph: bool) -> tuple[str, Any]:
    """The largest pass takes so many bytes for each token, beside the weights."""
    module = accelerator(bench)
    held = module.memory_reserved(bench.device)
    budget = 1024 if bench.quick else 8192
    engine = open_engine(bench, shape, "bfloat16", graph=graph, token_budget=budget)
    query, documents = texts(engine)
    documents = [f"{number} {documents[-1]}" for number in range(2 * budget // 400)]
    before = module.memory_allocated(bench.device)
    module.reset_peak_memory_stats(bench.device)
    engine.score(query, documents)
    peak = module.max_memory_allocated(bench.device) - before
    kept = module.memory_allocated(bench.device) - before
    engine.score(query, documents)
    again = module.memory_allocated(bench.device) - before
    reserved = module.max_memory_reserved(bench.device) - held
    formula = engine.device_memory()
    figure = (
        f"a pass of at most {budget} tokens takes {peak / MIB:.1f} MiB, "
        f"{peak / budget:.0f} bytes a token; the engine {reserved / MIB:.0f} MiB, "
        f"by the formula {formula / MIB:.0f}"
    )
    # The rounding of an allocator weighs more in a small model.
    if abs(reserved - formula) > max(0.05 * formula, 64 * MIB):
        raise Wrong(figure)
    if again > kept or (not graph and kept > MIB):
        raise Wrong(f"{figure}; kept {kept} bytes after one call, {again} after two")
    figures = {"token_budget": budget, "peak": peak, "kept": kept}
    return figure, figures | {"reserved": reserved, "formula": formula}


CHECKS: dict[str, Check] = {}
for _shape in ("tiny", "0.6B"):
    CHECKS |= {
        f"{_shape}, weights": partial(weights, shape=_shape),
        f"{_shape}, one pass, eager": partial(one_pass, shape=_shape, graph=False),
        f"{_shape}, one pass, replayed": partial(one_pass, shape=_shape, graph=True),
    }
