"""Compares `pyrerank serve` with `Reranker.score`: throughput, and latency at 70% of it.

    python bench/serve.py --model 0.6B [--vllm VLLM/bin/python]

A request has words of XQuAD as its query, and a few passages. First the engine scores the pairs of
all requests in one call, in this process. Then a server on the loopback address gets them from
clients, each of which sends its next request when the last is answered. Then requests come evenly,
and at random (as a Poisson process), at 70% of the rate that the server has reached; latency counts
from the time at which a request was due. Clients and server share the processor. vLLM's server,
from an environment that has it, takes turns in the same rounds.

"ideal" is a server that answers one request after the other, in order, each in the time that a
request took at saturation. No server of this speed is much better on the same arrivals, because the
arrivals themselves decide most of its p99.

With --beside N the script measures something else: how long requests of one document take, sent one
after the other, alone and beside a client that sends requests of N documents without a pause.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import random_checkpoint
import torch
from loopback import Client, server, vllm_server
from replay import XQUAD, cut

from pyrerank import Reranker
from pyrerank.bench import machine

LOAD = 0.7


def requests(engine: Reranker, count: int, documents: int, tokens: int) -> list[dict[str, Any]]:
    """Makes bodies: passages of ``tokens`` tokens from random words on, and no query twice."""
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
    """Sends all bodies; returns the seconds that they took together, and their scores."""
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


async def arrive(port: int, due: np.ndarray, bodies: Sequence[Any]) -> np.ndarray:
    """Sends bodies when they are due; returns the seconds from then to each answer."""

    async def one(body: Any, due: float) -> float:
        await asyncio.sleep(due - (time.perf_counter() - start))
        client = await Client.open(port)
        await scores_of(client, body)
        client.close()
        return time.perf_counter() - start - due

    start = time.perf_counter()
    return np.array(await asyncio.gather(*map(one, bodies, due)))


def ideal(due: np.ndarray, seconds: float) -> np.ndarray:
    """The latencies of a server that takes ``seconds`` for each request, one after the other."""
    taken, free = [], 0.0
    for each in due:
        free = max(free, each) + seconds
        taken.append(free - each)
    return np.array(taken)


def arrivals(count: int, rate: float) -> dict[str, np.ndarray]:
    """The seconds at which requests are due, of which ``rate`` come in a second."""
    gaps = np.random.default_rng(1).exponential(1 / rate, count)
    return {"evenly": np.arange(count) / rate, "at random": np.cumsum(gaps)}


def percentiles(seconds: np.ndarray) -> dict[str, float]:
    p50, p99 = (1e3 * float(np.percentile(seconds, p)) for p in (50, 99))
    return {"p50_ms": p50, "p99_ms": p99, "p99_over_p50": p99 / p50}


async def one_by_one(port: int, bodies: Sequence[Any], beside: Any) -> tuple[np.ndarray, float]:
    """Sends one request after the other, while another client sends ``beside`` without a pause.

    If ``beside`` is None, there is no other client.

    Returns:
        The seconds that each request took, and how many requests like ``beside`` were answered in
        a second meanwhile.
    """
    answered = 0.0

    async def fill(client: Client) -> None:
        nonlocal answered
        while True:
            answered += len(await scores_of(client, beside)) / len(beside["documents"])

    client, other = await Client.open(port), await Client.open(port)
    filling = asyncio.ensure_future(fill(other)) if beside is not None else None
    taken = []
    start = time.perf_counter()
    for body in bodies:
        before = time.perf_counter()
        await scores_of(client, body)
        taken.append(time.perf_counter() - before)
    seconds = time.perf_counter() - start
    if filling is not None:
        filling.cancel()
    for each in (client, other):
        each.close()
    return np.array(taken), answered / seconds


def run_beside(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    engine = Reranker(model, device=arguments.device, dtype=arguments.dtype)
    dtype = str(engine.dtype).removeprefix("torch.")
    small = requests(engine, arguments.requests + 4, 1, arguments.tokens)
    [large] = requests(engine, 1, arguments.beside, arguments.tokens)
    with server(model, f"--device={engine.device}", f"--dtype={dtype}") as (_, port):
        asyncio.run(one_by_one(port, small[:4], None))  # warms up
        alone, _ = asyncio.run(one_by_one(port, small[4:], None))
        [whole, *_], _ = asyncio.run(one_by_one(port, [large], None))
        beside, answered = asyncio.run(one_by_one(port, small[4:], large))
    return {
        "command": "bench/serve.py --beside",
        "model": arguments.model,
        "dtype": dtype,
        "machine": machine.describe(engine.device),
        "requests": arguments.requests,
        "document_tokens": arguments.tokens,
        "beside": arguments.beside,
        "large_alone_s": whole,
        "large_beside_per_alone": answered * whole,
        "alone": percentiles(alone),
        "beside_large": percentiles(beside),
    }


def run(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    engine = Reranker(model, device=arguments.device, dtype=arguments.dtype)
    dtype = str(engine.dtype).removeprefix("torch.")
    # Each round, and each kind of arrivals, has new requests, because vLLM keeps what it computed.
    size, rounds = arguments.requests, arguments.rounds
    every = requests(engine, (1 + 3 * rounds) * size, arguments.documents, arguments.tokens)
    offline: list[float] = []
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        device = [f"--device={engine.device}", f"--dtype={dtype}"]
        ports = {"pyrerank": stack.enter_context(server(model, *device))[1]}
        if arguments.vllm is not None:
            started = vllm_server(arguments.vllm, model, dtype, torch.get_num_threads())
            ports["vllm"] = stack.enter_context(started)
        ratios: dict[str, list[float]] = {name: [] for name in ports}
        for number in range(-1, rounds):
            bodies, every = every[:size], every[size:]
            queries = [body["queries"] for body in bodies for _ in body["documents"]]
            documents = [document for body in bodies for document in body["documents"]]
            start = time.perf_counter()
            scores = engine.score(queries, documents, progress=False)
            seconds = time.perf_counter() - start
            if number >= 0:  # the first round warms up
                offline.append(len(documents) / seconds)
            for name, port in ports.items():
                taken, answers = asyncio.run(saturate(port, arguments.clients, bodies))
                served = [score for answer in answers for score in answer]
                if name == "pyrerank" and engine.device.type == "cpu" and served != scores:
                    raise SystemExit("the server's scores are not the engine's")
                if number >= 0:
                    ratios[name].append(seconds / taken)
            difference = float(np.abs(np.subtract(served, scores)).max())
        for name, port in ports.items():
            ratio = statistics.median(ratios[name])
            rate = statistics.median(offline) * ratio / arguments.documents
            rows[name] = {
                "pairs_per_second": rate * arguments.documents,
                "over_offline": {"median": ratio, "all": ratios[name]},
            }
            half = len(every) // 2
            halves = {"evenly": every[:half], "at random": every[half:]}
            for how, seconds in arrivals(half, LOAD * rate).items():
                latency = asyncio.run(arrive(port, seconds, halves[how]))
                rows[name][how] = percentiles(latency)
                rows[name][f"{how}, ideal"] = percentiles(ideal(seconds, 1 / rate))
    return {
        "command": "bench/serve.py",
        "model": arguments.model,
        "random_weights": arguments.model in random_checkpoint.SHAPES,
        "dtype": dtype,
        "machine": machine.describe(engine.device),
        "clients": arguments.clients,
        "requests": size,
        "documents": arguments.documents,
        "document_tokens": arguments.tokens,
        "rounds": rounds,
        "offline_pairs_per_second": statistics.median(offline),
        "largest_score_difference_of_vllm": difference if "vllm" in ports else None,
        "load": LOAD,
        "servers": rows,
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
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment that has vLLM")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=192, help="in a round")
    parser.add_argument("--documents", type=int, default=4, help="of a request")
    parser.add_argument("--tokens", type=int, default=50, help="of a document")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--beside", type=int, metavar="N", help="one document beside requests of N documents"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model in random_checkpoint.SHAPES:
            random_checkpoint.write(Path(folder), model)
            model = folder
        measure = run if arguments.beside is None else run_beside
        report = measure(arguments, model)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.beside is not None:
        print_beside(report)
        return
    where = report["machine"]
    print(
        f"{report['model']}{' (random weights)' * report['random_weights']}, {report['dtype']}; "
        f"{where['device']}; {where['processor']}, {where['threads']} threads\n"
        f"{report['requests']} requests of {report['documents']} documents of "
        f"{report['document_tokens']} tokens, {report['clients']} clients\n"
        f"one call of Reranker.score: {report['offline_pairs_per_second']:.2f} pairs/s"
    )
    for name, row in report["servers"].items():
        ratio = row["over_offline"]["median"]
        print(f"{name}: {row['pairs_per_second']:.2f} pairs/s, {ratio:.3f} of it; at {LOAD:.0%}:")
        for how in ("evenly", "at random"):
            for key in (how, f"{how}, ideal"):
                ms = row[key]
                print(
                    f"    {key:16} p50 {ms['p50_ms']:6.0f} ms, p99 {ms['p99_ms']:6.0f} ms, "
                    f"ratio {ms['p99_over_p50']:.2f}"
                )


def print_beside(report: dict[str, Any]) -> None:
    where = report["machine"]
    print(
        f"{report['model']}, {report['dtype']}; {where['processor']}, {where['threads']} threads\n"
        f"a request of {report['beside']} documents of {report['document_tokens']} tokens alone: "
        f"{report['large_alone_s']:.2f} s"
    )
    for key, name in (("alone", "alone"), ("beside_large", "beside such requests")):
        ms = report[key]
        print(
            f"{report['requests']} requests of one document, {name}: p50 {ms['p50_ms']:.0f} ms, "
            f"p99 {ms['p99_ms']:.0f} ms"
        )
    print(f"large requests beside them: {report['large_beside_per_alone']:.2f} of their rate alone")


if __name__ == "__main__":
    main()
