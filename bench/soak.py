"""Keeps `pyrerank serve` busy with requests of all kinds: checks answers, memory, and its end.

    python bench/soak.py --minutes 30

Good requests, of texts and of pictures, must be answered with the engine's scores, and bad and huge
ones must be refused. Some clients send slowly, and some leave before the answer. At the end the
server gets SIGTERM while it is busy. The exit status is 1 if an answer was wrong or missing.

In bfloat16 memory grows for thousands of requests, and in calls without a server as well: oneDNN
keeps the code that it compiled for each shape of a product, for up to
ONEDNN_PRIMITIVE_CACHE_CAPACITY=1024 shapes. In float32 it does not.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import re
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import random_checkpoint
from loopback import Client, server

from pyrerank import Reranker

BODY = 2**20  # --max-body
CLIENTS = 32
WORDS = "steam engine river capital of China gravity moon tide".split()  # noqa: SIM905


def picture(seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def good(count: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    bodies = []
    for number in range(count):
        texts: list[Any] = [
            " ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(rng.randint(1, 12))
        ]
        if number % 4 == 0:
            texts.append({"image": picture(number), "text": "a picture"})
        bodies.append({"queries": " ".join(rng.choices(WORDS, k=6)), "documents": texts})
    return bodies


BAD: list[tuple[int, bytes]] = [
    (400, b"{nonsense"),
    (400, b"[" * 50_000),
    (400, b'{"queries": "a", "documents": ["b", 5]}'),
    (400, b'{"queries": "a", "documents": [{"image": "data:image/png;base64,AAAA"}]}'),
    (400, b'{"queries": "a", "documents": [{"image": "/etc/passwd"}]}'),
    (400, b'{"queries": "a", "documents": [{"image": "http://127.0.0.1/"}]}'),
    (400, b'{"queries": "a", "documents": [' + b'"b",' * 3000 + b'"b"]}'),
    (404, b'{"model": "nonesuch", "queries": "a", "documents": ["b"]}'),
    (413, b'{"queries": "' + b"a" * BODY + b'", "documents": ["b"]}'),
]


class Soak:
    """Sends requests, and notes what happened.

    Attributes:
        seen: how often each kind of request had each outcome.
        wrong: descriptions of wrong answers.
    """

    def __init__(self, port: int, bodies: list[dict[str, Any]], scores: list[list[float]]) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self._port = port
        self._bodies, self._scores = bodies, scores
        self.over = False

    async def work(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self.over:
            client = await Client.open(self._port)
            try:
                for _ in range(rng.randint(1, 20)):
                    kind = rng.choice([self._good, self._good, self._good, self._bad, self._slow])
                    if not await kind(client, rng) or self.over:
                        break
                if rng.random() < 0.3 and not self.over:
                    await self._leave(rng)
            finally:
                client.close()

    async def _good(self, client: Client, rng: random.Random) -> bool:
        n = rng.randrange(len(self._bodies))
        return self._check("good", n, *await client.post("/score", self._bodies[n]))

    async def _slow(self, client: Client, rng: random.Random) -> bool:
        n = rng.randrange(len(self._bodies))
        data = json.dumps(self._bodies[n]).encode()
        cuts = sorted(rng.sample(range(len(data)), 3))
        client.send("/score", data[: cuts[0]], len(data))
        for a, b in zip(cuts, [*cuts[1:], len(data)], strict=True):
            await asyncio.sleep(rng.random() / 10)
            client.send_more(data[a:b])
        return self._check("slow", n, *await client.answer())

    async def _bad(self, client: Client, rng: random.Random) -> bool:
        want, data = rng.choice(BAD)
        client.send("/score", data)
        try:
            status, _ = await client.answer()
        except (ConnectionError, asyncio.IncompleteReadError):
            status = want if want == 413 else 0  # the server does not read the rest of such a body
        self.seen["bad", str(status)] += 1
        if status != want:
            self.wrong.append(f"{data[:60]!r}: {status}, not {want}")
        return want != 413 and status != 0

    async def _leave(self, rng: random.Random) -> None:
        client = await Client.open(self._port)
        client.send("/score", json.dumps(rng.choice(self._bodies)).encode())
        await asyncio.sleep(rng.random() / 20)
        client.close()
        self.seen["left", ""] += 1

    def _check(self, kind: str, n: int, status: int, answer: Any) -> bool:
        self.seen[kind, str(status)] += 1
        got = [item["score"] for item in answer["data"]] if status == 200 else answer
        if got != self._scores[n]:
            self.wrong.append(f"{kind} {n}: {status} {str(got)[:200]}")
        return True


def memory(process: subprocess.Popen[str]) -> tuple[float, int]:
    """How many MiB of a process are resident, and how many threads it has."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    size, threads = (re.search(rf"{name}:\s+(\d+)", status) for name in ("VmRSS", "Threads"))
    assert size is not None and threads is not None
    return int(size[1]) / 1024, int(threads[1])


async def soak(
    process: subprocess.Popen[str], port: int, minutes: float, bodies: Any, scores: Any
) -> Soak:
    soak = Soak(port, bodies, scores)
    workers = [asyncio.ensure_future(soak.work(seed)) for seed in range(CLIENTS)]
    start = time.monotonic()
    for tenth in range(1, 11):
        await asyncio.wait(workers, timeout=start + 6 * minutes * tenth - time.monotonic())
        for worker in workers:
            if worker.done():
                worker.result()
        size, threads = memory(process)
        count = sum(soak.seen.values())
        print(f"{time.monotonic() - start:6.0f} s  {count:8d} requests  {size:7.1f} MiB  "
              f"{threads} threads  {len(soak.wrong)} wrong", flush=True)  # fmt: skip
    soak.over = True
    await asyncio.gather(*workers)
    # The server is stopped when one of many answers has come.
    clients = [await Client.open(port) for _ in range(CLIENTS)]
    rng = random.Random(0)
    last = [asyncio.ensure_future(soak._good(client, rng)) for client in clients]
    await asyncio.wait(last, return_when=asyncio.FIRST_COMPLETED)
    process.terminate()
    await asyncio.gather(*last)
    if process.wait(60):
        soak.wrong.append(f"the server ended with status {process.returncode}")
    return soak


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", default="tiny-VL", choices=random_checkpoint.SHAPES)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        random_checkpoint.write(Path(folder), arguments.model)
        bodies = good(200)
        engine = Reranker(folder, device="cpu", dtype=arguments.dtype)
        scores = [engine.score(body["queries"], body["documents"]) for body in bodies]
        del engine
        options = ["--device", "cpu", "--dtype", arguments.dtype, "--max-body", str(BODY)]
        with server(folder, *options) as (process, port):
            done = asyncio.run(soak(process, port, arguments.minutes, bodies, scores))
    for (kind, outcome), count in sorted(done.seen.items()):
        print(f"{kind:5} {outcome:4} {count}")
    print("\n".join(done.wrong[:20]) or "nothing was wrong")
    return 1 if done.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
