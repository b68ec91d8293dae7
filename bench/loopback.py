"""A server as a process, and connections to it that take little of the processor they share."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def server(model: str, *more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`pyrerank serve`, and its port.  Ends it, unless it has ended."""
    command = [sys.executable, "-m", "pyrerank", "serve", "--model", model, "--task", "score"]
    process = subprocess.Popen([*command, "--port", "0", *more], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    found = re.search(r"http://[^ ]*:(\d+) serves", first)
    if found is None:
        raise SystemExit(first + process.stderr.read())
    # its log is read and dropped, or it would wait for a reader
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    try:
        yield process, int(found[1])
    finally:
        process.terminate()
        process.wait()
        drain.wait()


class Client:
    """A connection to a port of this machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, path: str, data: bytes, length: int | None = None) -> None:
        """A request with the beginning of its body, which has ``length`` bytes; None: as many."""
        length = len(data) if length is None else length
        self._writer.write(
            b"POST %b HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (path.encode(), length, data)
        )

    def send_more(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> tuple[int, Any]:
        """Status and JSON."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        return int(head.split()[1]), json.loads(await self._reader.readexactly(int(length[1])))

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        self.send(path, json.dumps(body).encode())
        return await self.answer()

    def close(self) -> None:
        self._writer.close()
