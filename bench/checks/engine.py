"""Checks the engine end to end: on the device, eagerly and replayed, against float32 on the CPU.

Checkpoints have random weights in bfloat16, the same for both, so differences are the arithmetic's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import random_checkpoint
import replay
import torch

from checks import Bench, Check, Comparison, Figure, Skip, Wrong
from pyrerank import Reranker

DTYPES = ("bfloat16", "float32")
TOKENS = [1, 7, 20, 40, 64, 90, 128, 200, 300, 450]  # of documents
BUDGET = 1024  # small, so that the documents take several passes of different sizes


def bound(shape: str, dtype: str) -> float:
    """Says how far a score may be from the CPU's in float32.

    float32: ten times what the CPU is held to, as long as nobody knows how exactly a device
    computes exponentials and roots. bfloat16: somewhat more than the largest difference that
    bench/rounding.py finds between transformers' scores in bfloat16 and in float32.
    """
    if dtype == "float32":
        return 1e-4
    return 4e-2 if shape.startswith("tiny") else 1e-1


def texts(engine: Reranker) -> tuple[str, list[str]]:
    query, long = replay.texts(engine, len(TOKENS), max(TOKENS))
    pairs = zip(long, TOKENS, strict=True)
    return query, [replay.cut(engine, text, tokens) for text, tokens in pairs]


def model(bench: Bench, shape: str) -> str:
    if bench.quick and not shape.startswith("tiny"):
        raise Skip("only without --quick")
    folder = bench.work / shape
    if not (folder / "model.safetensors.index.json").is_file():
        random_checkpoint.write(folder, shape)
    return str(folder)


def open_engine(bench: Bench, shape: str, dtype: str, **options: Any) -> Reranker:
    options = {"token_budget": BUDGET} | options
    return Reranker(model(bench, shape), device=bench.device, dtype=dtype, **options)


def reference(bench: Bench, shape: str) -> torch.Tensor:
    """Scores of the CPU in float32, which are written for the next process."""
    kept = bench.work / f"{shape}-reference.pt"
    if not kept.is_file():
        engine = Reranker(model(bench, shape), device="cpu", dtype="float32")
        torch.save(torch.tensor(engine.score(*texts(engine))), kept)
    return torch.load(kept)


def against_cpu(bench: Bench, shape: str, dtype: str, graph: bool) -> Figure:
    if graph and bench.device.type == "cpu":
        raise Skip("graphs of an NPU")
    engine = open_engine(bench, shape, dtype, graph=graph)
    query, documents = texts(engine)
    comparison = Comparison()
    for turn in range(2):  # the second finds every graph captured
        got = torch.tensor(engine.score(query, documents))
        comparison.add(f"turn {turn + 1}", got, reference(bench, shape), bound(shape, dtype))
    worst = (got - reference(bench, shape)).abs().max().item()
    allowed = bound(shape, dtype)
    text = f"{len(documents)} documents, scores differ by at most {worst:.1e} of {allowed:g}"
    if not graph:
        return text
    graphs = engine.core.graphs
    if graphs is None:
        raise Wrong("the engine gave up its graphs, and says why in a warning")
    if graphs.replays == 0 or graphs.replays < graphs.captures:
        raise Wrong(f"{graphs.captures} graphs captured, but {graphs.replays} passes replayed")
    return f"{text}; {graphs.captures} graphs, {graphs.replays} replays"


def any_batch(bench: Bench, shape: str, graph: bool) -> Figure:
    """Scores must be the same alone, together, and in another order."""
    if graph and bench.device.type == "cpu":
        raise Skip("graphs of an NPU")
    engine = open_engine(bench, shape, "bfloat16", graph=graph)
    query, documents = texts(engine)
    together = torch.tensor(engine.score(query, documents))
    alone = torch.tensor([engine.score(query, [document])[0] for document in documents])
    turned = torch.tensor(engine.score(query, documents[::-1])).flip(0)
    comparison = Comparison()
    comparison.add("alone", alone, together, bound(shape, "bfloat16"))
    comparison.add("other order", turned, together, bound(shape, "bfloat16"))
    worst = max((other - together).abs().max().item() for other in (alone, turned))
    return f"scores differ by at most {worst:.1e}"


def eager_and_replayed(bench: Bench, shape: str) -> Figure:
    engine = open_engine(bench, shape, "bfloat16")
    if engine.core.graphs is None:
        raise Skip("graphs of an NPU")
    query, documents = texts(engine)
    replayed = [detail.logit for detail in engine.details(query, documents)]
    engine.core.graphs = None
    eager = [detail.logit for detail in engine.details(query, documents)]
    worst = max(abs(a - b) for a, b in zip(replayed, eager, strict=True))
    # four times the bound of a score, because the sigmoid's largest slope is 1/4
    Comparison().add("logits", torch.tensor(replayed), torch.tensor(eager), 8e-2)
    return f"logits differ by at most {worst:.1e}"


def warmup(bench: Bench, shape: str) -> tuple[str, Any]:
    """After every bucket of the default budget is captured, no call captures."""
    engine = open_engine(bench, shape, "bfloat16", token_budget=BUDGET if bench.quick else 8192)
    if engine.core.graphs is None:
        raise Skip("graphs of an NPU")
    module = getattr(torch, bench.device.type)
    before = module.memory_reserved(bench.device)
    engine.warmup()
    if engine.core.graphs is None:
        raise Wrong("the engine gave up its graphs, and says why in a warning")
    took = module.memory_reserved(bench.device) - before
    captures = engine.core.graphs.captures
    engine.score(*texts(engine))
    if engine.core.graphs is None or engine.core.graphs.captures != captures:
        raise Wrong("a call captured a graph after the warm-up")
    figure = f"{captures} graphs take {took / 2**20:.0f} MiB"
    return figure, {"graphs": captures, "bytes": took, "token_budget": engine.token_budget}


def _checks(shape: str) -> dict[str, Check]:
    result: dict[str, Check] = {
        f"{shape}, {dtype}, {'replayed' if graph else 'eager'}, against the CPU": partial(
            against_cpu, shape=shape, dtype=dtype, graph=graph
        )
        for dtype in DTYPES
        for graph in (False, True)
    }
    return result | {
        f"{shape}, eager and replayed": partial(eager_and_replayed, shape=shape),
        f"{shape}, any batch, eager": partial(any_batch, shape=shape, graph=False),
        f"{shape}, any batch, replayed": partial(any_batch, shape=shape, graph=True),
        f"{shape}, warm-up": partial(warmup, shape=shape),
    }


CHECKS: dict[str, Check] = _checks("tiny") | _checks("0.6B")
