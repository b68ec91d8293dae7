"""Servers as processes, and connections that take little of the processor that they share."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent / "peers"))

from prompts import OVERRIDES, chat_template, family


@contextmanager
def server(model: str, *more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Starts `pyrerank serve`, yields its process and port, and ends it."""
    command = [sys.executable, "-m", "pyrerank", "serve", "--model", model, "--task", "score"]
    process = subprocess.Popen([*command, "--port", "0", *more], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    found = re.search(r"http://[^ ]*:(\d+) serves", first)
    if found is None:
        raise SystemExit(first + process.stderr.read())
    # The log is read and dropped; otherwise the server would wait until somebody reads it.
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    try:
        yield process, int(found[1])
    finally:
        process.terminate()
        process.wait()
        drain.wait()


@contextmanager
def vllm_server(python: str, model: str, dtype: str, threads: int) -> Iterator[int]:
    """Starts vLLM's server with the settings of `vllm_pooling`, yields its port, and ends it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "OMP_NUM_THREADS": str(threads),
    }
    kind = family(model)
    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as template:
        template.write(chat_template(kind))
        template.flush()
        command = f"-m vllm.entrypoints.openai.api_server --host 127.0.0.1 --port {port}"
        command += f" --model {model} --dtype {dtype} --runner pooling --max-model-len 4096"
        command += f" --enable-prefix-caching --block-size 32 --chat-template {template.name}"
        process = subprocess.Popen(
            [python, *command.split(), "--hf-overrides", json.dumps(OVERRIDES[kind])],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    if process.poll() is not None:
                        raise SystemExit(f"vLLM's server ended: {process.args}") from None
                    time.sleep(1)
            yield port
        finally:
            process.terminate()
            process.wait()


class Client:
    """A connection to a port of this machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, path: str, data: bytes, length: int | None = None) -> None:
        """Sends a request and the beginning of its body, whose length is ``length`` or that."""
        length = len(data) if length is None else length
        self._writer.write(
            b"POST %b HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (path.encode(), length, data)
        )

    def send_more(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> tuple[int, Any]:
        """Receives an answer: its status and its JSON."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        return int(head.split()[1]), json.loads(await self._reader.readexactly(int(length[1])))

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        self.send(path, json.dumps(body).encode())
        return await self.answer()

    def close(self) -> None:
        self._writer.close()
