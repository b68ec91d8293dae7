"""Compares the latency of scoring one query eagerly with that of replaying a captured graph.

    python bench/replay.py --device npu --model 0.6B

Both take turns in every round, on the same texts and the same weights, so that whatever else the
machine does slows both. A time is that of a whole call, from strings to floats.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import random_checkpoint
import torch
from tokenizers import Tokenizer

from pyrerank import Reranker
from pyrerank.bench import machine
from pyrerank.bench.kernels import quartiles

XQUAD = Path(__file__).resolve().parents[1] / "tests/data/xquad/en"
WARM_UP = 3  # rounds that are not counted


def texts(engine: Reranker, documents: int, tokens: int) -> tuple[str, list[str]]:
    """A query, and different documents of ``tokens`` tokens that are cut from passages of XQuAD."""
    passages = (XQUAD / "corpus.jsonl").read_text("utf-8").splitlines()
    words = " ".join(json.loads(line)["text"] for line in passages).split(" ")
    query = json.loads((XQUAD / "queries.jsonl").read_text("utf-8").splitlines()[0])["text"]
    endless = words * (2 + tokens // len(words))
    step = max(1, len(words) // documents)
    starts = [number * step % len(words) for number in range(documents)]
    # as many words as tokens, because a word is a token at least
    return query, [cut(engine, " ".join(endless[s : s + tokens]), tokens) for s in starts]


def cut(engine: Reranker, text: str, tokens: int) -> str:
    """The first ``tokens`` tokens of a text, which must have as many."""
    encoding = tokenizer(engine.core.checkpoint.path).encode(text, add_special_tokens=False)
    return text[: encoding.offsets[tokens - 1][1]]


@cache
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def measure(engine: Reranker, documents: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Measures the milliseconds of one call: eager and, if the engine has graphs, replayed."""
    query, texts_ = texts(engine, documents, tokens)
    graphs = engine.core.graphs
    modes = {"eager": None} | ({} if graphs is None else {"replay": graphs})
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    logits: dict[str, list[float]] = {}
    counted: dict[str, int] = {}
    try:
        for number in range(WARM_UP + rounds):
            if number == WARM_UP and graphs is not None:
                counted = {"captures": graphs.captures, "replays": graphs.replays}
            # each mode is the first in every second round
            for mode in list(modes)[:: 1 if number % 2 else -1]:
                engine.core.graphs = modes[mode]
                start = time.perf_counter()
                details = engine.details(query, texts_)
                times[mode].append(1e3 * (time.perf_counter() - start))
                logits[mode] = [detail.logit for detail in details]
                if modes[mode] is not None and engine.core.graphs is None:
                    raise SystemExit("no graph could be captured, see the warning above")
    finally:
        engine.core.graphs = graphs
    result: dict[str, Any] = {
        "documents": documents,
        "tokens": sum(detail.tokens for detail in details),
        "rounds": rounds,
    }
    result |= {f"{mode}_ms": quartiles(taken[WARM_UP:]) for mode, taken in times.items()}
    if graphs is not None:
        ratios = [
            e / r for e, r in zip(*(taken[WARM_UP:] for taken in times.values()), strict=True)
        ]
        result["eager_over_replay"] = quartiles(ratios)
        result["captures_while_measured"] = graphs.captures - counted["captures"]
        result["replays_per_call"] = (graphs.replays - counted["replays"]) / rounds
        pairs = zip(logits["eager"], logits["replay"], strict=True)
        result["largest_logit_difference"] = max(abs(a - b) for a, b in pairs)
    return result


def table(results: Sequence[dict[str, Any]]) -> str:
    """Makes a line for each case: the median, and the quartiles in brackets."""

    def show(value: dict[str, float] | None, form: str) -> str:
        if value is None:
            return "-"
        return "{median:{f}} [{q1:{f}}, {q3:{f}}]".format(**value, f=form)

    lines = ["documents  tokens  eager, ms                  replay, ms                 ratio"]
    for r in results:
        eager, replay = (show(r.get(f"{mode}_ms"), ".2f") for mode in ("eager", "replay"))
        ratio = show(r.get("eager_over_replay"), ".2f")
        lines.append(f"{r['documents']:9d}{r['tokens']:8d}  {eager:27}{replay:27}{ratio}")
        if r.get("replays_per_call") == 0:
            lines.append("           nothing was replayed: the batch fits no captured bucket")
        if r.get("captures_while_measured"):
            lines.append(f"           {r['captures_while_measured']} graphs captured meanwhile")
    return "\n".join(lines)


def run(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    start = time.perf_counter()
    engine = Reranker(
        model,
        device=arguments.device,
        dtype=arguments.dtype,
        graph=arguments.graph,
        token_budget=arguments.token_budget,
    )
    loaded = time.perf_counter()
    counts = arguments.documents
    results = [measure(engine, n, arguments.tokens, arguments.rounds) for n in counts]
    return {
        "command": "bench/replay.py",
        "model": arguments.model,
        "random_weights": arguments.model in random_checkpoint.SHAPES,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "document_tokens": arguments.tokens,
        "load_seconds": loaded - start,
        "machine": machine.describe(engine.device),
        "results": results,
    }


def parser() -> argparse.ArgumentParser:
    shapes = ", ".join(random_checkpoint.SHAPES)
    result = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    result.add_argument("--device", help="cpu, npu, npu:1, cuda; default: what is there")
    result.add_argument("--dtype", choices=["float32", "bfloat16"])
    result.add_argument(
        "--model",
        default="0.6B",
        help=f"a checkpoint's folder or name; or {shapes}: random weights of that shape",
    )
    result.add_argument("--documents", type=int, nargs="+", default=[1, 8, 64])
    result.add_argument("--tokens", type=int, default=200, help="of each document")
    result.add_argument("--rounds", type=int, default=20)
    result.add_argument("--token-budget", type=int, default=8192)
    result.add_argument("--json", type=Path, help="write the figures there")
    result.add_argument(
        "--no-graph", dest="graph", action="store_false", default=None, help="eager only"
    )
    return result


def main() -> None:
    arguments = parser().parse_args()
    if arguments.model in random_checkpoint.SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            random_checkpoint.write(Path(folder), arguments.model)
            report = run(arguments, folder)
    else:
        report = run(arguments, arguments.model)
    where = report["machine"]
    print(
        f"{report['model']}{' (random weights)' * report['random_weights']}, {report['dtype']}, "
        f"documents of {report['document_tokens']} tokens, torch {torch.__version__}, "
        f"torch_npu {where['torch_npu']}, CANN {where['cann']}\n"
        f"{where['device']}; {where['processor']}, {where['threads']} threads"
    )
    print(table(report["results"]))
    if where["simulated"]:
        print(f"\n{'*' * 80}\n{machine.SIMULATED}\n{'*' * 80}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
