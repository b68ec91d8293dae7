"""The protocol: uvicorn's HTTP/1.1 over h11, which bounds headers in size; here, in time."""

from __future__ import annotations

import asyncio

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 30.0


def http_server(app: ASGIApp, drain: int) -> uvicorn.Server:
    """Serves ``app``; when it is stopped, requests that are here have ``drain`` seconds."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Protocol,
            ws="none",  # it would be past the gate
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,  # longer than clients and balancers keep theirs: no race
            timeout_graceful_shutdown=drain,
        )
    )


class Protocol(H11Protocol):
    """Closes connections whose headers, or what is left of a body after the answer, take over
    `SECONDS`.  (The gate bounds what is in between.)"""

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
