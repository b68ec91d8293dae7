"""The gate: what every request passes before it is read, and every answer on its way out.

ASGI middleware: request ids, keys, limits of bytes, of requests and of time, clients that have
gone, and the access log, which has no text of a request or answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import math
import re
import time
import uuid
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException  # its request handler lets no other pass
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyrerank.serve.errors import error_response
from pyrerank.serve.metrics import Metrics
from pyrerank.serve.schedule import Job
from pyrerank.serve.settings import Settings
from pyrerank.serve.wire import REQUEST_ID

GONE = 499  # status in the log where nobody was left to have one

access = logging.getLogger("pyrerank.access")


@dataclass
class Visit:
    """One request, for the log.

    Attributes:
        id: the client's x-request-id, or a new one.
        named: whether it is the client's.
        job: its work for the engine; has no prompts where there is none.
        status: of the answer, when that has begun.
        body: bytes that came.
        reserved: bytes that it has of what all bodies may have.
        whole: when all of the body has come.
    """

    id: str
    named: bool
    job: Job = field(default_factory=Job)
    status: int | None = None
    body: int = 0
    reserved: int = 0
    whole: asyncio.Event = field(default_factory=asyncio.Event)


class Gate:
    """Wraps an application; ``scope["state"]["visit"]`` is the request's `Visit`.

    Args:
        app: the application.
        paths: those that the metrics tell apart.
        open: paths that ask for no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        paths: frozenset[str],
        open: frozenset[str],
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._paths = paths
        self._open = open
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]
        self._here = 0  # requests with a body
        self._bodies = 0  # their bytes
        self._usual = 1.0  # seconds that a request took lately

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        named = re.fullmatch(REQUEST_ID, given) is not None
        visit = Visit(given if named else uuid.uuid4().hex[:16], named)
        scope["state"] = {**scope.get("state", {}), "visit": visit}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = visit.id
            await send(message)

        length = headers.get("content-length", "")
        size = int(length[:20]) if length.isdecimal() else 0
        counted = scope["method"] == "POST"
        refusal = self._refusal(scope, headers, size, counted)
        try:
            if refusal is not None:
                await refusal(scope, receive, answer)
                return
            self._here += counted
            self._metrics.here.set(self._here)
            self._reserve(visit, size)
            try:
                await self._pass(scope, receive, answer, visit)
            finally:
                self._here -= counted
                self._metrics.here.set(self._here)
                self._release(visit)
        finally:
            self._record(scope, visit)

    def _reserve(self, visit: Visit, size: int) -> None:
        self._bodies += size - visit.reserved
        visit.reserved = size

    def _release(self, visit: Visit) -> None:
        """Gives back what the body had reserved, once no thread reads it any more."""
        body_read, loop = visit.job.body_read, asyncio.get_running_loop()

        def later(_: Future[None]) -> None:
            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(self._reserve, visit, 0)

        if body_read is None or body_read.done():
            self._reserve(visit, 0)
        else:
            body_read.add_done_callback(later)

    def _refusal(self, scope: Scope, headers: Headers, size: int, counted: bool) -> Response | None:
        """The answer to a request that comes no further."""
        if self._keys and scope["path"] not in self._open and not self._knows(headers):
            refusal = error_response(HTTPStatus.UNAUTHORIZED, "a valid API key is needed")
            refusal.headers["www-authenticate"] = "Bearer"
            return refusal
        if size > self._settings.max_body:
            return error_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._too_large())
        full = self._here >= self._settings.max_requests
        if counted and (full or self._bodies + size > self._settings.max_bodies):
            refusal = error_response(HTTPStatus.TOO_MANY_REQUESTS, self._full())
            refusal.headers.update(self._later())
            return refusal
        return None

    def _full(self) -> str:
        return f"the server has {self._here} requests and takes no more now; try again later"

    def _later(self) -> dict[str, str]:
        return {"retry-after": str(min(60, math.ceil(self._usual)))}

    def _knows(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        # all are compared, so that the time tells nothing
        known = [hmac.compare_digest(digest, each) for each in self._keys]
        return scheme.lower() == "bearer" and any(known)

    def _too_large(self) -> str:
        return f"the body is over the limit of {self._settings.max_body} bytes"

    async def _pass(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> None:
        """Has the application answer, unless the client goes or the time is up."""

        async def limited() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                visit.body += len(message.get("body", b""))
                self._reserve(visit, max(visit.body, visit.reserved))
                if visit.body > self._settings.max_body:
                    raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._too_large())
                if self._bodies > self._settings.max_bodies:  # it did not say how long it is
                    raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, self._full(), self._later())
            if not message.get("more_body"):
                visit.whole.set()
            return message

        async def gone() -> None:
            await visit.whole.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        answer = asyncio.ensure_future(self._app(scope, limited, send))
        leaving = asyncio.ensure_future(gone())
        try:
            await asyncio.wait(
                (answer, leaving),
                timeout=self._settings.timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            timed_out = not answer.done() and not leaving.done()
        finally:
            left = not answer.done()
            for task in (answer, leaving):
                task.cancel()
            await asyncio.wait((answer, leaving))
        if not left:
            answer.result()
        elif visit.status is None:
            visit.status = GONE
            if timed_out:
                await self._late(visit)(scope, receive, send)

    def _late(self, visit: Visit) -> Response:
        seconds = f"{self._settings.timeout:g} seconds"
        if not visit.whole.is_set():
            return error_response(
                HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {seconds}"
            )
        return error_response(HTTPStatus.GATEWAY_TIMEOUT, f"there was no answer within {seconds}")

    def _record(self, scope: Scope, visit: Visit) -> None:
        seconds = time.monotonic() - visit.job.arrived
        path = scope["path"] if scope["path"] in self._paths else "other"
        status = visit.status or HTTPStatus.INTERNAL_SERVER_ERROR
        self._metrics.requests.labels(path, status).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        entry: dict[str, Any] = {
            "time": round(time.time(), 3),
            "id": visit.id,
            "client": (scope.get("client") or [None])[0],
            "method": scope["method"][:20],
            "path": scope["path"][:200],
            "status": int(status),
            "seconds": round(seconds, 4),
            "bytes": visit.body,
        }
        if status == HTTPStatus.OK and "done" in visit.job.times:
            self._metrics.answered(visit.job)
            self._usual += 0.1 * (seconds - self._usual)
            entry["prompts"] = len(visit.job.prompts)
            entry["tokens"] = sum(len(prompt.ids) for prompt in visit.job.prompts)
            entry["waited"] = round(visit.job.times["started"] - visit.job.arrived, 4)
        access.info(json.dumps(entry))
