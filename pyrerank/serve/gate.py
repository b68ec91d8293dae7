"""The gate, through which every request comes in and every answer goes out.

It is ASGI middleware.  It gives requests ids, asks for keys, holds the limits of bytes, of requests
and of time, notices clients that have gone, and writes the access log, which has no text of
requests or answers.  It knows nothing of what requests ask for.
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

from fastapi import HTTPException  # the only one that its request handler lets through
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyrerank.serve.errors import error_response
from pyrerank.serve.metrics import Metrics
from pyrerank.serve.schedule import Job
from pyrerank.serve.settings import Settings
from pyrerank.serve.wire import REQUEST_ID

GONE = 499  # the status in the log if the client has gone

access = logging.getLogger("pyrerank.access")


@dataclass
class Visit:
    """One request, as the log and the limits see it.

    Attributes:
        id: the client's x-request-id, or a new one.
        named: whether the id is the client's.
        job: the work of the engine for this request; it has no prompts if there is none.
        status: the status of the answer, once that has begun.
        body: how many bytes of the body have come.
        reserved: how many bytes count for this request among those of all bodies.
        whole: is set when all of the body has come.
    """

    id: str
    named: bool
    job: Job = field(default_factory=Job)
    status: int | None = None
    body: int = 0
    reserved: int = 0
    whole: asyncio.Event = field(default_factory=asyncio.Event)


class Gate:
    """Wraps an application, which finds the `Visit` of a request in ``scope["state"]["visit"]``.

    Args:
        app: the application.
        settings: keys and limits.
        metrics: counts requests.
        paths: the paths that metrics tell apart.
        open: the paths that ask for no key.
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
        self._here = 0  # how many requests with a body are here
        self._bodies = 0  # how many bytes their bodies have
        self._usual = 1.0  # how many seconds a request has taken lately, on average

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
        """Gives back the bytes that the body had reserved, once no thread reads it any more."""
        body_read, loop = visit.job.body_read, asyncio.get_running_loop()

        def later(_: Future[None]) -> None:
            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(self._reserve, visit, 0)

        if body_read is None or body_read.done():
            self._reserve(visit, 0)
        else:
            body_read.add_done_callback(later)

    def _refusal(self, scope: Scope, headers: Headers, size: int, counted: bool) -> Response | None:
        """The answer to a request that is refused; None if it may go on."""
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
        # All keys are compared, so that the time does not tell which one was close.
        known = [hmac.compare_digest(digest, each) for each in self._keys]
        return scheme.lower() == "bearer" and any(known)

    def _too_large(self) -> str:
        return f"the body is over the limit of {self._settings.max_body} bytes"

    async def _pass(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> None:
        """Lets the application answer, unless the client goes or the time is up."""

        async def limited() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                visit.body += len(message.get("body", b""))
                self._reserve(visit, max(visit.body, visit.reserved))
                if visit.body > self._settings.max_body:
                    raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._too_large())
                if self._bodies > self._settings.max_bodies:  # the body did not say its length
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
            unanswered = not answer.done()
            for task in (answer, leaving):
                task.cancel()
            await asyncio.wait((answer, leaving))
        if not unanswered:
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
