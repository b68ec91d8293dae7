"""Servers, in this process and in processes of their own, and an engine that waits for a word."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from pyrerank.media.fetch import Fetcher
from pyrerank.media.sources import Media
from pyrerank.serve.app import build
from pyrerank.serve.metrics import Metrics
from pyrerank.serve.protocol import http_server
from pyrerank.serve.schedule import Scheduler
from pyrerank.serve.service import Service
from pyrerank.serve.settings import Settings

PATIENCE = 60.0  # seconds, for what must come


class Served:
    """An engine behind HTTP.

    passes: how many prompts each pass had.
    """

    def __init__(self, engine: Any, *, fetch: Fetcher | None = None, **settings: Any) -> None:
        self.engine = engine
        self.passes: list[int] = []
        self.settings = Settings(**{"names": ("served", "alias"), "batch_wait": 0.0} | settings)
        self.metrics = Metrics()
        self.scheduler = Scheduler(lambda: engine, self.settings.batch_wait, self._passed)
        self.metrics.watch(self.scheduler)
        media = Media(files=False, fetch=fetch)
        self.service = Service(self.scheduler, self.settings, media, "model")
        self.app = build(self.service, self.settings, self.metrics)

    def _passed(self, prompts: int, tokens: int, seconds: float) -> None:
        self.metrics.passed(prompts, tokens, seconds)
        self.passes.append(prompts)

    def client(self, **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://here", **options)

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        [response] = self.ask_all([(method, path, request)])
        return response

    def post(self, path: str, json: Any, **request: Any) -> httpx.Response:
        return self.ask("POST", path, json=json, **request)

    def get(self, path: str, **request: Any) -> httpx.Response:
        return self.ask("GET", path, **request)

    def ask_all(self, requests: list[tuple[str, str, dict[str, Any]]]) -> list[httpx.Response]:
        """Answers to requests that are sent at the same time."""

        async def ask() -> list[httpx.Response]:
            async with self.client(timeout=PATIENCE) as client:
                sent = [client.request(method, path, **more) for method, path, more in requests]
                return await asyncio.gather(*sent)

        return asyncio.run(ask())

    def until(self, happened: Callable[[], bool]) -> None:
        """Waits until something about the queue is so."""
        with self.scheduler._changed:
            assert self.scheduler._changed.wait_for(happened, PATIENCE)

    def close(self) -> None:
        self.service.close()


@contextmanager
def listening(served: Served) -> Iterator[tuple[str, int]]:
    """The server on a port of the loopback address, whose address this is."""
    server = http_server(served.app, drain=1)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            yield bound.getsockname()
        finally:
            server.should_exit = True
            thread.join()


class Word:
    """What a held engine waits for, once per pass that it was asked for."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.given = threading.Event()

    def wait(self) -> None:
        """Of the engine, or of a reader."""
        self.reached.release()
        assert self.given.wait(PATIENCE)

    def wait_for_pass(self) -> None:
        assert self.reached.acquire(timeout=PATIENCE)


@contextmanager
def held(engine: Any):
    """The engine stands before its next pass, until the word is given."""
    word, forward = Word(), engine.core._forward

    def wait(*arguments: Any) -> Any:
        word.wait()
        return forward(*arguments)

    engine.core._forward = wait
    try:
        yield word
    finally:
        word.given.set()
        engine.core._forward = forward


class Process:
    """A server as a process of its own."""

    def __init__(self, model: Path | str, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "pyrerank", "serve", "--model", str(model), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment | {"HF_HUB_OFFLINE": "1"},
        )
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"(http://\S+) serves", line):
                self.url = found[1]
                break
        else:
            raise AssertionError(self.lines)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines += self.process.stderr

    def stop(self) -> int:
        self.process.terminate()
        status = self.process.wait(PATIENCE)
        self._reader.join()
        return status


@contextmanager
def running(model: Path | str, *arguments: str, **environment: str) -> Iterator[Process]:
    process = Process(model, *arguments, **environment)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.stop()
