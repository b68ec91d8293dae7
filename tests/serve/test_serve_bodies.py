"""The bodies of requests are held no longer than needed, and by nobody else."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from serving import PATIENCE, Served, Word

from pyrerank import Reranker
from pyrerank.serve.gate import Gate
from pyrerank.serve.readers import THREADS

pytestmark = pytest.mark.slow

SIZE = 100_000  # bytes of a body, about
LEFT = 20


@pytest.fixture
def served(random_reranker) -> Iterator[Served]:
    served = Served(Reranker(random_reranker, device="cpu"), max_bodies=(LEFT + 5) * 2 * SIZE)
    yield served
    served.close()


def test_bodies_of_clients_that_left_are_let_go_while_readers_are_busy(served, monkeypatch):
    gate: Any = served.app
    assert isinstance(gate, Gate)
    word = Word()
    encode, rerank = served.engine.core.encoder.encode, served.service.rerank
    bodies: list[weakref.ref[Any]] = []

    def blocked(*arguments: Any) -> Any:
        word.wait()
        return encode(*arguments)

    async def seen(request: Any, *more: Any) -> Any:
        bodies.append(weakref.ref(request))
        return await rerank(request, *more)

    monkeypatch.setattr(served.engine.core.encoder, "encode", blocked)
    monkeypatch.setattr(served.service, "rerank", seen)
    # many short documents: this many characters are no small request
    body = {"query": "a", "documents": ["b" * 1000] * (SIZE // 1000)}

    def there() -> int:
        gc.collect()
        return sum(ref() is not None for ref in bodies)

    async def ask() -> None:
        async with served.client(timeout=PATIENCE) as client:
            reading = [
                asyncio.ensure_future(client.post("/rerank", json=body))
                for _ in range(THREADS["large"])
            ]
            for _ in reading:
                await asyncio.to_thread(word.wait_for_pass)
            one = gate._bodies
            for _ in range(LEFT):
                leaving = asyncio.ensure_future(client.post("/rerank", json=body))
                count = len(bodies)
                while len(bodies) == count:
                    await asyncio.sleep(0)
                assert gate._bodies > one
                leaving.cancel()
                await asyncio.wait([leaving])
                del leaving
            assert len(bodies) == LEFT + len(reading)
            assert gate._bodies == one and there() == len(reading)
            # what a thread still reads is counted until the thread lets go of it
            reading[0].cancel()
            for _ in range(100):
                await asyncio.sleep(0)
            assert gate._bodies == one and there() == len(reading)
            word.given.set()
            await asyncio.wait(reading)
            async with asyncio.timeout(PATIENCE):
                while gate._bodies:
                    await asyncio.sleep(0)

    asyncio.run(ask())
    assert there() == 0
