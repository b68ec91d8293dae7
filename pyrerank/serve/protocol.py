"""HTTP/1.1 by uvicorn and h11, which limit the size of headers; this module limits their time.

It knows nothing of applications.
"""

from __future__ import annotations

import asyncio

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 30.0  # for the headers of a request, or for the rest of its body after the answer


def http_server(app: ASGIApp, drain: int) -> uvicorn.Server:
    """Makes a server of ``app``; requests that are here when it stops have ``drain`` seconds."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Protocol,
            ws="none",  # websockets would bypass the gate
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,  # clients and balancers close theirs before: no race
            timeout_graceful_shutdown=drain,
        )
    )


class Protocol(H11Protocol):
    """Closes a connection if it waits longer than `SECONDS` for headers, or after an answer for the
    rest of a body.  The gate limits the time between."""

    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._closing is not None:
            self._closing.cancel()

    def _watch(self) -> None:
        waits = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
        if waits and self._closing is None:
            self._closing = self.loop.call_later(SECONDS, self.transport.close)
        elif not waits and self._closing is not None:
            self._closing.cancel()
            self._closing = None
