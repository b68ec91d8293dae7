"""Makes answers of errors: OpenAI's object, with the classes and status codes of vLLM's server.

It knows errors only, and neither requests nor engines.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pyrerank.errors import DeviceError, EngineClosed, NonFiniteScore, PyrerankError

LONGEST = 2000  # characters of a message; it may quote the request

log = logging.getLogger("pyrerank.serve")


class BadRequest(PyrerankError, ValueError):
    """A request cannot be answered; ``param`` names the field at fault."""

    status, type = HTTPStatus.BAD_REQUEST, "BadRequestError"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NotFound(BadRequest):
    """The request asks for a model, or for a use of it, that is not here."""

    status, type = HTTPStatus.NOT_FOUND, "NotFoundError"


class NotHere(BadRequest):
    """The request needs a package that is not installed here."""

    status, type = HTTPStatus.NOT_IMPLEMENTED, "NotImplementedError"


def error_response(
    status: int, message: str, type: str | None = None, param: str | None = None
) -> JSONResponse:
    if len(message) > LONGEST:  # the end is not cut, because it often says what to do
        message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
    error = {
        "message": message.encode(errors="replace").decode(),  # it may quote a lone surrogate
        "type": type or HTTPStatus(status).phrase,
        "param": param,
        "code": int(status),
    }
    return JSONResponse({"error": error}, status)


def handle_errors(app: FastAPI) -> None:
    """Makes ``app`` answer every exception with `error_response`."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(BadRequest, _bad)
    for expected in (PyrerankError, ArithmeticError, RuntimeError, Exception):
        app.add_exception_handler(expected, _failed)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]  # its "input" must not be quoted: it is the caller's text
    loc = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        why = f"the body is not JSON: {first['ctx']['error']} at character {loc[0]}"
        return error_response(HTTPStatus.BAD_REQUEST, why)
    param = ".".join(loc) or None
    return error_response(HTTPStatus.BAD_REQUEST, f"{param or 'body'}: {first['msg']}", None, param)


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    response = error_response(error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


def _bad(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BadRequest)
    return error_response(error.status, str(error), error.type, error.param)


def _failed(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, EngineClosed):
        status, kind = HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError"
    else:
        status, kind = HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError"
    if isinstance(error, (NonFiniteScore, DeviceError)):  # these say what to do
        return error_response(status, str(error), kind)
    log.error("a request failed", exc_info=error)
    return error_response(status, f"{type(error).__name__} in the server; see its log", kind)
