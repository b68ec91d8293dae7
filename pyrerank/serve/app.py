"""The application: which path takes which request, and examples for its documentation.

It knows HTTP and the wire formats; answers come from `pyrerank.serve.service`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from pyrerank import __version__
from pyrerank.serve import wire
from pyrerank.serve.errors import handle_errors
from pyrerank.serve.gate import Gate, Visit
from pyrerank.serve.metrics import Metrics
from pyrerank.serve.service import Service
from pyrerank.serve.settings import Settings

QUERY = "What is the capital of China?"
DOCUMENTS = ["The capital of China is Beijing.", "Gravity is a force between two bodies."]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
RERANK = {
    "texts": {"value": {"query": QUERY, "documents": DOCUMENTS, "top_n": 1}},
    "pictures": {
        "value": {"query": "a rocket", "documents": [{"content": [PICTURE]}, {"text": "a rocket"}]}
    },
}
SCORE = {
    "one with all": {"value": {"text_1": QUERY, "text_2": DOCUMENTS}},
    "each with one": {"value": {"queries": [QUERY, "What falls?"], "documents": DOCUMENTS}},
}
EMBEDDINGS = {
    "texts": {"value": {"input": DOCUMENTS}},
    "a picture": {"value": {"messages": [{"role": "user", "content": [PICTURE]}]}},
}
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
STRICT = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
Responses = dict[int | str, dict[str, Any]]
DENIED: Responses = {401: {"model": wire.ErrorResponse}}
ERRORS: Responses = {
    status: {"model": wire.ErrorResponse}
    for status in (400, 401, 404, 408, 413, 429, 500, 501, 503, 504)
}


async def _visit(request: Request) -> Visit:
    visit: Visit = request.state.visit
    return visit


Visiting = Annotated[Visit, Depends(_visit)]


def build(service: Service, settings: Settings, metrics: Metrics) -> ASGIApp:
    """Makes the application, whose answers come from ``service``."""
    app = FastAPI(title="pyrerank", version=__version__, docs_url=None, redoc_url=None)
    handle_errors(app)

    async def rerank(
        visit: Visiting, body: Annotated[wire.RerankRequest, Body(openapi_examples=RERANK)]
    ) -> wire.RerankResponse:
        """Sorts documents by their relevance to a query."""
        return await service.rerank(body, _id(visit, body), visit.job)

    async def score(
        visit: Visiting, body: Annotated[wire.ScoreRequest, Body(openapi_examples=SCORE)]
    ) -> wire.ScoreResponse:
        """Scores one text with several, or each of several with one, in the order given."""
        return await service.score(body, _id(visit, body), visit.job)

    async def embeddings(
        visit: Visiting, body: Annotated[wire.EmbeddingRequest, Body(openapi_examples=EMBEDDINGS)]
    ) -> wire.EmbeddingResponse:
        """Makes a vector of each input."""
        return await service.embed(body, _id(visit, body), visit.job)

    async def models() -> wire.ModelList:
        """The model that is served, by each of its names."""
        return service.models()

    async def health() -> Response:
        """200 while the model can score and no pass takes longer than a request may; else 503."""
        return Response(status_code=200 if service.scheduler.works(settings.timeout) else 503)

    async def version() -> wire.Version:
        """The version of pyrerank."""
        return wire.Version(version=__version__)

    async def show_metrics() -> Response:
        """The metrics, in Prometheus's text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    answers: dict[str, Any] = {"response_model_exclude_unset": True, "responses": ERRORS}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        app.post(path, operation_id=_operation(path), **answers)(rerank)
    for path in ("/score", "/v1/score"):
        app.post(path, operation_id=_operation(path), **answers)(score)
    app.post("/v1/embeddings", **answers)(embeddings)
    app.get("/v1/models", responses=DENIED)(models)
    app.get("/health", response_class=Response, responses={503: {}})(health)
    app.get("/version", responses=DENIED)(version)
    app.get("/metrics", response_class=PlainTextResponse, responses=DENIED)(show_metrics)

    paths = frozenset(app.openapi()["paths"])
    if settings.page:
        for path, (file, kind) in PAGE.items():
            app.get(path, include_in_schema=False)(_file(file, kind))
    gate: ASGIApp = Gate(app, settings, metrics, paths, open=frozenset(["/health", *PAGE]))
    if settings.cors_origins:
        gate = CORSMiddleware(
            gate,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return gate


def _file(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    body = (files(__package__) / "page" / name).read_bytes()

    async def send() -> Response:
        return Response(body, media_type=kind, headers=STRICT)

    return send


def _id(visit: Visit, body: wire.Request) -> str:
    """The id of an answer; that of the header goes before that of the body."""
    if not visit.named and body.request_id:
        visit.id = body.request_id
    return visit.id


def _operation(path: str) -> str:
    return path.strip("/").replace("/", "_")
