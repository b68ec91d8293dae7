"""`pyrerank serve` beside `Reranker.score` on the same pairs: throughput, and latency at 70% of it.

    python bench/serve.py --model 0.6B

A request is words of XQuAD as a query, with a few passages. The engine scores all of them in one
call in this process; then a server on the loopback address gets them from clients that send their
next request when the last is answered; then at random times, at 70% of the rate that the server had
reached, a latency counting from the time at which a request was due. Client and server share the
processor.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import random_checkpoint
from loopback import Client, server
from replay import XQUAD, cut

from pyrerank import Reranker, machine

LOAD = 0.7


def requests(engine: Reranker, count: int, documents: int, tokens: int) -> list[dict[str, Any]]:
    """Bodies: passages of ``tokens`` tokens that start at different words; no query comes twice."""
    passages = (XQUAD / "corpus.jsonl").read_text("utf-8").splitlines()
    words = " ".join(json.loads(line)["text"] for line in passages).split(" ")
    rng = np.random.default_rng(0)
    bodies = []
    for start in rng.choice(len(words) - 12, count, replace=False):
        starts = rng.integers(0, len(words) - tokens, documents)
        texts = [cut(engine, " ".join(words[s : s + tokens]), tokens) for s in starts]
        bodies.append({"queries": " ".join(words[start : start + 12]), "documents": texts})
    return bodies


async def scores_of(client: Client, body: Any) -> list[float]:
    status, answer = await client.post("/score", body)
    if status != 200:
        raise SystemExit(f"{status}: {answer}")
    return [item["score"] for item in answer["data"]]


async def saturate(port: int, clients: int, bodies: Sequence[Any]) -> tuple[float, list[Any]]:
    """Seconds for all, and their scores."""
    todo = iter(enumerate(bodies))
    scores: dict[int, list[float]] = {}

    async def work(client: Client) -> None:
        for number, body in todo:
            scores[number] = await scores_of(client, body)

    open_ = [await Client.open(port) for _ in range(clients)]
    start = time.perf_counter()
    await asyncio.gather(*map(work, open_))
    seconds = time.perf_counter() - start
    for client in open_:
        client.close()
    return seconds, [scores[number] for number in range(len(bodies))]


async def arrive(port: int, rate: float, bodies: Sequence[Any]) -> list[float]:
    """Seconds of each request, of which ``rate`` a second are due at random times."""
    gaps = np.random.default_rng(1).exponential(1 / rate, len(bodies))
    free: list[Client] = []
    taken: list[float] = []
    start = time.perf_counter()

    async def one(body: Any, due: float) -> None:
        await asyncio.sleep(due - (time.perf_counter() - start))
        client = free.pop() if free else await Client.open(port)
        await scores_of(client, body)
        taken.append(time.perf_counter() - start - due)
        free.append(client)

    await asyncio.gather(*map(one, bodies, np.cumsum(gaps)))
    for client in free:
        client.close()
    return taken


def run(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    engine = Reranker(model, device=arguments.device, dtype=arguments.dtype)
    bodies = requests(engine, arguments.requests, arguments.documents, arguments.tokens)
    queries = [body["queries"] for body in bodies for _ in body["documents"]]
    documents = [document for body in bodies for document in body["documents"]]
    more = [f"--{name}={getattr(arguments, name)}" for name in ("device", "dtype")
            if getattr(arguments, name) is not None]  # fmt: skip
    offline, served, ratios = [], [], []
    with server(model, *more) as (_, port):
        for number in range(-1, arguments.rounds):
            start = time.perf_counter()
            scores = engine.score(queries, documents, progress=False)
            seconds = time.perf_counter() - start
            taken, answers = asyncio.run(saturate(port, arguments.clients, bodies))
            if [
                score for answer in answers for score in answer
            ] != scores and engine.device.type == "cpu":
                raise SystemExit("the server's scores are not the engine's")
            if number >= 0:  # the first is for warming up
                offline.append(len(documents) / seconds)
                served.append(len(documents) / taken)
                ratios.append(seconds / taken)
        rate = LOAD * statistics.median(served) / arguments.documents
        latency = asyncio.run(arrive(port, rate, bodies * arguments.rounds))
    p50, p99 = (1e3 * float(np.percentile(latency, p)) for p in (50, 99))
    return {
        "command": "bench/serve.py",
        "model": arguments.model,
        "random_weights": arguments.model in random_checkpoint.SHAPES,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "machine": machine.describe(engine.device),
        "clients": arguments.clients,
        "requests": len(bodies),
        "documents": arguments.documents,
        "document_tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "offline_pairs_per_second": statistics.median(offline),
        "served_pairs_per_second": statistics.median(served),
        "served_over_offline": {"median": statistics.median(ratios), "all": ratios},
        "load": LOAD,
        "p50_ms": p50,
        "p99_ms": p99,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", help="cpu, npu, npu:1, cuda; default: what is there")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    shapes = ", ".join(random_checkpoint.SHAPES)
    parser.add_argument(
        "--model",
        default="0.6B",
        help=f"a checkpoint's folder or name; or {shapes}: random weights of that shape",
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=192, help="in a round")
    parser.add_argument("--documents", type=int, default=4, help="of a request")
    parser.add_argument("--tokens", type=int, default=50, help="of a document")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model in random_checkpoint.SHAPES:
            random_checkpoint.write(Path(folder), model)
            model = folder
        report = run(arguments, model)
    where = report["machine"]
    print(
        f"{report['model']}{' (random weights)' * report['random_weights']}, {report['dtype']}; "
        f"{where['device']}; {where['processor']}, {where['threads']} threads\n"
        f"{report['requests']} requests of {report['documents']} documents of "
        f"{report['document_tokens']} tokens, {report['clients']} clients\n"
        f"one call:  {report['offline_pairs_per_second']:.1f} pairs/s\n"
        f"server:    {report['served_pairs_per_second']:.1f} pairs/s, "
        f"{report['served_over_offline']['median']:.1%} of it\n"
        f"at {LOAD:.0%} of that: p50 {report['p50_ms']:.0f} ms, p99 {report['p99_ms']:.0f} ms"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
